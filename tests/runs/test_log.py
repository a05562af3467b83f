from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
import torch
from rich.console import Console

from rlhf.errors import InputError, NonFiniteError
from rlhf.runs import log
from rlhf.runs.log import Display, Lines, check_row, read_lines, trackers


def test_lines_are_read_back_as_written(tmp_path):
    lines = Lines(tmp_path / "metrics.jsonl")
    records = [{"update": 0, "x": 0.1 + 0.2, "text": "é\n\u2028"}, {"update": 1, "x": -0.0}]
    lines.append(records[:1])
    lines.append(records[1:])
    assert read_lines(lines.path) == records
    assert math.copysign(1, read_lines(lines.path)[1]["x"]) == -1


def test_an_absent_file_has_no_lines(tmp_path):
    lines = Lines(tmp_path / "metrics.jsonl")
    assert read_lines(lines.path) == []


def test_a_last_line_cut_by_a_kill_is_left_out(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n{"a": 2')
    assert read_lines(tmp_path / "x.jsonl") == [{"a": 1}]


@pytest.mark.parametrize("value", [math.nan, torch.tensor(1.0), {1, 2}, np.float32(1)])
def test_lines_refuse_what_is_not_json_and_write_nothing(tmp_path, value):
    lines = Lines(tmp_path / "samples.jsonl")
    with pytest.raises(ValueError, match=r"samples.jsonl holds JSON only, and .*value"):
        lines.append([{"fine": 1}, {"value": value}])
    assert not lines.path.exists()


@pytest.mark.parametrize("value", [torch.tensor(1.0), "1", None, True, [1.0]])
def test_metrics_must_be_plain_numbers(value):
    with pytest.raises(ValueError, match="metric 'entropy' is"):
        check_row({"update": 1, "entropy": value})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_named(value):
    with pytest.raises(NonFiniteError, match=r"metric entropy is .* at update 4"):
        check_row({"update": 4, "entropy": value})


def test_metrics_may_be_numpy_doubles():
    check_row({"update": 1, "entropy": np.float64(0.5)})


def shown(terminal: bool, rows: list[dict], target: int = 10, unit: str = "updates") -> str:
    output = io.StringIO()
    display = Display("ppo", Console(file=output, force_terminal=terminal, width=120))
    for row in rows:
        display.show(row, target, unit)
    display.close()
    return output.getvalue()


ROW = {"update": 2, "steps": 2048, "return_mean": 21.25, "entropy": 0.6931, "steps_per_second": 7123.4}


def test_display_prints_plain_lines_where_there_is_no_terminal():
    assert shown(False, [ROW]) == "ppo  update 2/10  steps 2,048  score 21.25  entropy 0.6931  steps/s 7,123\n"


def test_display_counts_steps_where_the_phase_ends_by_them():
    printed = shown(False, [{"update": 2, "steps": 2048}, {"update": 3, "steps": 3100}], target=3000, unit="steps")
    assert printed == "ppo  update 2  steps 2,048/3,000\nppo  update 3  steps 3,100/3,000\n"


def test_display_limits_plain_lines_but_shows_every_evaluation_and_the_last():
    rows = [{"update": update} for update in range(11)]
    rows[5]["eval_return_mean"] = 500.0
    updates = [line.split()[2] for line in shown(False, rows).splitlines()]
    assert updates == ["0/10", "5/10", "10/10"]


def test_display_draws_a_table_on_a_terminal_and_gives_the_cursor_back():
    drawn = shown(True, [ROW, {**ROW, "update": 3}])
    assert "21.25" in drawn
    assert "3/10" in drawn
    assert "left" in drawn
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l")


def test_lines_hold_one_json_object_each(tmp_path):
    lines = Lines(tmp_path / "metrics.jsonl")
    lines.append([{"text": "two\nlines"}, {}])
    assert [json.loads(line) for line in lines.path.read_text().splitlines()] == [{"text": "two\nlines"}, {}]


def test_a_tracker_whose_package_is_missing_is_refused_and_not_ignored(tmp_path, monkeypatch):
    assert trackers(tensorboard=False, output_dir=tmp_path) == {}
    assert trackers(tensorboard=True, output_dir=tmp_path)["log_with"] == "tensorboard"
    monkeypatch.setattr(log, "is_tensorboard_available", lambda: False)
    with pytest.raises(InputError, match="pip install"):
        trackers(tensorboard=True, output_dir=tmp_path)
