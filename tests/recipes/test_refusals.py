"""What a recipe's own command line refuses: one message, status 2, and no folder, which the mended command can have."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from recipes.settings.language import ImproveConfig
from rlhf.algorithms import q_actor_critic, replay_actor_critic, sac, td_lambda
from rlhf.errors import InputError

RECIPES = Path(__file__).parent.parent.parent / "recipes"
CASES = {
    "cartpole": [
        ("--policy.critic action", "returns less what the taken action is worth teach ppo nothing; choose 'state'"),
        ("--num-seeds 2 --policy.critic action", "teach ppo nothing; choose 'state'"),
        ("--method q_actor_critic --policy.critic state", "q_actor_critic cannot tell actions apart"),
        ("--method reinforce --collect.episodes 0", "learns from whole episodes"),
        (
            "--method reinforce --method.baseline mean",
            "optimize.whiten is minibatch, but reinforce needs none; set it so",
        ),
        ("--method grpo --collect.episodes-per-start 1", "grpo compares rows that share a start"),
        ("--method clone", "clone learns from demonstrations"),
        ("--method trpo --optimize.target-kl 0.1", "no update of trpo can end early by it"),
        ("--method discrete_sac --optimize.target-kl 0.1", "no update of discrete_sac can end early by it"),
        ("--method discrete_sac --optimize.whiten batch", "whiten is batch, but discrete_sac needs none"),
        ("--method trpo --method.fisher-shares 9999", "a rollout has 1024 rows, which make no 9999 parts"),
        ("--optimize.minibatches 9999", "a rollout has 512 rows, which make no 9999 parts"),
        ("--num-seeds 2 --optimize.minibatches 9999", "a rollout has 512 rows, which make no 9999 parts"),
        ("--num-seeds 2 --collect.normalise-rewards", "normalise_rewards is not offered for several seeds at once"),
        ("--num-seeds 2 --policy.normalise-observations", "normalise_observations is not offered for several seeds"),
        ("--env-id Cart&Pole", "environment Cart&Pole cannot be made"),
        ("--output-dir notes.txt/run", "--output-dir notes.txt/run cannot be made: Not a directory"),
    ],
    "arithmetic": [
        ("--method clone", "clone learns from demonstrations"),
        ("--method pppo", "there is no method pppo; choose one of a2c, "),
        ("--method pppo", "Did you mean ppo?"),
        ("--method sac", "sac is no method for language models"),
        ("--method grpo --improve.collect.responses-per-prompt 1", "grpo compares rows that share a start"),
        ("--method reinforce --improve.method.baseline value", "critic is none, but reinforce with these settings"),
        ("--method reinforce --improve.method.baseline least_variance", "a pass for every token"),
        ("--method a2c --critic none --improve.method.critic.epochs 3", "critic is none, but a2c with these"),
        ("--improve.collect.prompts-per-rollout 9999", "there are 9000 prompts, fewer than prompts_per_rollout"),
        ("--held-out 0", "held_out is 0; it must be at least 1"),
        ("--held-out 10000", "10000 rows cannot be held out of 10000"),
        ("--dropped-carries 3", "dropped_carries is 3.0; it must lie in [0, 1]"),
    ],
    "imitation": [
        ("--expert nowhere", "nowhere"),
        ("--rows-per-update 0", "rows_per_update is 0; it must be at least 1"),
    ],
    "a3c": [
        ("--num-workers 0", "num_workers is 0; it must be at least 1"),
        ("--eval-every-steps 0", "eval_every_steps is 0; it must be at least 1"),
        ("--collect.episodes 4", "workers act in fragments"),
        ("--policy.critic action", "A3C needs the values of states"),
    ],
}


@pytest.mark.parametrize(("recipe", "options", "message"), [(name, *case) for name in CASES for case in CASES[name]])
def test_is_refused_at_the_door(recipe, options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("mine")
    where = [] if "--output-dir" in options else ["--output-dir", "run"]
    monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *options.split(), *where])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(RECIPES / f"{recipe}.py"), run_name="__main__")
    # What the parser refuses it puts into a box.
    errors = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert ended.value.code == 2, errors
    assert message in errors
    assert "Traceback" not in errors
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["notes.txt"]


@pytest.mark.parametrize(
    "method", [td_lambda.TDLambda, q_actor_critic.QActorCritic, replay_actor_critic.ReplayActorCritic, sac.SAC]
)
def test_methods_for_control_are_refused_for_a_language_model(method):
    with pytest.raises(InputError, match=rf"^{method.name} .* it is for control\. Choose another method"):
        ImproveConfig(method=method())
