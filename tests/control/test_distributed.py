"""Two processes (gloo) collect, normalise, evaluate and demonstrate what one does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.processes import run


def test_two_processes_act_as_one(tmp_path: Path) -> None:
    script = "tests/control/two_processes.py"
    for name, processes in (("one", 1), ("two", 2)):
        run(script, tmp_path / name, processes=processes)
    one, two = (_facts(tmp_path / name) for name in ("one", "two"))
    assert (one["num_processes"], two["num_processes"]) == (1, 2)
    np.testing.assert_allclose(_numbers(two["metrics"]), _numbers(one["metrics"]), rtol=1e-9)
    np.testing.assert_allclose(_numbers(two["rows"]), _numbers(one["rows"]), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(_numbers(two["moments"]), _numbers(one["moments"]), rtol=1e-9)
    assert two["evaluation"] == one["evaluation"]
    assert two["replayed"] == [sample["return"] for sample in one["evaluation"]["samples"]]
    assert two["demonstrated"] == one["demonstrated"]
    assert len(one["demonstrated"]) == 30
    assert two["labelled"] == one["labelled"]
    assert len(one["labelled"]) == 80
    np.testing.assert_allclose(_numbers(two["labelling"]), _numbers(one["labelling"]), rtol=1e-9)


def _facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "facts.json").read_text())


def _numbers(nested: object) -> list[float]:
    if isinstance(nested, dict):
        nested = list(nested.values())
    return [x for item in nested for x in _numbers(item)] if isinstance(nested, list) else [float(nested)]  # type: ignore[arg-type]
