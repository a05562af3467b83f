"""Processes hear of one another: whoever waits for one that is gone or stands still ends, and it is said once why."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf.errors import InputError
from rlhf.runs.pulse import _place
from rlhf.runs.ranks import patience

ROOT = Path(__file__).parents[2]
RANKS = [pytest.param(0, marks=pytest.mark.slow), 1]


def both(kind: str, rank: int, **environment: str) -> tuple[list[str], list[str], list[int], float]:
    """What two processes print and say, how they end, and seconds from the harm to the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "WORLD_SIZE": "2"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | environment
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.runs.two_pulses", kind, str(rank)],
            cwd=ROOT,
            env=os.environ | shared | {"RANK": str(i), "LOCAL_RANK": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    start = time.monotonic()
    texts = [process.communicate(timeout=90) for process in processes]
    said = [line for _, err in texts for line in err.splitlines() if line.startswith("error:")]
    return (
        [out.strip() for out, _ in texts],
        said,
        [process.returncode for process in processes],
        time.monotonic() - start,
    )


@pytest.mark.parametrize("rank", RANKS)
def test_one_that_raises_says_where_and_the_other_ends_in_silence(rank: int) -> None:
    printed, said, _, _ = both("raises", rank)
    assert printed[rank] == "raised"
    assert "came to the end" not in printed
    (line,) = said
    assert line.startswith(f"error: rank {rank} of 2 (on ")
    assert "failed in the middle: LookupError: no such thing; --resume continues" in line


@pytest.mark.parametrize("rank", RANKS)
def test_of_one_that_is_killed_the_other_says_which_it_was_and_where(rank: int) -> None:
    """The store dies with rank 0, as it does where no launcher holds it."""
    printed, said, statuses, _ = both("is killed", rank)
    assert statuses[rank] == -9
    assert printed[1 - rank] == "ended with the other"
    (line,) = said
    assert line.startswith(f"error: rank {rank} of 2 (on ")
    assert "has ended without a word: it was killed, or its machine is out of reach; --resume continues" in line


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_stands_still_is_named_with_its_place_and_ends_both(rank: int) -> None:
    printed, said, statuses, seconds = both("stands still", rank, RLHF_PATIENCE="3")
    assert "came to the end" not in printed
    assert 0 not in statuses
    (line,) = said
    assert line.startswith(f"error: rank {rank} of 2 (on ")
    assert "last in the middle at two_pulses.py:" in line
    assert "while others wait for it (RLHF_PATIENCE is 3); --resume continues" in line
    assert seconds < 40.0


@pytest.mark.slow
def test_the_main_process_that_hangs_in_what_it_does_for_all_is_named_too() -> None:
    printed, said, _, _ = both("hangs in what it does for all", 0, RLHF_PATIENCE="3")
    assert "came to the end" not in printed
    (line,) = said
    assert line.startswith("error: rank 0 of 2 (on ")
    assert "last in the middle at two_pulses.py:" in line


@pytest.mark.slow
def test_an_error_that_was_caught_does_not_end_the_next_run_of_the_processes() -> None:
    printed, said, statuses, _ = both("has failed before", 0)
    assert printed == ["came to the end"] * 2
    assert statuses == [0, 0]
    (line,) = said
    assert "ValueError: of an earlier run" in line


def test_none_that_does_well_is_ended() -> None:
    assert both("does well", 0, RLHF_PATIENCE="3")[:3] == (["came to the end"] * 2, [], [0, 0])


@pytest.mark.parametrize("given", ["-1", "0", "soon", "nan"])
def test_a_patience_that_is_no_number_above_zero_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_PATIENCE", given)
    with pytest.raises(InputError, match="must be a number of seconds above 0"):
        patience()


def test_the_place_of_a_process_is_its_own_code_and_waiting_is_known_by_where_it_is() -> None:
    place, waits = _place(sys._getframe())
    assert place.startswith("test_pulse.py:")
    assert not waits
