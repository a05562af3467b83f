"""SIGTERM, Ctrl-C and hang-ups at random moments, once and again: the run ends soon, says how, and goes on the same."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from tests.attacks import rig

pytestmark = pytest.mark.attack

KINDS = ("TERM", "INT", "INT INT", "TERM TERM", "INT TERM", "TERM INT", "HUP", "INT INT INT")
TRIALS = 12
# One update of these runs takes a tenth of this.
SOON = 10.0
# It waits or computes for longer than this.
AT_ONCE = 5.0
BODIES = (
    "import time; time.sleep(20)",
    "import asyncio; asyncio.run(asyncio.sleep(20))",
    "import socket; socket.create_server(('127.0.0.1', 0)).accept()",
    "[hash(str(i)) for i in range(10**8)]",
)


@pytest.mark.parametrize("name", ["cartpole", "lm", "arithmetic"])
def test_signals_at_any_moment_cost_nothing(name: str, jobs: dict[str, rig.Job], tmp_path: Path) -> None:
    job, whole, here, tally = jobs[name], tmp_path / "whole", tmp_path / "here", rig.Tally(f"signals, {name}")
    seconds = rig.attempt(job, whole, report=True).seconds
    for trial in range(TRIALS):
        draw, kind = random.Random(f"{name} {trial}"), KINDS[trial % len(KINDS)]
        rig.fresh(here)
        pid = rig.start(job, here, report=True)
        status = rig.wait(pid, draw.uniform(0.0, seconds))
        done = (
            signalled(pid, here, kind, gap=draw.choice((0.0, 0.01, 0.1))) if status is None else rig.Attempt(status, "")
        )
        what = (kind, done.status, round(done.seconds, 1), done.last[:200])
        if done.traceback or done.status is None or done.seconds > SOON:
            tally.add("traceback" if done.traceback else "not soon", good=False, what=what)
            continue
        resumed = rig.attempt(job, here, report=True) if done.status else done
        changed = rig.differences(here / "run", whole / "run") if resumed.status == 0 else ["did not end"]
        told = "ended before" if done.status == 0 else "stopped, then resumed to the same"
        tally.add("differ" if changed else told, good=not changed, what=(*what, resumed.last[:200], changed[:4]))
    tally.require_all_good()


def test_a_signal_reaches_a_reward_that_waits(jobs: dict[str, rig.Job], tmp_path: Path) -> None:
    tally = rig.Tally("signals while a reward waits or computes, lm")
    for body in BODIES:
        for kind in ("TERM", "INT INT", "TERM TERM", "INT TERM"):
            here = rig.fresh(tmp_path / "here")
            (here / "mine.py").write_text(
                "from pathlib import Path\ncalls = [0]\ndef f(completions, **_):\n    calls[0] += 1\n"
                f"    if calls[0] == 5:\n        Path('now').touch()\n        {body}\n"
                "    return [float(len(c)) for c in completions]\n"
            )
            pid = rig.start(jobs["lm"].with_options("--reward", "mine.py:f"), here)
            while not (here / "now").exists():
                assert rig.wait(pid, 0.005) is None
            done = signalled(pid, here, kind, gap=0.1)
            # Of two, what it is that ends it.
            expected = 130 if kind == "INT INT" else 128 + signal.SIGTERM
            good = done.status == expected and not done.traceback and done.seconds < AT_ONCE
            good = good and bool(rig.good_checkpoints(here / "run"))
            tally.add("stopped at once" if good else f"status {done.status}", good=good, what=(body, kind, done))
    tally.require_all_good()


def signalled(pid: int, folder: Path, kind: str, *, gap: float) -> rig.Attempt:
    """Sends the signals, so many seconds between them; `seconds` are those until the end."""
    status, waited = None, 0.0
    for name in kind.split():
        if status is None:
            rig.kill(pid, signal.Signals[f"SIG{name}"])
            status, waited = rig.wait(pid, gap), waited + gap
    done = (
        rig.ended(pid, folder) if status is None else rig.Attempt(status, (folder / "log").read_text(errors="replace"))
    )
    # Hang-ups end a process as they always do.
    known = {128 + signal.SIGTERM, 130, 0, -signal.SIGHUP, -signal.SIGINT, -signal.SIGTERM}
    assert done.status in known | {None}, (kind, done.status, done.last)
    return rig.Attempt(done.status, done.log, done.seconds + waited)
