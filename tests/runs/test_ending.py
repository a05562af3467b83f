"""One of two processes ends alone, while the other waits for it: both end alike, in a line, and the run goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf.runs.log import read_lines
from tests.processes import ROOT

WAITS = {"arguments": ["--rank", "1", "--does", "waits"], "agent": True, "signals": ["SIGTERM"], "to": [0, 1]}
PLANS = {
    "all": WAITS,
    "one": WAITS | {"to": [1]},
    # Where the first process keeps what the others could read, it is gone with it.
    "first": WAITS | {"arguments": ["--rank", "0", "--does", "waits"], "agent": False},
    "deaf": WAITS | {"arguments": ["--rank", "1", "--does", "waits in spite of all"]},
    "twice": WAITS | {"signals": ["SIGINT", "SIGINT"]},
    "fails": WAITS | {"arguments": ["--rank", "1", "--does", "fails"], "signals": []},
}
FROM_LAST = "--resume continues from the last checkpoint."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ending")


@pytest.fixture(scope="module")
def facts(folder: Path) -> dict[str, Any]:
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.runs.ending_child", str(folder), json.dumps(PLANS)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "facts.json").read_text())


def lines(said: str) -> list[str]:
    """What the end of a process is told in."""
    return [line for line in said.splitlines() if "stopped by" in line or "interrupted" in line or "error" in line]


@pytest.mark.parametrize("name", ["all", "one", "first", "deaf"])
def test_sigterm_while_one_process_waits_ends_each_in_a_line(facts: dict[str, Any], name: str) -> None:
    found = facts[name]
    assert found["statuses"] == [143, 143], found["said"]
    # On a machine that is not busy, 1.2; and 1.7 where the user's code does not end.
    assert found["seconds"] < 4.0
    for said in found["said"]:
        assert "Traceback" not in said
        assert len(lines(said)) == 1
        assert "stopped by SIGTERM" in said
        assert FROM_LAST in said


def test_ctrl_c_twice_while_one_process_waits_ends_each_in_a_line(facts: dict[str, Any]) -> None:
    found = facts["twice"]
    assert found["statuses"] == [130, 130], found["said"]
    assert lines(found["said"][0]) == [f"stopped by SIGINT; {FROM_LAST}"]
    assert lines(found["said"][1]) == [f"[rank 1] interrupted; {FROM_LAST}"]
    assert "Traceback" not in "".join(found["said"])


def test_an_error_in_one_process_is_told_by_that_one_alone(facts: dict[str, Any]) -> None:
    first, second = facts["fails"]["said"]
    assert facts["fails"]["statuses"] == [1, 1]
    assert lines(first) == []
    assert "Traceback" not in first
    (told,) = [line for line in second.splitlines() if line.startswith("error: ")]
    assert told.startswith("error: rank 1 of 2 (on ")
    assert told.endswith(f"failed in update 2: LookupError: of the reward; {FROM_LAST}")
    assert second.endswith("LookupError: of the reward\n")
    assert second.count("Traceback") == 1


def test_what_was_stopped_so_is_resumed(facts: dict[str, Any], folder: Path) -> None:
    assert facts["resumed"]["statuses"] == [0, 0], facts["resumed"]["said"]
    assert [row["update"] for row in read_lines(folder / "one/run/grpo/metrics.jsonl")] == [0, 1, 2, 3]
