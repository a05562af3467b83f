"""Rock-paper-scissors by enumeration and in the long run: an opponent that adapts, and one that does not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rlhf.errors import InputError
from tests.control.worlds import bare
from theory.mdp import expected_return, optimal_values


@pytest.mark.parametrize("frequencies", [(1.0, 0.0, 0.0), (0.5, 0.5, 0.0), (0.2, 0.3, 0.5), (1 / 3, 1 / 3, 1 / 3)])
def test_predictable_play_loses_against_an_opponent_that_adapts(frequencies: tuple[float, float, float]) -> None:
    """sum_n n / (n + 3) (1 - 3 |p|^2) / 2, enumerated over all counts: at most 0, and 0 for uniform play alone."""
    mdp = bare("theory/RockPaperScissors-v0,rounds=8").mdp
    p = torch.tensor(frequencies, dtype=torch.float64)
    value = float(expected_return(mdp, p.expand(len(mdp.start), 3), gamma=1.0))
    known = sum(n / (n + 3) for n in range(8)) * (1.0 - 3.0 * float(p.square().sum())) / 2.0
    assert value == pytest.approx(known, abs=1e-9)
    assert (value < -1e-3) == (len(set(frequencies)) > 1)


def test_a_deterministic_reply_wins_against_a_fixed_opponent() -> None:
    mdp = bare("theory/RockPaperScissors-v0,rounds=8,adapts=false").mdp
    eye = torch.eye(3, dtype=torch.float64)
    values = [float(expected_return(mdp, row.expand(len(mdp.start), 3), gamma=1.0)) for row in eye]
    # Against rock half of the time: a tie and as many wins as losses; a win and a loss in four; two in four lost.
    assert values == pytest.approx([0.0, 8 * 0.25, -8 * 0.25], abs=1e-9)
    best = mdp.start @ optimal_values(mdp, gamma=1.0, num_iterations=8)
    assert float(best) == pytest.approx(8 * 0.25, abs=1e-9)


def test_long_play_of_rock_paper_scissors_pays_as_theory_says() -> None:
    """Rock for ever loses nearly every round of 3000; chance wins as much as it loses."""
    env = bare("theory/RockPaperScissors-v0,rounds=3000")
    draws = np.random.default_rng(0).integers(3, size=3000)
    means = []
    for moves in (np.zeros(3000, dtype=int), draws):
        env.reset(seed=0)
        means.append(np.mean([env.step(move)[1] for move in moves]))
    assert means[0] < -0.98
    assert abs(means[1]) < 5 * math.sqrt(2 / 3 / 3000)


def test_too_many_rounds_for_a_table_are_refused() -> None:
    with pytest.raises(InputError, match="30 rounds have 4960 states"):
        _ = bare("theory/RockPaperScissors-v0,rounds=30").mdp
