"""Iterated rock-paper-scissors: against an opponent that adapts, whoever can be predicted loses."""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from rlhf.errors import InputError
from theory.mdp import Mdp

NUM_MOVES = 3
# How often an opponent that does not adapt plays rock, paper and scissors.
FIXED = np.array([0.5, 0.25, 0.25])
# Beyond this many states the table of transitions takes over 100 MB.
MAX_STATES = 2_000


class RockPaperScissors(gymnasium.Env):
    """Rounds of rock (0), paper (1) and scissors (2) against one opponent: a win pays 1, a loss -1.

    An opponent that adapts knows how often the player made each move: it draws one of the player's past moves, among
    them one imaginary move of each kind, and plays what beats it. A player without memory who plays with frequencies p
    then expects sum_n n / (n + 3) (1 - 3 |p|^2) / 2 over rounds n = 0, 1, ...: 0 if p is uniform, and close to -1 a
    round for a deterministic one. Against an opponent that does not adapt, always paper wins 1/4 a round, the most
    there is. Observes nothing: always 0.

    Args:
        rounds: In an episode, at least 1.
        adapts: Whether the opponent does; otherwise it plays with the frequencies `FIXED`.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (gymnasium's own annotation)
    observation_space = spaces.Discrete(1)
    action_space = spaces.Discrete(NUM_MOVES)

    def __init__(self, rounds: int = 20, adapts: bool = True) -> None:
        if rounds < 1:
            raise InputError(f"rounds is {rounds}; play at least 1.")
        self.rounds, self.adapts = rounds, adapts
        # How often the player made each move.
        self.state = np.zeros(NUM_MOVES, dtype=np.int64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = np.zeros(NUM_MOVES, dtype=np.int64)
        return self._get_obs(), {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        frequencies = np.cumsum(self.opponent(self.state))
        reply = int(np.searchsorted(frequencies[:-1], self.np_random.random(), side="right"))
        reward = float(payoffs()[action, reply])
        self.state = self.state + np.eye(NUM_MOVES, dtype=np.int64)[action]
        return self._get_obs(), reward, bool(self.state.sum() == self.rounds), False, {}

    def opponent(self, counts: np.ndarray) -> np.ndarray:
        """Probabilities of its next move, after the player's `counts`."""
        if not self.adapts:
            return FIXED
        # Move i + 1 beats move i.
        return np.roll((counts + 1.0) / (counts.sum() + NUM_MOVES), 1)

    @property
    def states(self) -> np.ndarray:
        """Every state in which one can act, in the order of `mdp`."""
        counts = itertools.product(range(self.rounds), repeat=NUM_MOVES)
        return np.array([each for each in counts if sum(each) < self.rounds])

    @property
    def mdp(self) -> Mdp:
        """Of the counts, which one does not see: a policy of this environment is the same row for every state."""
        number = self.rounds * (self.rounds + 1) * (self.rounds + 2) // 6
        if number > MAX_STATES:
            raise InputError(f"{self.rounds} rounds have {number} states, too many for a table; play fewer.")
        states = self.states
        index = {tuple(counts): i for i, counts in enumerate(states.tolist())}
        transitions = torch.zeros(number, NUM_MOVES, number, dtype=torch.float64)
        for counts, i in index.items():
            for move in range(NUM_MOVES):
                after = tuple(count + (move == kind) for kind, count in enumerate(counts))
                if after in index:
                    transitions[i, move, index[after]] = 1.0
        replies = np.stack([self.opponent(counts) for counts in states])
        start = torch.zeros(number, dtype=torch.float64)
        start[index[0, 0, 0]] = 1.0
        return Mdp(transitions, torch.as_tensor(replies @ payoffs().T), start)

    def _get_obs(self) -> int:
        return 0


def payoffs() -> np.ndarray:
    """`(own move, opponent's move)`: move i + 1 beats move i."""
    moves = np.arange(NUM_MOVES)
    return (moves[:, None] - moves + 1.0) % NUM_MOVES - 1.0
