"""Run by test_resume.py: a recipe, once whole and then interrupted again and again, each attempt a process of its own.

Imports take far longer than the small runs here, so the attempts are forked from this process, which has imported
everything and computed nothing. What they run is the recipe's file, as `python recipes/x.py ...` would.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import matplotlib.pyplot  # noqa: F401

import recipes.arithmetic
import recipes.cartpole
import recipes.imitation  # noqa: F401
from rlhf.runs import summary

RECIPES = Path(__file__).parent.parent / "recipes"
# A run that takes longer than this hangs.
SECONDS = 120.0


def start(recipe: str, arguments: list[str], folder: Path) -> int:
    """Forks an attempt that writes to `folder/run`, resuming what is there; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        folder.mkdir(exist_ok=True)
        os.chdir(folder)
        # A run that was killed before it wrote its configuration has not begun.
        resume = ["--resume"] if Path("run/config.json").exists() else []
        sys.argv = [recipe, *arguments, "--output-dir", "run", *resume]
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        # Drawing takes longer than all the rest, and what it draws is compared here anyway.
        summary.write_report = lambda folder: None
        runpy.run_path(str(RECIPES / recipe), run_name="__main__")
    except SystemExit as done:
        os._exit(int(done.code or 0))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(99)


def exit_status(pid: int, *, seconds: float = SECONDS) -> int | None:
    """The exit status, negative for a signal, or None if the process still runs after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.0005)


def half_written(run: Path) -> list[str]:
    """Checkpoints that are being written, or that a kill left half written."""
    return sorted(str(path.relative_to(run)) for path in run.glob("*/checkpoints/.tmp-*"))


def num_logged(run: Path) -> int:
    """Lines of metrics in all phases."""
    return sum(path.read_text().count("\n") for path in run.glob("*/metrics.jsonl"))


def interrupt(pid: int, kind: str, when: float, run: Path, *, whole_seconds: float) -> dict[str, Any]:
    """Waits for a moment, sends a signal, and says how the process ended.

    Args:
        kind: anywhere: SIGKILL after the share `when` of the time that a whole run takes. write: SIGKILL into the first
            checkpoint that is being written when there are `when` lines of metrics. SIGTERM or SIGINT: at that line.
    """
    if kind == "anywhere":
        status = exit_status(pid, seconds=when * whole_seconds)
    else:
        status = None
        while status is None and (num_logged(run) < when or (kind == "write" and not half_written(run))):
            status = exit_status(pid, seconds=0.0)
    if status is None and kind == "write":
        # Somewhere in it, not always at its begin.
        status = exit_status(pid, seconds=0.004 * (when % 1.0))
    if status is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if kind in ("anywhere", "write") else signal.Signals[kind])
        status = exit_status(pid)
    return {"kind": kind, "when": when, "status": status, "half_written": half_written(run)}


def main() -> None:
    folder, plan = Path(sys.argv[1]), json.loads(sys.argv[2])
    # What is here already is never freed, so that its pages stay shared with the attempts.
    gc.freeze()
    begin = time.monotonic()
    whole = exit_status(start(plan["recipe"], plan["arguments"], folder / "whole"))
    seconds = time.monotonic() - begin
    facts: dict[str, Any] = {"whole": whole, "seconds": seconds, "runs": []}

    def attempt(here: Path, kind: str, when: float) -> dict[str, Any]:
        pid = start(plan["recipe"], plan["arguments"], here)
        return interrupt(pid, kind, when, here / "run", whole_seconds=seconds)

    for number, interruptions in enumerate(plan["runs"]):
        here, attempts = folder / str(number), []
        for kind, when in interruptions:
            attempts.append(attempt(here, kind, when))
            while len(attempts) == 1 and attempts[0]["status"] == 0:
                # The machine was faster than when the whole run was timed: none may end without having been killed.
                shutil.rmtree(here)
                attempts = [attempt(here, kind, attempts[0]["when"] / 2)]
        status = exit_status(start(plan["recipe"], plan["arguments"], here))
        facts["runs"].append({"attempts": attempts, "status": status})
    (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
