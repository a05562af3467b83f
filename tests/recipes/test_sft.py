from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

from recipes import custom_reward, sft
from rlhf import optimize
from rlhf.runs import summary
from rlhf.runs.log import read_lines
from tests.lm.words import EOS, WORDS
from tests.recipes.small import files, outcome, run, small_config

# Each word and what follows it: a text is told by its first word.
TEXTS = [{"text": " ".join((word, *"bcd"))} for word in "aefg"]


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Drawing takes longer than all the rest."""
    monkeypatch.setattr(summary, "write_report", lambda folder: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in TEXTS * 10))
    return path


def small(model, data, output_dir, **changes) -> sft.Config:
    """Six updates, measured and saved after each third."""
    given = {"held_out": 8, "rows_per_update": 16, "passes": 3.0, "evaluations": 3, **changes}
    return sft.Config(
        model=str(model), data=str(data), output_dir=output_dir,
        optimize=optimize.Optimize(learning_rate=1e-2, schedule="linear", epochs=1), **given,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(model, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary, "write_report", lambda folder: None)
        return folder, run(sft.main, small(model, data, folder))


def test_the_loss_falls_on_rows_never_trained_on(finished):
    folder, result = finished
    assert json.loads((folder / "result.json").read_text()) == result
    # Three passes over 32 rows, 16 a step.
    assert result["updates"] == 6
    rows = read_lines(folder / "clone" / "metrics.jsonl")
    assert [row["update"] for row in rows if "eval_loss" in row] == [0, 2, 4, 6]
    assert result["loss_after"] < 0.6 * result["loss_before"]


def test_the_loss_is_that_of_plain_transformers(model, data, finished):
    """Mean over tokens of -log p(token), the end included; all texts are as long, and the held-out ones among four."""
    final = finished[0] / "clone" / "final" / "policy" / "model"
    for source, told in ((model, finished[1]["loss_before"]), (final, finished[1]["loss_after"])):
        plain = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        losses = []
        for row in TEXTS:
            tokens = torch.tensor([[*(WORDS.index(word) for word in row["text"].split()), EOS]])
            with torch.no_grad():
                logits = plain(input_ids=tokens).logits.double()
            # Without a word before it, the first is not learned.
            losses.append(torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:]).item())
        assert min(losses) - 1e-5 <= told <= max(losses) + 1e-5


def test_a_resumed_run_ends_as_one_that_was_never_stopped(model, data, tmp_path):
    run(sft.main, small(model, data, tmp_path / "run"))
    again = small(model, data, tmp_path / "run", passes=4.0, resume=True)
    result = run(sft.main, again)
    assert result["updates"] == 8
    rows = read_lines(tmp_path / "run" / "clone" / "metrics.jsonl")
    assert [row["update"] for row in rows] == list(range(9))
    before = files(tmp_path / "run" / "clone")
    assert run(sft.main, again) == result
    assert files(tmp_path / "run" / "clone") == before


def test_the_result_is_a_model_to_go_on_from_with_a_reward(finished, tmp_path):
    final = finished[0] / "clone" / "final" / "policy"
    result = run(custom_reward.main, small_config(final, tmp_path / "run", updates=1))
    assert math.isfinite(result["score_after"])
    # It begins where cloning ended: the same weights answer at step 0.
    first = tmp_path / "run" / "ppo" / "checkpoints" / "00000000" / "policy" / "model" / "model.safetensors"
    assert first.read_bytes() == (final / "model" / "model.safetensors").read_bytes()


def test_adapters_alone_are_trained(model, data, tmp_path):
    before = files(model)
    result = run(sft.main, small(model, data, tmp_path / "run", lora=True))
    assert result["loss_after"] < result["loss_before"]
    final = tmp_path / "run" / "clone" / "final" / "policy" / "model"
    assert (final / "adapter_model.safetensors").exists()
    assert not (final / "model.safetensors").exists()
    adapted = AutoPeftModelForCausalLM.from_pretrained(final)
    assert any(weight.abs().sum() > 0 for name, weight in adapted.named_parameters() if "lora_B" in name)
    assert files(model) == before


BAD = {
    "no such file": ("nowhere.jsonl", (), "there is no data file"),
    "no such column": ("columns.jsonl", (), "columns.jsonl has columns txt, which fit 0 of the formats"),
    "an empty text": ("empty.jsonl", (), "empty.jsonl: row 1"),
    "too long": ("long.jsonl", (), "long.jsonl: row 1"),
    "too few": ("few.jsonl", (), "rows_per_update is 16 and there are 4 demonstrations"),
    "passes": ("texts.jsonl", ("--passes", "0"), "passes is 0.0; it must be positive."),
    "held out": ("texts.jsonl", ("--held-out", "0"), "held_out is 0; it must be at least 1."),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_are_refused_before_there_is_a_run(case, data, model_without_weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    texts = {
        "columns.jsonl": [{"txt": "a b"}] * 40,
        "empty.jsonl": [{"text": "a b"}, {"text": ""}] * 20,
        "long.jsonl": [{"text": "a b"}, {"text": "a " * 70}] * 20,
        "few.jsonl": [{"text": "a b"}] * 20,
    }
    for name, rows in texts.items():
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("texts.jsonl").write_bytes(data.read_bytes())
    file, options, message = BAD[case]
    given = ("--model", str(model_without_weights), "--data", file, "--output-dir", "run", *options)
    assert outcome(monkeypatch, sft, *given) == 2
    errors = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert message in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "run").exists()
