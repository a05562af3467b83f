"""Run by test_resume.py: a recipe, once whole and then interrupted again and again, each attempt a process of its own.

Imports take far longer than the small runs here, so the attempts are forked from this process, which has imported
everything and computed nothing. What they run is the recipe's file, as `python recipes/x.py ...` would.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot  # noqa: F401

import recipes.arithmetic
import recipes.cartpole  # noqa: F401
from rlhf.runs import report

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
        report.write_report = lambda folder: None
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


def interrupt(pid: int, kind: str, run: Path, *, whole_seconds: float, draw: random.Random) -> dict[str, Any]:
    """Waits for the moment that `kind` asks for, sends the signal, and says how the process ended.

    anywhere: SIGKILL at any time. write: SIGKILL while a checkpoint is being written. SIGTERM, SIGINT: while training.
    """
    if kind == "anywhere":
        status = exit_status(pid, seconds=draw.uniform(0.0, whole_seconds))
    else:
        wait = _writing(run, number=draw.randint(1, 8)) if kind == "write" else _logged(run, lines=draw.randint(1, 5))
        status = None
        while status is None and not next(wait):
            status = exit_status(pid, seconds=0.0)
    if status is None and kind == "write":
        # Somewhere in it, not always at its begin.
        status = exit_status(pid, seconds=draw.uniform(0.0, 0.004))
    if status is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if kind in ("anywhere", "write") else signal.Signals[kind])
        status = exit_status(pid)
    return {"kind": kind, "status": status, "half_written": half_written(run)}


def _writing(run: Path, *, number: int) -> Iterator[bool]:
    """True from the moment the `number`-th new checkpoint is begun."""
    seen: set[str] = set()
    old = set(half_written(run))
    while True:
        seen |= set(half_written(run)) - old
        yield len(seen) >= number


def _logged(run: Path, *, lines: int) -> Iterator[bool]:
    """True once `lines` updates were logged anywhere in the run since this was asked."""

    def count() -> int:
        return sum(path.read_text().count("\n") for path in run.glob("*/metrics.jsonl"))

    before = count()
    while True:
        yield count() >= before + lines


def main() -> None:
    folder, plan = Path(sys.argv[1]), json.loads(sys.argv[2])
    draw = random.Random(plan["seed"])
    # What is here already is never freed, so that its pages stay shared with the attempts.
    gc.freeze()
    begin = time.monotonic()
    whole = exit_status(start(plan["recipe"], plan["arguments"], folder / "whole"))
    seconds = time.monotonic() - begin
    facts: dict[str, Any] = {"whole": whole, "seconds": seconds, "runs": []}
    for number, kinds in enumerate(plan["runs"]):
        attempts = []
        for kind in kinds:
            pid = start(plan["recipe"], plan["arguments"], folder / str(number))
            attempts.append(interrupt(pid, kind, folder / str(number) / "run", whole_seconds=seconds, draw=draw))
        status = exit_status(start(plan["recipe"], plan["arguments"], folder / str(number)))
        facts["runs"].append({"attempts": attempts, "status": status})
    (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
