"""The end of a run on the console."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from rlhf.runs.summary import print_summary


def test_summary_shows_samples_before_and_after_and_the_headline(tmp_path: Path) -> None:
    phase = tmp_path / "ppo"
    phase.mkdir()
    (phase / "phase.json").write_text('{"order": 1}')
    lines = [
        {"update": 0, "kind": "evaluation", "question": "1+1=", "answer": "3", "score": 0.0},
        {"update": 1, "kind": "training", "question": "2+2=", "answer": "never shown", "score": 0.0},
        {"update": 2, "kind": "evaluation", "question": "1+1=", "answer": "2", "score": 1.0},
    ]
    (phase / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "result.json").write_text('{"score_after": 0.98765, "hit": null}')
    console = Console(file=io.StringIO(), width=120)
    print_summary(tmp_path, console)
    shown = console.file.getvalue()
    assert "before (update 0)" in shown
    assert "after (update 2)" in shown
    row = next(line for line in shown.splitlines() if "1+1=" in line or "answer: 3" in line)
    assert row.index("answer: 3") < row.index("answer: 2")
    assert "0.9877" in shown
    assert "never shown" not in shown


def test_summary_of_a_run_whose_phases_were_taken_away_is_the_headline(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"score_after": 0.98765}')
    console = Console(file=io.StringIO(), width=120)
    print_summary(tmp_path, console)
    assert "0.9877" in console.file.getvalue()
