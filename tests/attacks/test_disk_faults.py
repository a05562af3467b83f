"""A disk that is full, broken or read-only: one line that says so, a good checkpoint, and `--resume` ends the same."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.attacks import rig
from tests.attacks.operations import at_operation, failing
from tests.attacks.test_kills import counted, stride

pytestmark = pytest.mark.attack

# On a full disk or over a quota room can still be freed; a broken or read-only one does not change at all.
CODES = {errno.ENOSPC: False, errno.EDQUOT: False, errno.EIO: True, errno.EACCES: True, errno.EROFS: True}


@pytest.mark.parametrize("name", ["cartpole", "lm"])
@pytest.mark.parametrize("forever", [False, True], ids=["once", "from then on"])
def test_an_error_at_any_file_operation_is_one_line(
    name: str, forever: bool, jobs: dict[str, rig.Job], tmp_path: Path
) -> None:
    job, whole, here = jobs[name], tmp_path / "whole", tmp_path / "here"
    tally = rig.Tally(f"disk error at a file operation{' and ever after' if forever else ''}, {name}")
    events = counted(job, whole)
    for turn, number in enumerate(range(1, events + 1, stride(events))):
        code, freeing = list(CODES.items())[turn % len(CODES)]
        rig.fresh(here)
        fails = at_operation(here / "run", failing(code), number=number, forever=forever, freeing=freeing)
        failed = rig.attempt(job, here, before=fails)
        judge(job, here, whole, failed, tally, what=f"{errno.errorcode[code]} at operation {number}")
    tally.require_all_good()


@pytest.mark.parametrize("name", ["cartpole", "lm"])
def test_a_limit_on_the_size_of_files_is_one_line(name: str, jobs: dict[str, rig.Job], tmp_path: Path) -> None:
    job, whole, here, tally = (
        jobs[name],
        tmp_path / "whole",
        tmp_path / "here",
        rig.Tally(f"limit on file sizes, {name}"),
    )
    counted(job, whole)
    sizes = sorted({path.stat().st_size for path in (whole / "run").rglob("*") if path.is_file()})
    # What it prints goes to a file as well.
    for size in [size for size in sizes if size > 20_000][::3]:
        rig.fresh(here)
        failed = rig.attempt(job, here, before=limited_to(size - 1))
        judge(job, here, whole, failed, tally, what=f"at {size} bytes")
    tally.require_all_good()


def limited_to(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, whose size and mode can be changed; mounting needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def remounted(disk: Path, options: str) -> bool:
    done = subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], stderr=subprocess.DEVNULL, check=False)
    return done.returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
@pytest.mark.parametrize("name", ["cartpole", "lm"])
def test_a_file_system_that_fills_up_is_one_line(
    name: str, jobs: dict[str, rig.Job], tmp_path: Path, disk: Path
) -> None:
    job, whole, tally = jobs[name], tmp_path / "whole", rig.Tally(f"file system that fills up, {name}")
    counted(job, whole)
    used = sum(-(-path.stat().st_size // 4096) * 4096 for path in (whole / "run").rglob("*") if path.is_file())
    for share in range(1, 16):
        here = rig.fresh(disk / "here")
        # The log shares the disk; a link takes it off.
        (tmp_path / "log").unlink(missing_ok=True)
        (here / "log").symlink_to(tmp_path / "log")
        assert remounted(disk, f"size={max(used * share // 12, 65536)}")
        failed = rig.ended(rig.start(job, here), here)
        assert remounted(disk, "size=200m")
        judge(job, here, whole, failed, tally, what=f"at {share} of 12 parts of {used} bytes")
    tally.require_all_good()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
@pytest.mark.parametrize("name", ["cartpole", "lm"])
def test_a_file_system_that_turns_read_only_is_one_line(
    name: str, jobs: dict[str, rig.Job], tmp_path: Path, disk: Path
) -> None:
    job, whole, tally = jobs[name], tmp_path / "whole", rig.Tally(f"file system that turns read-only, {name}")
    seconds = rig.attempt(job, whole).seconds
    for trial in range(10):
        draw = random.Random(f"{name} {trial}")
        here = rig.fresh(disk / "here")
        (tmp_path / "log").unlink(missing_ok=True)
        (here / "log").symlink_to(tmp_path / "log")
        pid = rig.start(job, here)
        status = rig.wait(pid, draw.uniform(0.1, seconds))
        # A file system with a file open for writing does not turn read-only.
        while status is None and not remounted(disk, "ro"):
            status = rig.wait(pid, 0.0)
        if status is not None:
            continue
        failed = rig.ended(pid, here)
        assert remounted(disk, "rw")
        judge(job, here, whole, failed, tally, what=f"trial {trial}")
    tally.require_all_good()


def judge(job: rig.Job, here: Path, whole: Path, failed: rig.Attempt, tally: rig.Tally, *, what: str) -> None:
    """A run that failed said why in one line and kept a checkpoint; resumed, it ends as if nothing had been."""
    if failed.traceback or failed.status is None:
        tally.add("traceback" if failed.traceback else "hung", good=False, what=(what, failed.last))
        return
    if failed.status not in (0, DISK_STATUS):
        tally.add(f"status {failed.status}", good=False, what=(what, failed.last))
        return
    if failed.status and not says_what_to_do(failed.log):
        tally.add("does not say how to go on", good=False, what=(what, failed.last))
        return
    logged = sum(path.read_text(errors="replace").count("\n") for path in (here / "run").glob("*/metrics.jsonl"))
    if failed.status and logged > 1 and not rig.good_checkpoints(here / "run"):
        tally.add("kept no good checkpoint", good=False, what=what)
        return
    resumed = rig.attempt(job, here)
    changed = rig.differences(here / "run", whole / "run") if resumed.status == 0 else ["did not end"]
    left = rig.litter(here / "run")
    outcome = (
        "not resumed to the same" if changed or left else "ended in spite of it" if failed.status == 0 else "one line"
    )
    tally.add(outcome, good=not changed and not left, what=(what, resumed.status, resumed.last, changed[:4], left[:4]))
    shutil.rmtree(here / "run", ignore_errors=True)


DISK_STATUS = 4


def says_what_to_do(log: str) -> bool:
    """The line names the path, and either how to go on or that nothing was begun."""
    return any(
        "run" in line and ("--resume" in line or "nothing" in line)
        for line in rig.lines_said(log, ("error:", "stopped"))
    )
