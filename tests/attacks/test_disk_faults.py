"""A disk that is full, broken or read-only: one line that says so, a good checkpoint, and `--resume` ends the same."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.attacks import rig
from tests.attacks.operations import at_operation, failing, telling
from tests.attacks.test_kills import counted

pytestmark = pytest.mark.attack

# Operations of a run at which the disk fails, and moments at which it turns read-only.
POINTS, MOMENTS = 50, 10

# On a full disk or over a quota room can still be freed; a broken or read-only one does not change at all.
CODES = {errno.ENOSPC: False, errno.EDQUOT: False, errno.EIO: True, errno.EACCES: True, errno.EROFS: True}


@pytest.mark.parametrize("name", ["cartpole", "lm"])
@pytest.mark.parametrize("forever", [False, True], ids=["once", "from then on"])
def test_an_error_at_any_file_operation_is_one_line(
    name: str, forever: bool, jobs: dict[str, rig.Job], tmp_path: Path
) -> None:
    job, whole, here = jobs[name], tmp_path / "whole", tmp_path / "here"
    tally = rig.Tally(f"disk error at a file operation{' and ever after' if forever else ''}, {name}")
    operations = {freeing: counted(job, tmp_path / f"counted {freeing}", freeing=freeing) for freeing in (True, False)}
    assert rig.attempt(job, whole).status == 0
    # At random: evenly spread, they would be the same ones of every checkpoint.
    draw = random.Random(f"{name} {forever}")
    for turn in range(POINTS):
        code, freeing = list(CODES.items())[turn % len(CODES)]
        number = draw.randint(1, operations[freeing])
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


needs_root = pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() != 0, reason="mounting a file system needs root")
ROOM = "size=200m"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, whose size can be changed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    assert mounted("-t", "tmpfs", "-o", ROOM, "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def mounted(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], stderr=subprocess.DEVNULL, check=False).returncode == 0


def resized(disk: Path, size: str) -> bool:
    """False if more is on it."""
    return mounted("-o", f"remount,{size}", str(disk))


def on_the_disk(disk: Path, log: Path) -> Path:
    """An empty folder whose log is somewhere else."""
    here = rig.fresh(disk / "here")
    log.unlink(missing_ok=True)
    (here / "log").symlink_to(log)
    return here


def bytes_of(run: Path) -> int:
    """What it takes in whole pages."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in run.rglob("*") if path.is_file())


@needs_root
@pytest.mark.parametrize("name", ["cartpole", "lm"])
def test_a_file_system_that_is_too_small_is_one_line(
    name: str, jobs: dict[str, rig.Job], tmp_path: Path, disk: Path
) -> None:
    job, whole, tally = jobs[name], tmp_path / "whole", rig.Tally(f"file system that is too small, {name}")
    assert rig.attempt(job, whole).status == 0
    needed = bytes_of(whole / "run")
    for part in range(1, 16, 2):
        here = on_the_disk(disk, tmp_path / "log")
        assert resized(disk, f"size={max(needed * part // 12, 65536)}")
        failed = rig.ended(rig.start(job, here), here)
        assert resized(disk, ROOM)
        judge(job, here, whole, failed, tally, what=f"{part} of 12 parts of {needed} bytes")
    tally.require_all_good()


@needs_root
@pytest.mark.parametrize("name", ["cartpole", "lm"])
def test_a_file_system_that_fills_up_is_one_line(
    name: str, jobs: dict[str, rig.Job], tmp_path: Path, disk: Path
) -> None:
    job, whole, tally = jobs[name], tmp_path / "whole", rig.Tally(f"file system that fills up, {name}")
    assert rig.attempt(job, whole).status == 0
    needed = bytes_of(whole / "run")
    for trial in range(MOMENTS):
        draw = random.Random(f"{name} {trial}")
        here = on_the_disk(disk, tmp_path / "log")
        pid, status = rig.start(job, here), None
        # From some checkpoint on others leave it less than the whole run takes.
        while status is None and len(list(here.glob("run/*/checkpoints/[0-9]*"))) <= trial % 2:
            status = rig.wait(pid, 0.0)
        left = draw.randrange(4096, needed // 3)
        while status is None and not resized(disk, f"size={shutil.disk_usage(disk).used + left}"):
            status = rig.wait(pid, 0.0)
        failed = rig.ended(pid, here) if status is None else rig.Attempt(status, "")
        assert resized(disk, ROOM)
        judge(job, here, whole, failed, tally, what=f"trial {trial}, {left} bytes left")
    tally.require_all_good()


@needs_root
@pytest.mark.parametrize("name", ["cartpole", "lm"])
def test_a_folder_that_turns_read_only_is_one_line(name: str, jobs: dict[str, rig.Job], tmp_path: Path) -> None:
    job, whole, here, tally = jobs[name], tmp_path / "whole", tmp_path / "here", rig.Tally(f"turns read-only, {name}")
    operations, run, reached = counted(job, whole), str(here / "run"), here / "reached"
    for trial in range(MOMENTS):
        rig.fresh(here)
        number = int(random.Random(f"{name} {trial}").uniform(0.3, 0.9) * operations)
        pid = rig.start(job, here, before=at_operation(here / "run", telling(reached, stop=True), number=number))
        rig.wait_for(reached, pid)
        assert mounted("--bind", run, run)
        rig.kill(pid, signal.SIGCONT)
        # That takes a moment at which nothing below is open for writing.
        while not mounted("-o", "remount,bind,ro", run):
            pass
        failed = rig.ended(pid, here)
        subprocess.run(["umount", run], check=True)
        judge(job, here, whole, failed, tally, what=f"trial {trial}")
    tally.require_all_good()


def judge(job: rig.Job, here: Path, whole: Path, failed: rig.Attempt, tally: rig.Tally, *, what: str) -> None:
    """A run that failed said why in one line and kept a checkpoint; resumed, it ends as if nothing had been."""
    what, outcome = (what, failed.status, failed.last), OUTCOMES.get(failed.status, f"status {failed.status}")
    wrong = failed.traceback or failed.status not in OUTCOMES
    if failed.status and not wrong and not says_what_to_do(failed):
        wrong, outcome = True, "does not say how to go on"
    logged = sum(path.read_text(errors="replace").count("\n") for path in (here / "run").glob("*/metrics.jsonl"))
    if failed.status and logged > 1 and not rig.good_checkpoints(here / "run"):
        wrong, outcome = True, "kept no good checkpoint"
    if wrong:
        tally.add("traceback" if failed.traceback else outcome, good=False, what=what)
        return
    resumed = rig.attempt(job, here)
    changed = rig.differences(here / "run", whole / "run") if resumed.status == 0 else ["did not end"]
    left = rig.litter(here / "run")
    good = not changed and not left
    tally.add(
        f"{outcome}, resumed to the same" if good else "not resumed to the same",
        good=good,
        what=(*what, resumed.status, resumed.last, changed[:4], left[:4]),
    )
    shutil.rmtree(here / "run", ignore_errors=True)


OUTCOMES = {0: "ended in spite of it", 2: "refused to begin in one line", 4: "stopped in one line"}


def says_what_to_do(failed: rig.Attempt) -> bool:
    """The one line names a path of the run, and how to go on."""
    said = rig.lines_said(failed.log, ("error:",))
    ways = "another" if failed.status == 2 else "--resume"
    return said == [failed.last] and "run" in failed.last and ways in failed.last
