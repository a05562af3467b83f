from __future__ import annotations

import json
from dataclasses import replace

import pytest

from recipes import cartpole
from recipes.settings.control import preset
from rlhf import optimize
from rlhf.algorithms import grpo, reinforce_pp, rloo
from rlhf.control import collect, evaluate
from rlhf.control.envs import make_env, spaces_of
from rlhf.control.policy import ControlPolicy, PolicyConfig
from rlhf.errors import InputError
from rlhf.runs import summary
from rlhf.runs.log import read_lines
from tests.recipes.small import OWN_METHOD, files, outcome, run


def small_config(output_dir, *, updates: int = 2, **changes) -> cartpole.Config:
    """Updates of 64 steps, evaluated and saved after each."""
    return cartpole.Config(
        output_dir=output_dir,
        steps=64 * updates,
        eval_every_steps=64,
        checkpoint_every_steps=64,
        collect=collect.CollectSteps(num_envs=4, steps=16),
        optimize=optimize.Optimize(epochs=2, minibatches=2),
        evaluate=evaluate.EvaluateEpisodes(episodes=4, sampled_episodes=2),
        **changes,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, run(cartpole.main, small_config(folder))


@pytest.fixture
def no_report(monkeypatch):
    """Drawing takes longer than all the rest."""
    monkeypatch.setattr(summary, "write_report", lambda folder: None)


def test_a_run_leaves_everything_behind(finished):
    folder, result = finished
    assert list(result) == [
        *("eval_return_mean", "eval_episodes", "first_hit_step", "stays_from_step"),
        *("share_of_evaluations_solved", "best_eval_return_mean", "env_steps_per_second"),
    ]
    assert json.loads((folder / "result.json").read_text()) == result
    assert {".lock", "config.json", "versions.json", "report.html", "result.json", "ppo"} == {
        p.name for p in folder.iterdir()
    }
    rows = read_lines(folder / "ppo" / "metrics.jsonl")
    assert [row["steps"] for row in rows] == [0, 64, 128]
    assert all("eval_return_mean" in row for row in rows)
    assert result["eval_return_mean"] == rows[-1]["eval_return_mean"]
    assert {sample["kind"] for sample in read_lines(folder / "ppo" / "samples.jsonl")} == {"evaluation", "training"}
    curves = {path.name for path in (folder / "ppo" / "curves").iterdir()}
    assert {"evaluation.png", "return-and-score.png", "entropy.png", "losses.png"} <= curves


def test_the_final_policy_loads(finished):
    folder, _ = finished
    spaces = spaces_of(make_env("CartPole-v1"))
    policy, untrained = (ControlPolicy(spaces, PolicyConfig(), seed=0) for _ in range(2))
    policy.load(folder / "ppo" / "final" / "policy")
    moved = [not a.equal(b) for a, b in zip(policy.parameters(), untrained.parameters(), strict=True)]
    assert all(moved)


def test_resuming_a_finished_run_trains_nothing_and_reports_the_same(finished, no_report):
    folder, result = finished
    before = files(folder)
    assert run(cartpole.main, small_config(folder, resume=True)) == result
    after = files(folder)
    assert {name for name in before if after[name] != before[name]} == {"config.json"}


def test_a_finished_run_can_be_extended(tmp_path, no_report):
    run(cartpole.main, small_config(tmp_path / "run", updates=1))
    run(cartpole.main, small_config(tmp_path / "run", updates=3, resume=True))
    rows = read_lines(tmp_path / "run" / "ppo" / "metrics.jsonl")
    assert [row["steps"] for row in rows] == [0, 64, 128, 192]


def test_a_run_on_whole_episodes_ends_with_the_rollout_that_reaches_its_steps(tmp_path, no_report):
    episodes = collect.CollectSteps(episodes=4, episodes_per_start=2)
    config = replace(small_config(tmp_path / "run", updates=3), collect=episodes)
    run(cartpole.main, config)
    rows = read_lines(tmp_path / "run" / "ppo" / "metrics.jsonl")
    assert rows[-2]["steps"] < 192 <= rows[-1]["steps"] == rows[-1]["env_steps"]
    assert all(row["episodes"] == 4 for row in rows[1:])
    run(cartpole.main, replace(config, steps=400, resume=True))
    rows = read_lines(tmp_path / "run" / "ppo" / "metrics.jsonl")
    assert rows[-2]["steps"] < 400 <= rows[-1]["steps"]


@pytest.mark.parametrize(
    ("method", "steps"),
    [(grpo.GRPO(), 2), (rloo.RLOO(), 1), (reinforce_pp.ReinforcePP(), 2)],
    ids=["grpo", "rloo", "reinforce_pp"],
)
def test_a_run_on_whole_episodes_goes_on_bitwise(method, steps, tmp_path, no_report):
    config = replace(
        small_config(tmp_path / "whole"),
        method=method,
        collect=collect.CollectSteps(episodes=4, episodes_per_start=2, normalise_rewards=True),
        optimize=optimize.Optimize(learning_rate=0.01, epochs=steps, minibatches=steps, whiten=method.whitens[-1]),
        evaluate=evaluate.EvaluateEpisodes(episodes=1, sampled_episodes=0),
        steps=250,
    )
    run(cartpole.main, config)
    run(cartpole.main, replace(config, output_dir=tmp_path / "parts", steps=120))
    part = files(tmp_path / "parts" / method.name / "final" / "policy")
    run(cartpole.main, replace(config, output_dir=tmp_path / "parts", resume=True))
    whole, parts = (files(tmp_path / name / method.name / "final" / "policy") for name in ("whole", "parts"))
    assert whole == parts != part


def test_seeds_side_by_side_report_each_of_them(tmp_path):
    result = run(cartpole.main, small_config(tmp_path / "run", num_seeds=3, seed=7))
    assert {"eval_return_iqm", "eval_return_iqm_low", "eval_return_iqm_high"} <= set(result)
    rows = read_lines(tmp_path / "run" / "ppo" / "metrics.jsonl")
    for i in range(3):
        alone = run(cartpole.main, small_config(tmp_path / f"alone{i}", seed=7 + i))
        assert rows[-1][f"eval_return_mean/{i}"] == alone["eval_return_mean"]
        assert result[f"first_hit_step/{i}"] is None
    assert [row["steps"] for row in rows] == [0, 3 * 64, 3 * 128]
    assert (tmp_path / "run" / "ppo" / "final" / "policy" / "2" / "policy.safetensors").exists()


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("grpo", "more than fragments"),
        ("rloo", "more than fragments"),
        ("impala", "more than fragments"),
        ("discrete_sac", "takes steps of its own kind"),
        ("trpo", "takes steps of its own kind"),
        ("off_policy", "sample size is made of estimates"),
    ],
)
def test_methods_that_cannot_share_an_update_refuse_several_seeds(method, why, tmp_path):
    default = cartpole.default_config(method, "CartPole-v1")
    if method == "off_policy":
        default = replace(default, collect=replace(default.collect, lag=0))
    with pytest.raises(InputError, match=f"{why}.* run its seeds one at a time"):
        run(cartpole.main, replace(default, num_seeds=2, output_dir=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "Acrobot-v1"])
