"""What recipes are told of the model: a .gguf file, an adapter of some size, the precision of the reference."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftConfig

from recipes import arithmetic, custom_reward, sft
from rlhf.lm import load
from rlhf.lm.four_bits import hold_in_four_bits
from rlhf.lm.tokenizers import character_tokenizer
from rlhf.runs import summary
from rlhf.runs.log import read_lines
from tests.lm import gguf_files
from tests.recipes.small import ARGUMENTS, REWARDS, outcome, run, small_config

TARGETS = ("--lora-rank", "2", "--lora-alpha", "8", "--lora-targets", "q_proj", "v_proj")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(summary, "write_report", lambda folder: None)
    Path("texts.jsonl").write_text("".join(json.dumps({"text": f"the sea {word}"}) + "\n" for word in "abcdefghij"))
    return tmp_path


def command(recipe: object, model: str) -> tuple[str, ...]:
    if recipe is sft:
        small = ("--held-out", "2", "--rows-per-update", "4", "--passes", "1", "--evaluations", "1")
        return ("--model", model, "--data", "texts.jsonl", "--output-dir", "run", *small)
    return ("--model", model, "--reward", f"{REWARDS}:count_a", "--output-dir", "run", *ARGUMENTS)


@pytest.mark.parametrize("recipe", [custom_reward, sft])
def test_a_gguf_file_is_trained_by_an_adapter_of_the_size_that_is_asked_for(recipe, here, monkeypatch, capsys):
    gguf_files.write_gguf(here / "tiny.gguf")
    given = (*command(recipe, "tiny.gguf"), *TARGETS)
    assert outcome(monkeypatch, recipe, *given) == 0
    (saved,) = Path("run").glob("*/final/policy/model")
    config = PeftConfig.from_pretrained(saved)
    assert (config.r, config.lora_alpha, set(config.target_modules)) == (2, 8, {"q_proj", "v_proj"})
    # With peft alone, from anywhere.
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    AutoPeftModelForCausalLM.from_pretrained(here / saved)
    monkeypatch.chdir(here)
    gguf_files.write_gguf(here / "tiny.gguf", kind=gguf_files.Type.F16)
    capsys.readouterr()
    assert outcome(monkeypatch, recipe, *given, "--resume") == 2
    assert "  model: tiny.gguf: " in capsys.readouterr().err


@pytest.mark.parametrize("recipe", [custom_reward, sft])
def test_what_an_adapter_leaves_frozen_is_held_in_four_bits_where_asked_for(recipe, here, model, monkeypatch, capsys):
    given = (*command(recipe, str(model)), "--quantize", "nf4")
    # Without an adapter everything would have to learn.
    assert outcome(monkeypatch, recipe, *given) == 2
    assert "quantize is given and no adapter" in capsys.readouterr().err
    assert not Path("run").exists()
    held = []
    monkeypatch.setattr(load, "hold_in_four_bits", lambda base: held.append(base) or hold_in_four_bits(base))
    assert outcome(monkeypatch, recipe, *given, "--lora") == 0
    assert len(held) == 1
    (saved,) = Path("run").glob("*/final/policy/model")
    # Beside the whole model, as any adapter.
    adapted = AutoPeftModelForCausalLM.from_pretrained(saved)
    assert any(bool(weight.any()) for name, weight in adapted.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize("recipe", [custom_reward, sft])
def test_a_broken_gguf_file_is_refused_before_there_is_a_run(recipe, here, monkeypatch, capsys):
    (here / "cut.gguf").write_bytes(b"GGUF\x03\x00")
    assert outcome(monkeypatch, recipe, *command(recipe, "cut.gguf")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cut.gguf is no whole .gguf file" in line
    assert not Path("run").exists()


@pytest.mark.parametrize("recipe", [custom_reward, sft])
@pytest.mark.parametrize("options", [TARGETS[2:4], TARGETS[4:]])
def test_options_of_an_adapter_that_nobody_asked_for_are_refused(recipe, options, here, monkeypatch, capsys):
    assert outcome(monkeypatch, recipe, *command(recipe, "m"), *options) == 2
    assert f"{options[0][2:].replace('-', '_')} is given and no adapter asked for" in capsys.readouterr().err


def test_the_reference_is_held_in_the_precision_that_is_asked_for(model, here):
    """Once the policy has moved, a rounded reference is another: the same weights are another KL away from it."""
    moved = {}
    for dtype in ("float32", "bfloat16"):
        config = small_config(model, here / dtype, updates=1)
        config = replace(config, improve=replace(config.improve, reference_dtype=dtype))
        run(custom_reward.main, config)
        moved[dtype] = read_lines(here / dtype / "ppo" / "metrics.jsonl")[-1]["eval_kl_ref_per_episode"]
    assert abs(moved["bfloat16"] - moved["float32"]) > 1e-5


def test_models_made_on_the_spot_have_such_a_reference_too():
    config = arithmetic.default_config()
    for dtype, held in (("float32", None), ("bfloat16", torch.bfloat16)):
        changed = replace(config, improve=replace(config.improve, reference_dtype=dtype))
        assert arithmetic.new_policy(changed, character_tokenizer("0123456789+=")).reference_dtype is held
