"""Bits flipped, files cut, deleted or replaced in what a run keeps: mended from a good copy, or refused by name."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf.runs.checkpoint import MANIFEST, Damaged, verify_folder
from tests.attacks import rig

pytestmark = pytest.mark.attack

Damage = Callable[[Path, random.Random], None]
# Damages to folders alone, and to runs that then go on.
VERIFIED, TRIALS = 1200, 80


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes() or b"\0")
    bit = draw.randrange(len(content) * 8)
    content[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(content)


def cut(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(max(path.stat().st_size, 1)))


def delete(path: Path, draw: random.Random) -> None:
    path.unlink()


def zero(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


def extend(path: Path, draw: random.Random) -> None:
    with path.open("ab") as file:
        file.write(b"garbage")


def other_json(path: Path, draw: random.Random) -> None:
    path.write_text("[1, 2]")


def folder_in_its_place(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


def link_to_nothing(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def cut_line(path: Path, draw: random.Random) -> None:
    os.truncate(path, max(path.stat().st_size - 40, 0))


def drop_line(path: Path, draw: random.Random) -> None:
    lines = path.read_bytes().splitlines(True)
    path.write_bytes(b"".join(lines[:1] + lines[2:]))


def edit_digit(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    digits = [at for at, byte in enumerate(content) if chr(byte).isdigit()]
    if digits:
        at = draw.choice(digits)
        content[at] = ord("7") if content[at] != ord("7") else ord("3")
    path.write_bytes(content)


def crlf(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


DAMAGES: tuple[Damage, ...] = (flip, flip, flip, cut, delete, zero, extend)
OF_TEXT: tuple[Damage, ...] = (
    flip,
    cut,
    delete,
    other_json,
    folder_in_its_place,
    link_to_nothing,
    cut_line,
    drop_line,
    edit_digit,
    crlf,
)


@pytest.fixture(scope="module")
def runs(jobs: dict[str, rig.Job], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One that ended, and one that was killed after its fourth checkpoint."""
    base = tmp_path_factory.mktemp("damaged")
    assert rig.attempt(jobs["lm"], base / "finished", report=True).status == 0
    pid = rig.start(jobs["lm"], base / "killed")
    rig.wait_for(base / "killed/run/ppo/checkpoints/00000004", pid)
    rig.kill(pid)
    rig.wait(pid, rig.SECONDS)
    return {"finished": base / "finished", "killed": base / "killed"}


def test_every_damage_to_a_committed_folder_is_noticed_and_named(runs: dict[str, Path], tmp_path: Path) -> None:
    draw, here, tally = random.Random(1), tmp_path / "here", rig.Tally("damage to a committed folder")
    sources = [*runs["finished"].glob("run/*/checkpoints/*"), *runs["finished"].glob("run/*/final")]
    while sum(tally.counts.values()) < VERIFIED:
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(draw.choice(sources), here)
        path = draw.choice(sorted(path for path in here.rglob("*") if path.is_file()))
        before, damage = path.read_bytes(), draw.choice(DAMAGES)
        damage(path, draw)
        if path.exists() and path.read_bytes() == before:
            continue
        try:
            verify_folder(here)
            tally.add("unnoticed", good=False, what=(path.relative_to(here), damage.__name__))
        except Damaged as damaged:
            # What a flipped manifest calls missing is another name.
            named = path.name in str(damaged) or path.name == MANIFEST
            tally.add("noticed", good=named, what=(path.relative_to(here), str(damaged)))
    tally.require_all_good()


@pytest.mark.parametrize("source", ["killed", "finished"])
def test_any_damage_to_a_run_is_mended_or_refused_by_name(
    source: str, runs: dict[str, Path], jobs: dict[str, rig.Job], tmp_path: Path
) -> None:
    draw, tally = random.Random(source), rig.Tally(f"damage to any one to three files of a {source} run")
    names = [name for name in files_of(runs[source] / "run") if "curves" not in name]
    for _ in range(TRIALS):
        damages = {name: draw.choice(DAMAGES) for name in draw.sample(names, draw.choice((1, 1, 2, 3)))}
        try_damages(source, damages, draw, runs, jobs["lm"], tmp_path / "here", tally)
    tally.require_all_good()


@pytest.mark.parametrize("source", ["killed", "finished"])
def test_damage_to_what_is_no_checkpoint_is_mended_or_refused_by_name(
    source: str, runs: dict[str, Path], jobs: dict[str, rig.Job], tmp_path: Path
) -> None:
    draw, tally = random.Random(source), rig.Tally(f"damage to logs and configuration of a {source} run")
    names = [name for name in files_of(runs[source] / "run") if name.endswith((".json", ".jsonl"))]
    for name in [name for name in names if "checkpoints" not in name and "/policy/" not in name]:
        for damage in OF_TEXT:
            try_damages(source, {name: damage}, draw, runs, jobs["lm"], tmp_path / "here", tally)
    tally.require_all_good()


def files_of(run: Path) -> list[str]:
    """Those that hold something."""
    paths = (path for path in run.rglob("*") if path.is_file() and path.stat().st_size)
    return sorted(str(path.relative_to(run)) for path in paths)


def try_damages(
    source: str,
    damages: dict[str, Damage],
    draw: random.Random,
    runs: dict[str, Path],
    job: rig.Job,
    here: Path,
    tally: rig.Tally,
) -> None:
    rig.fresh(here)
    shutil.copytree(runs[source] / "run", here / "run")
    for name, damage in damages.items():
        damage(here / "run" / name, draw)
    done = rig.attempt(job, here, resume=True, report=source == "finished")
    what = ({name: damage.__name__ for name, damage in damages.items()}, done.status, done.last[:300])
    if done.status == 0:
        # A run that is finished has no need to look at the checkpoint before the last.
        unread = [name for name in damages if source == "finished" and "checkpoints/00000005" in name]
        changed = [name for name in rig.differences(here / "run", runs["finished"] / "run") if name not in unread]
        said = "and said so" if rig.lines_said(done.log, ("Warning",)) else "without a word"
        tally.add("differs" if changed else f"mended {said}", good=not changed, what=(*what, changed[:4]))
        return
    named = any(Path(name).name in done.last for name in damages)
    refused = done.status in (2, 4) and not done.traceback and named
    tally.add("refused by name" if refused else "neither", good=refused, what=what)