def test_settings_of_other_environments_train(env_id, tmp_path, no_report):
    settings = preset("ppo", env_id)
    config = small_config(tmp_path / "run", updates=1, env_id=env_id, policy=settings.policy, method=settings.method)
    result = run(cartpole.main, config)
    assert result["eval_return_mean"] < 0
    assert result["first_hit_step"] is None


# One update of 64 steps.
ARGUMENTS = (
    *("--steps", "64", "--collect.num-envs", "4", "--collect.steps", "16", "--optimize.epochs", "2"),
    *("--evaluate.episodes", "2"),
)


def test_a_method_of_ones_own_is_given_by_file_and_class(tmp_path, no_report, monkeypatch):
    file = tmp_path / "my_file.py"
    file.write_text(OWN_METHOD)
    options = (*ARGUMENTS, "--method", f"{file}:MyMethod", "--method.strength", "0.5", "--collect.normalise-rewards")
    assert outcome(monkeypatch, cartpole, *options, "--output-dir", str(tmp_path / "run")) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["method"] == {"strength": 0.5}
    rows = read_lines(tmp_path / "run" / "my_method" / "metrics.jsonl")
    assert [row["steps"] for row in rows] == [0, 64]
    assert rows[1]["strength"] == 0.5
    assert rows[1]["gradient_norm"] > 0.0
