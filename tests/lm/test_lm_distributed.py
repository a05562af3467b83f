"""Two processes collect, evaluate and learn what one does: tokens, rewards, weights, metrics (laws 1, 4 and 9)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.lm.two_processes import METHODS
from tests.processes import run


def assert_close(first: Any, second: Any) -> None:
    """Equal but for rounding in float64."""
    if isinstance(first, dict):
        assert list(first) == list(second)
        for name in first:
            assert_close(first[name], second[name])
    elif isinstance(first, list):
        assert len(first) == len(second)
        for one, two in zip(first, second, strict=True):
            assert_close(one, two)
    else:
        assert first == (pytest.approx(second, abs=1e-9) if isinstance(second, float) else second)


def test_two_processes_collect_evaluate_and_learn_as_one(tmp_path: Path):
    for name, processes in (("one", 1), ("two", 2)):
        run("tests/lm/two_processes.py", tmp_path / name, processes=processes)
    one, two = (json.loads((tmp_path / name / "facts.json").read_text()) for name in ("one", "two"))
    assert (one.pop("num_processes"), two.pop("num_processes")) == (1, 2)
    assert len(one["updates"][0]["rows"]) == 12
    for name in METHODS:
        moved = one[f"learned by {name}"]["moved"]
        assert max(abs(x) for values in moved.values() for x in values) > 1e-3
    assert_close(one, two)
