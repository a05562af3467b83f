"""The methods with a replay buffer through the recipe: a run that dies goes on, buffer included, bit for bit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from recipes import cartpole
from rlhf.control import collect, evaluate, replay
from rlhf.errors import InputError
from rlhf.runs import summary
from rlhf.runs.log import read_lines
from tests.recipes.small import files, run

PROBLEMS = [("sac", "Pendulum-v1"), ("discrete_sac", "CartPole-v1"), ("replay_actor_critic", "CartPole-v1")]


def small_config(method: str, env_id: str, output_dir: Path, **changes) -> cartpole.Config:
    """Updates of 32 steps, saved after every other; the ring wraps after 160."""
    preset = cartpole.default_config(method, env_id)
    changes = {
        "steps": 280,
        "eval_every_steps": 10_000,
        "checkpoint_every_steps": 64,
        "collect": collect.CollectSteps(num_envs=2, steps=16),
        "replay": replay.Replay(capacity=160, random_steps=48),
        "policy": dataclasses.replace(preset.policy, hidden_sizes=(8, 8)),
        "method": dataclasses.replace(preset.method, batch_size=8),
        "optimize": dataclasses.replace(preset.optimize, minibatches=4),
        "evaluate": evaluate.EvaluateEpisodes(episodes=1, sampled_episodes=0),
    } | changes
    return dataclasses.replace(preset, output_dir=output_dir, **changes)


class Died(Exception):
    pass


@pytest.mark.parametrize(("method", "env_id"), PROBLEMS)
def test_a_replay_method_resumes_exactly(method: str, env_id: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(summary, "write_report", lambda folder: None)
    run(cartpole.main, small_config(method, env_id, tmp_path / "whole"))
    collect_more = replay.ReplayCollector.collect

    def dies(self, policy, update):
        if update == 6:
            raise Died
        return collect_more(self, policy, update)

    with monkeypatch.context() as patch:
        patch.setattr(replay.ReplayCollector, "collect", dies)
        with pytest.raises(Died):
            run(cartpole.main, small_config(method, env_id, tmp_path / "died"))
    assert not (tmp_path / "died" / method / "final").exists()
    run(cartpole.main, small_config(method, env_id, tmp_path / "died", resume=True))
    whole, died = (files(tmp_path / name / method) for name in ("whole", "died"))
    # The clock's numbers and the configuration's `resume` differ.
    same = {name for name in whole if name.endswith((".safetensors", "state.json")) or name == "samples.jsonl"}
    assert any("state.safetensors" in name for name in same)
    assert {name for name in same if whole[name] != died.get(name)} == set()
    assert whole.keys() == died.keys()


def test_steps_are_those_of_the_environments(tmp_path: Path, monkeypatch) -> None:
    """48 even steps and 32 by the policy, then 32 an update: not the rows that were replayed."""
    monkeypatch.setattr(summary, "write_report", lambda folder: None)
    run(cartpole.main, small_config("discrete_sac", "CartPole-v1", tmp_path / "run", steps=140))
    rows = read_lines(tmp_path / "run" / "discrete_sac" / "metrics.jsonl")
    assert [row["steps"] for row in rows] == [0, 80, 112, 144]
    assert rows[-1]["replay_size"] == 144
    assert rows[-1]["gradient_steps"] == 4
    assert json.loads((tmp_path / "run" / "config.json").read_text())["replay"]["capacity"] == 160


@pytest.mark.parametrize(("method", "env_id"), [("sac", "CartPole-v1"), ("discrete_sac", "Pendulum-v1")])
def test_the_wrong_kind_of_actions_is_refused(method: str, env_id: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="choose"):
        run(cartpole.main, small_config(method, env_id, tmp_path / "run"))
