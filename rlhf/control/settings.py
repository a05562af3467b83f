"""What can be set of control: how much is collected, remembered and evaluated, and what acts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlhf.errors import InputError
from rlhf.settings import Count, CountOrNone, Settings, ShareBelowOne, Total


@dataclass(frozen=True, kw_only=True)
class CollectSteps(Settings):
    """How much experience each update gets."""

    num_envs: Count = 8
    """Environments over all processes; a multiple of their number."""
    steps: Count = 32
    """Steps in each environment between updates; episodes go on across updates."""
    episodes: CountOrNone = 0
    """Whole episodes between updates, over all processes, in place of environments that go on; 0: fragments of
    steps."""
    episodes_per_start: Count = 1
    """Episodes in a row that begin in one start state, with other actions; divides episodes."""
    normalise_rewards: bool = False
    """Divide rewards by the running standard deviation of the discounted return, and clip them to +-10."""
    lag: CountOrNone = 0
    """Updates by which the weights that act lag behind those that learn."""

    def __post_init__(self) -> None:
        if self.episodes_per_start > 1 and (self.episodes == 0 or self.episodes % self.episodes_per_start):
            raise InputError(
                f"episodes is {self.episodes}, in which starts with episodes_per_start = "
                f"{self.episodes_per_start} episodes each do not fit; make it a positive multiple."
            )


@dataclass(frozen=True, kw_only=True)
class Replay(Settings):
    """What a method with a replay buffer remembers."""

    capacity: Total = 200_000
    """Transitions kept, over all processes; the oldest make room. Every checkpoint holds all of them: 200k of CartPole
    are 9 MB, saved in 0.2 s; a million of HalfCheetah are 165 MB and 2 s, once in 100k steps is then often enough."""
    random_steps: CountOrNone = 1_000
    """Steps with evenly drawn actions before the first update, over all processes."""


@dataclass(frozen=True, kw_only=True)
class EvaluateEpisodes(Settings):
    """How many episodes an evaluation plays; the same ones each time."""

    episodes: Count = 200
    """Greedy episodes, the same ones each time."""
    sampled_episodes: CountOrNone = 200
    """Episodes with actions drawn from the policy, from the same starts as the greedy ones; 0: none."""


@dataclass(frozen=True, kw_only=True)
class Dagger(Settings):
    """How many states the expert labels before each update, and who leads to them."""

    num_envs: Count = 8
    """Environments over all processes; a multiple of their number."""
    steps: Count = 32
    """Steps in each environment between updates, each of which the expert labels."""
    expert_share: ShareBelowOne = 0.0
    """p in [0, 1): update i = 0, 1, ... takes a step with the expert's action with probability beta_i = p^i. 0: the
    expert acts in the first update, and never again."""


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(Settings):
    """Size of the networks and where they start."""

    hidden_sizes: tuple[Count, ...] = (64, 64)
    """Units of each hidden layer, of the actor and of the critic alike."""
    initial_log_std: float = 0.0
    """Logarithm of the standard deviation of vector actions at the start, in every dimension; it is learned and no
    function of the state."""
    normalise_observations: bool = False
    """Standardise observations by the mean and variance of all that were acted on."""
    critic: Literal["state", "action"] = "state"
    """What the critic values: V(s), or Q(s, a) of each discrete action; `values` are then those of the taken ones."""

    def __post_init__(self) -> None:
        if not self.hidden_sizes:
            raise InputError("hidden_sizes is empty; give at least one layer.")
