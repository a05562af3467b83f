from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from recipes import arithmetic
from recipes.settings.arithmetic import PRESETS
from recipes.settings.language import CloneConfig, ImproveConfig, Precision
from rlhf import optimize
from rlhf.errors import InputError
from rlhf.lm import collect
from rlhf.runs import summary
from rlhf.runs.log import read_lines
from rlhf.training import Duration
from tests.recipes.small import files, run


@pytest.fixture(scope="module", autouse=True)
def one_digit():
    """100 sums instead of 10,000, whose tokens take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, "DIGITS", 1)
        yield


def small_config(output_dir, *, updates: int = 1, **changes) -> arithmetic.Config:
    return arithmetic.Config(
        output_dir=output_dir,
        held_out=10,
        clone=CloneConfig(
            rows_per_update=16,
            train=Duration(updates=2, eval_every=0, checkpoint_every=0),
            optimize=optimize.Optimize(epochs=1, whiten="none"),
        ),
        improve=ImproveConfig(
            collect=collect.CollectResponses(prompts_per_rollout=16),
            train=Duration(updates=updates, eval_every=1, checkpoint_every=1),
            optimize=optimize.Optimize(epochs=2),
        ),
        **changes,
    )


@pytest.fixture(scope="module")
def finished(one_digit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, run(arithmetic.main, small_config(folder))


@pytest.fixture
def no_report(monkeypatch):
    """Drawing takes longer than all the rest."""
    monkeypatch.setattr(summary, "write_report", lambda folder: None)


def test_a_run_leaves_everything_behind(finished):
    folder, result = finished
    matches = ("exact_match_before", "exact_match_after", "greedy_match_before", "greedy_match_after")
    assert tuple(result) == (*matches, "tokens", "seconds")
    assert json.loads((folder / "result.json").read_text()) == result
    assert {path.name for path in folder.iterdir()} == {
        *(".lock", "config.json", "versions.json", "report.html", "result.json", "clone", "ppo")
    }
    assert [row["update"] for row in read_lines(folder / "clone" / "metrics.jsonl")] == [0, 1, 2]
    assert [row["update"] for row in read_lines(folder / "ppo" / "metrics.jsonl")] == [0, 1]
    for phase in ("clone", "ppo"):
        assert read_lines(folder / phase / "samples.jsonl")
        assert list((folder / phase / "curves").glob("*.png"))
        assert (folder / phase / "final" / "finished.json").exists()


def test_ppo_starts_where_cloning_ended(finished):
    folder, _ = finished
    cloned = read_lines(folder / "clone" / "metrics.jsonl")[-1]
    start = read_lines(folder / "ppo" / "metrics.jsonl")[0]
    assert {name: value for name, value in cloned.items() if name.startswith("eval_")} == {
        name: value for name, value in start.items() if name.startswith("eval_")
    }


def test_the_final_models_load_with_plain_transformers(finished):
    folder, _ = finished
    for phase in ("clone", "ppo"):
        model = AutoModelForCausalLM.from_pretrained(folder / phase / "final" / "policy" / "model")
        assert model.dtype == torch.float32
        assert model.lm_head.weight.shape == (13, 128)


def test_resuming_a_finished_run_trains_nothing(finished, no_report):
    folder, result = finished
    before = files(folder)
    again = run(arithmetic.main, small_config(folder, resume=True))
    assert again == result
    after = files(folder)
    assert {name for name in before if after[name] != before[name]} <= {"config.json", "result.json"}


def test_a_finished_run_can_be_extended_in_its_second_phase(tmp_path, no_report):
    run(arithmetic.main, small_config(tmp_path / "run"))
    cloned = files(tmp_path / "run" / "clone")
    run(arithmetic.main, small_config(tmp_path / "run", updates=2, resume=True))
    assert [row["update"] for row in read_lines(tmp_path / "run" / "ppo" / "metrics.jsonl")] == [0, 1, 2]
    assert files(tmp_path / "run" / "clone") == cloned


def length(completions, **_):
    return [float(len(completion)) for completion in completions]


@pytest.mark.parametrize("method", [name for name in PRESETS if name != "ppo"])
def test_every_method_moves_the_cloned_model(method, tmp_path, no_report, monkeypatch):
    # A model that was hardly cloned is never right, and equal scores teach nothing.
    monkeypatch.setattr(arithmetic, "exact_match", length)
    config = arithmetic.default_config(method)
    num_prompts = 16 // config.improve.collect.responses_per_prompt
    improve = replace(
        config.improve,
        collect=replace(config.improve.collect, prompts_per_rollout=num_prompts),
        train=Duration(updates=4, eval_every=0, checkpoint_every=0),
    )
    small = small_config(tmp_path / "run")
    result = run(
        arithmetic.main,
        replace(small, critic=config.critic, improve=improve),
    )
    assert 16 * 4 <= result["tokens"] <= 16 * 4 * 4
    rows = read_lines(tmp_path / "run" / method / "metrics.jsonl")
    assert [row["update"] for row in rows] == [0, 1, 2, 3, 4]
    before, after = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "run" / phase / "final" / "policy" / "model").state_dict()
        for phase in ("clone", method)
    )
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_method_that_needs_transitions_is_refused():
    with pytest.raises(InputError, match="sac is no method for language models"):
        arithmetic.default_config("sac")


def test_half_precision_with_gradient_checkpointing(tmp_path, no_report):
    precision = Precision(mixed_precision="bf16", gradient_checkpointing=True)
    run(arithmetic.main, small_config(tmp_path / "run", precision=precision))
    weights = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "ppo" / "final" / "policy" / "model")
    assert weights.dtype == torch.float32


def test_the_teacher_forgets_carries_and_nothing_else():
    sums = {row["prompt"]: row["answer"] for row in arithmetic.problems()}
    assert sums["7+5="] == "21"
    wrong = {prompt: arithmetic.without_carries(prompt) for prompt in sums}
    assert wrong["7+5="] == "2"
    assert wrong["5+5="] == "0"
    # a + b stays below 10 for 10 + 9 + ... + 1 of the 100 pairs.
    assert sum(wrong[prompt] == answer for prompt, answer in sums.items()) == 55
