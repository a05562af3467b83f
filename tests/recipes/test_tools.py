"""tools.py: what it makes of a few updates, what it resumes to, and that a chat model's way of calling is taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recipes import tools
from recipes.settings.language import CloneConfig
from rlhf import optimize
from rlhf.lm.environments import Tools
from rlhf.runs import summary
from rlhf.runs.log import read_lines
from rlhf.training import Duration
from tests.recipes.small import improve_config, run


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all the rest."""
    monkeypatch.setattr(summary, "write_report", lambda folder: None)


def small(folder: Path, **changes: Any) -> tools.Config:
    clone = CloneConfig(
        rows_per_update=16,
        train=Duration(updates=3, eval_every=0, checkpoint_every=3),
        optimize=optimize.Optimize(learning_rate=2e-3, epochs=1, whiten="none"),
    )
    given = {"products": 40, "held_out": 8, "clone": clone, "improve": improve_config(), **changes}
    return tools.Config(output_dir=folder, **given)


def test_the_recipe_clones_and_then_converses(tmp_path: Path) -> None:
    result = run(tools.main, small(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    assert {"right_before", "right_after", "asked_before", "asked_after", "greedily_right_after"} <= set(result)
    rows = read_lines(tmp_path / "run" / "ppo" / "metrics.jsonl")
    assert rows[1]["ratio_error_max"] < 1e-4
    shown = read_lines(tmp_path / "run" / "ppo" / "samples.jsonl")
    assert all(sample["messages"][0]["role"] == "assistant" for sample in shown)


def test_a_resumed_run_ends_as_one_that_was_never_stopped(tmp_path: Path) -> None:
    whole = run(tools.main, small(tmp_path / "whole", improve=improve_config(updates=3)))
    run(tools.main, small(tmp_path / "parts"))
    parts = run(tools.main, small(tmp_path / "parts", improve=improve_config(updates=3), resume=True))
    assert {**whole, "seconds": 0.0} == {**parts, "seconds": 0.0}


def test_the_teacher_asks_now_and_then_and_is_right_when_it_does() -> None:
    config = tools.Config()
    rows = tools.products(config)[:1000]
    shown = [row["messages"] for row in tools.demonstrations(rows, config)]
    asked = [messages for messages in shown if len(messages) == 4]
    assert 150 < len(asked) < 250
    for messages, row in zip(shown, rows, strict=True):
        assert row["answer"] == str(row["a"] * row["b"])
        if len(messages) == 4:
            told = Tools([tools.multiply]).step({"role": "assistant", **tools.calls(messages[1]["content"])})
            assert [m["content"] for m in told.messages] == [messages[2]["content"]] == [row["answer"]]
            assert messages[3]["content"] == row["answer"]
        else:
            assert len(messages[1]["content"]) == len(row["answer"])
    guesses = [messages[1]["content"] == row["answer"] for messages, row in zip(shown, rows, strict=True)]
    assert sum(guesses) < 5


def test_a_call_that_is_none_is_told_so() -> None:
    for text in ("?12", "?1*2*3", "?*"):
        step = Tools([tools.multiply]).step({"role": "assistant", **tools.calls(text)})
        assert "error" in step.messages[0]["content"]
        assert step.tool_errors == 1


@pytest.mark.parametrize(
    ("text", "worth"), [("408", 1.0), ("It is 4,08", 1.0), ("12 times 34 is 408.", 1.0), ("408 or 409", 0.0), ("", 0.0)]
)
def test_the_last_number_counts(text: str, worth: float) -> None:
    assert tools.right([text], ["408"]) == [worth]
