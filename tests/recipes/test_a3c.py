from __future__ import annotations

import json

import pytest
import torch.multiprocessing as mp

from recipes import a3c
from rlhf.control import collect, evaluate
from rlhf.control.load import load_control_policy
from rlhf.runs import summary
from rlhf.runs.log import read_lines


def small_config(folder, **changes) -> a3c.Config:
    return a3c.Config(
        output_dir=folder,
        steps=400,
        eval_every_steps=100,
        collect=collect.CollectSteps(num_envs=2, steps=5),
        evaluate=evaluate.EvaluateEpisodes(episodes=3, sampled_episodes=0),
        **changes,
    )


@pytest.mark.slow
def test_two_processes_train_one_policy(tmp_path, monkeypatch):
    monkeypatch.setattr(summary, "write_report", lambda folder: None)
    folder = tmp_path / "run"
    result = a3c.main(small_config(folder))
    rows = read_lines(folder / "a3c" / "metrics.jsonl")
    steps = [row["steps"] for row in rows]
    assert steps[0] == 0
    assert 400 <= steps[-1] <= 420
    assert steps == sorted(steps)
    assert all("eval_return_mean" in row for row in rows)
    assert all("entropy" in row for row in rows[1:])
    assert json.loads((folder / "result.json").read_text()) == result
    load_control_policy(folder / "a3c" / "final" / "policy")


@pytest.mark.slow
def test_a_worker_that_fails_ends_the_run(tmp_path):
    with pytest.raises(mp.ProcessRaisedException, match="there is no environment CartPole-v7"):
        a3c.a3c.train(
            a3c.ControlPolicy(a3c.tried("CartPole-v1"), a3c.PolicyConfig(), seed=0),
            a3c.a3c.Job("CartPole-v7", 100, collect.CollectSteps(), a3c.a2c.A2C(), a3c.optimize.Optimize(epochs=1), 0),
            num_workers=2,
            eval_every_steps=10,
            log=print,
        )
