"""The road with a ditch: regret that grows with the horizon squared, or with the horizon."""

from __future__ import annotations

import pytest
import torch

from rlhf.control.envs import make_env
from tests.control.worlds import bare
from theory.mdp import step_marginals
from theory.worlds.road import STRAIGHT, TURN


@pytest.mark.parametrize("num_steps", [1, 7, 40])
def test_who_never_turns_in_the_ditch_loses_as_the_horizon_squared(num_steps: int) -> None:
    mdp, error = bare("theory/Road-v0").mdp, 0.01
    cloned = torch.tensor([[1.0 - error, error], [1.0, 0.0]], dtype=torch.float64)
    corrected = torch.tensor([[1.0 - error, error], [error, 1.0 - error]], dtype=torch.float64)
    lost = [
        num_steps - float((step_marginals(mdp, policy, num_steps=num_steps) @ (policy * mdp.rewards).sum(-1)).sum())
        for policy in (cloned, corrected)
    ]
    assert lost[0] == pytest.approx(sum(1.0 - (1.0 - error) ** t for t in range(1, num_steps + 1)), abs=1e-9)
    assert lost[1] == pytest.approx(error * num_steps, abs=1e-9)
    assert lost[0] <= error * num_steps * (num_steps + 1) / 2.0 + 1e-9


def test_road_ends_by_its_time_limit_alone() -> None:
    env = make_env("theory/Road-v0,max_episode_steps=3")
    env.reset(seed=0)
    assert [env.step(action)[1:4] for action in (STRAIGHT, TURN, STRAIGHT)] == [
        (1.0, False, False),
        (0.0, False, False),
        (0.0, False, True),
    ]
