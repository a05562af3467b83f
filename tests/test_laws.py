"""Laws 1, 4 and 9 on the whole loop in float64: what only changes speed changes neither weights nor metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.processes import run
from tests.whole_loops import LOOPS, Speed, change

OF_THE_CLOCK = ("seconds", "steps_per_second", "memory")


def metrics(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "ppo" / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in row if not name.startswith(OF_THE_CLOCK)} for row in rows]


def assert_same_training(one: Path, other: Path, changes: list[Tensor]) -> None:
    assert float(changes[0].norm()) > 0.1
    assert float((changes[0] - changes[1]).norm()) <= 1e-9 * float(changes[0].norm())
    rows = [metrics(folder) for folder in (one, other)]
    assert len(rows[0]) == len(rows[1]) > 3
    for a, b in zip(*rows, strict=True):
        assert list(a) == list(b)
        assert a == {name: pytest.approx(value, rel=1e-7, abs=1e-9) for name, value in b.items()}


@pytest.mark.parametrize(
    ("loop", "speed"),
    [
        pytest.param("control", Speed(micro_batch_cost=7), id="control, seven steps a micro-batch"),
        pytest.param("lm", Speed(micro_batch_cost=1), id="lm, one row a micro-batch"),
        pytest.param("lm", Speed(micro_batch_cost=37), id="lm, some rows a micro-batch"),
        pytest.param("lm", Speed(token_budget=30), id="lm, some rows decoded at a time"),
        pytest.param("lm", Speed(token_budget=1), id="lm, one row decoded at a time"),
    ],
)
def test_training_does_not_depend_on_what_is_done_at_once(loop: str, speed: Speed, tmp_path: Path) -> None:
    one = LOOPS[loop](tmp_path / "one", updates=3, speed=Speed())
    other = LOOPS[loop](tmp_path / "other", updates=3, speed=speed)
    assert_same_training(tmp_path / "one", tmp_path / "other", [change(one), change(other)])


@pytest.mark.parametrize("loop", LOOPS)
def test_two_processes_train_as_one(loop: str, tmp_path: Path) -> None:
    one = LOOPS[loop](tmp_path / "one", updates=10, speed=Speed())
    run("tests/whole_loops.py", tmp_path / "two", loop, processes=2)
    facts = json.loads((tmp_path / "two" / "facts.json").read_text())
    assert (facts["num_processes"], facts["distributed_type"]) == (2, "MULTI_CPU")
    two = load_file(tmp_path / "two" / "change.safetensors")["change"]
    assert_same_training(tmp_path / "one", tmp_path / "two" / "run", [change(one), two])
