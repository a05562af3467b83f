"""The recipe that tells beforehand what a run takes, by its command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes import plan as recipe
from tests.recipes.small import outcome, save_model

SMALL = ("--prompt-tokens", "4", "--max-new-tokens", "4", "--improve.collect.prompts-per-rollout", "8")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    save_model(tmp_path_factory.mktemp("model") / "tiny")
    return str(tmp_path_factory.getbasetemp().glob("model*/tiny").__next__())


@pytest.mark.parametrize("options", [(), ("--lora",), ("--method", "grpo", "--precision.mixed-precision", "bf16")])
def test_it_prints_every_part_and_phase(
    model: str, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(monkeypatch, recipe, "--model", model, *SMALL, *options) == 0
    said = capsys.readouterr().out
    for name in ("weights", "reference", "optimizer", "gradients", "collecting", "responding", "learning", "peak"):
        assert name in said


def test_what_does_not_fit_ends_with_status_2_and_the_settings_to_change(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(monkeypatch, recipe, "--model", model, *SMALL, "--memory-gib", "0.01") == 2
    said = capsys.readouterr()
    assert "peak" in said.out
    assert "would hold" in said.err
    assert "What saves memory: " in said.err


def test_a_model_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert outcome(monkeypatch, recipe, "--model", str(tmp_path / "nowhere")) == 2
