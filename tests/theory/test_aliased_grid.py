"""The aliased grid world by enumeration: no deterministic policy is as good as a coin."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from rlhf.control.resets import set_state
from tests.control.worlds import bare
from theory.mdp import expected_return
from theory.worlds import aliased_grid
from theory.worlds.aliased_grid import EAST, SOUTH, WEST


def grid_return(table: Tensor, *, gamma: float) -> float:
    """Of a policy that sees what `AliasedGrid` observes."""
    seen = table[list(aliased_grid.OBSERVED[:-1])]
    return float(expected_return(bare("theory/AliasedGrid-v0").mdp, seen, gamma=gamma))


def test_aliased_grid_s_best_policy_is_stochastic() -> None:
    """All 256 deterministic ones against one that tosses a coin beside the middle; values by hand for gamma = 0.9.

    From cells 2, 1, 0 the best deterministic policy needs 0, 1, 2 steps before the one that pays, from 3 and 4 for
    ever. With the coin V(1) = g (1 + V(0)) / 2 and V(0) = g V(1), and the same on the other side.
    """
    gamma, eye = 0.9, torch.eye(4, dtype=torch.float64)
    best = max(grid_return(eye[list(actions)], gamma=gamma) for actions in itertools.product(range(4), repeat=4))
    assert best == pytest.approx((1.0 + gamma + gamma**2) / 5.0, abs=1e-9)
    coin = torch.stack([eye[EAST], 0.5 * (eye[EAST] + eye[WEST]), eye[SOUTH], eye[WEST]])
    beside = 0.5 * gamma / (1.0 - 0.5 * gamma**2)
    assert grid_return(coin, gamma=gamma) == pytest.approx((1.0 + 2.0 * (1.0 + gamma) * beside) / 5.0, abs=1e-9)
    assert grid_return(coin, gamma=gamma) > best + 0.2
    uneven = coin.clone()
    for share in (0.2, 0.4, 0.6, 0.8):
        uneven[1] = share * eye[EAST] + (1.0 - share) * eye[WEST]
        assert grid_return(uneven, gamma=gamma) < grid_return(coin, gamma=gamma)


def test_aliased_grid_has_two_cells_that_look_alike() -> None:
    env = bare("theory/AliasedGrid-v0")
    env.reset(seed=0)
    assert [int(set_state(env, cell)) for cell in env.states] == [0, 1, 2, 1, 3]
