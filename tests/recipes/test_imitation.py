from __future__ import annotations

import json
import shutil

import pytest
import torch

from recipes import imitation
from rlhf import optimize
from rlhf.control import dagger, evaluate
from rlhf.control.envs import make_env, spaces_of
from rlhf.control.policy import ControlPolicy, PolicyConfig
from rlhf.errors import InputError
from rlhf.runs import summary
from rlhf.runs.log import read_lines
from tests.recipes.small import files, run

PHASES = ["expert", "clone", "ppo", "ppo_kl", "dagger"]


def small_config(output_dir, **changes) -> imitation.Config:
    """One update of PPO in each of its phases, three of cloning and of DAgger."""
    return imitation.Config(
        **{
            "output_dir": output_dir,
            "expert_steps": 512,
            "demonstrations": 2,
            "clone_updates": 3,
            "rows_per_update": 8,
            "improve_steps": 512,
            "dagger": dagger.Dagger(num_envs=2, steps=8),
            "dagger_updates": 3,
            "dagger_optimize": optimize.Optimize(epochs=2, minibatches=2, whiten="none"),
            "evaluate": evaluate.EvaluateEpisodes(episodes=2, sampled_episodes=0),
            **changes,
        }
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        # Drawing takes longer than all the rest.
        patch.setattr(summary, "write_report", lambda folder: None)
        patch.setattr(summary, "print_summary", lambda folder: None)
        return folder, run(imitation.main, small_config(folder))


@pytest.fixture
def no_report(monkeypatch):
    monkeypatch.setattr(summary, "write_report", lambda folder: None)
    monkeypatch.setattr(summary, "print_summary", lambda folder: None)


def test_a_run_leaves_every_phase_and_the_headline(finished):
    folder, result = finished
    assert {path.parent.name for path in folder.glob("*/phase.json")} == set(PHASES)
    assert json.loads((folder / "result.json").read_text()) == result
    assert set(result) == {
        *("expert_return", "clone_return", "ppo_return", "ppo_kl_return", "dagger_return"),
        *("clone_labels", "dagger_labels", "kl_to_clone_ppo", "kl_to_clone_ppo_kl"),
    }
    assert result["dagger_labels"] == 3 * 2 * 8
    expert = read_lines(folder / "expert" / "metrics.jsonl")[-1]
    assert result["expert_return"] == expert["eval_return_mean"]


def test_ppo_starts_at_the_clone_and_is_charged_for_leaving_it(finished):
    folder, _ = finished
    clone = read_lines(folder / "clone" / "metrics.jsonl")[-1]
    for name in ("ppo", "ppo_kl"):
        rows = read_lines(folder / name / "metrics.jsonl")
        assert rows[0]["eval_return_mean"] == clone["eval_return_mean"]
        assert rows[1]["kl_ref_k1"] == 0.0
        assert rows[1]["kl_coef"] == (0.0 if name == "ppo" else 0.01)


def test_the_learners_do_not_start_at_the_expert_s_weights(finished):
    folder, _ = finished
    first = [read_lines(folder / name / "metrics.jsonl")[0]["eval_return_mean"] for name in ("clone", "dagger")]
    assert first[0] == first[1]
    policies = [ControlPolicy(spaces_of(make_env("CartPole-v1")), PolicyConfig(), seed=1) for _ in range(2)]
    for policy, name in zip(policies, ("expert", "clone"), strict=True):
        policy.load(folder / name / "checkpoints" / "00000000" / "policy")
    assert not torch.equal(policies[0].weight, policies[1].weight)


def test_a_run_that_was_cut_off_ends_as_if_nothing_had_happened(finished, no_report, tmp_path):
    """Its last phase falls back to checkpoint 0; the collector's own resume is tested with it."""
    whole, result = finished
    cut = tmp_path / "run"
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "dagger" / "final")
    for checkpoint in (cut / "dagger" / "checkpoints").iterdir():
        if checkpoint.name != "00000000":
            shutil.rmtree(checkpoint)
    assert run(imitation.main, small_config(cut, resume=True)) == result
    for name in PHASES:
        assert files(cut / name / "final") == files(whole / name / "final")


def test_an_expert_from_a_folder_needs_no_phase_of_its_own(finished, no_report, tmp_path):
    """The expert that the finished run trained: so all the rest is the same."""
    whole, result = finished
    folder = whole / "expert" / "final" / "policy"
    assert run(imitation.main, small_config(tmp_path / "run", expert=folder)) == result
    assert not (tmp_path / "run" / "expert").exists()


def test_an_expert_for_another_environment_is_refused(finished, tmp_path):
    folder = finished[0] / "expert" / "final" / "policy"
    config = small_config(tmp_path / "run", expert=folder, env_id="Acrobot-v1")
    with pytest.raises(InputError, match=r"observation_size=4.*Acrobot-v1 has.*observation_size=6"):
        run(imitation.main, config)


@pytest.mark.parametrize("changes", [{"demonstrations": 0}, {"dagger_updates": 0}, {"kl_coef": 0.0}])
def test_numbers_out_of_range_are_refused(changes, tmp_path):
    with pytest.raises(InputError, match=f"{next(iter(changes))} is 0"):
        small_config(tmp_path, **changes)
