"""The walking robots of MuJoCo with the settings that are theirs: each method acts, learns and goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from recipes import cartpole
from rlhf.control import evaluate
from rlhf.control.envs import make_env, spaces_of
from rlhf.control.replay import Replay
from rlhf.runs import summary
from rlhf.runs.log import read_lines
from tests.recipes.small import run

# Numbers observed, and joints moved, as gymnasium's documentation of version 5 says.
ROBOTS = {"HalfCheetah-v5": (17, 6), "Hopper-v5": (11, 3), "Walker2d-v5": (17, 6)}


@pytest.mark.parametrize("env_id", ROBOTS)
def test_robots_have_the_spaces_of_version_5(env_id: str) -> None:
    spaces = spaces_of(make_env(env_id))
    assert (spaces.observation_size, spaces.action_size, spaces.num_actions) == (*ROBOTS[env_id], 0)
    assert set(spaces.action_low) == {-1.0}
    assert set(spaces.action_high) == {1.0}


@pytest.mark.parametrize("env_id", ROBOTS)
@pytest.mark.parametrize("method", ["ppo", "trpo", "a2c", "sac"])
def test_robots_are_trained_by_every_method_that_moves_vectors(
    method: str, env_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two updates of the preset, with shorter fragments."""
    monkeypatch.setattr(summary, "write_report", lambda folder: None)
    preset = cartpole.default_config(method, env_id)
    config = replace(
        preset,
        output_dir=tmp_path / "run",
        collect=replace(preset.collect, steps=16),
        replay=Replay(random_steps=preset.collect.num_envs * 4),
        optimize=replace(preset.optimize, minibatches=min(preset.optimize.minibatches, 2)),
        steps=2 * 16 * preset.collect.num_envs,
        evaluate=evaluate.EvaluateEpisodes(episodes=1, sampled_episodes=0),
    )
    run(cartpole.main, config)
    rows = read_lines(tmp_path / "run" / method / "metrics.jsonl")
    assert [row["update"] for row in rows] == [0, 1, 2]
    assert all(row["gradient_norm"] > 0.0 for row in rows[1:])
    assert rows[-1]["eval_return_mean"] != rows[0]["eval_return_mean"]
