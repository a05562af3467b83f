"""A run's folder is one process's at a time, and nobody's once that has ended, however it ended."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from accelerate import Accelerator

from rlhf.errors import InputError
from rlhf.runs.door import require_new_or_resumed
from rlhf.runs.lock import HOLDER, FolderLock
from rlhf.runs.run import Run


@dataclass(frozen=True, kw_only=True)
class Config:
    updates: int = 2


def enter(folder: Path, *, resume: bool) -> Run:
    return Run(folder, Config(), resume=resume, accelerator=Accelerator(cpu=True))


def forked(act: Callable[[], object]) -> int:
    """Runs `act` in a child that then waits to be killed; returns its process id once that is done."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            act()
            os.write(writing, b"done")
            time.sleep(60)
        finally:
            os._exit(1)
    os.close(writing)
    assert os.read(reading, 4) == b"done"
    return child


def refuse(folder: Path) -> None:
    """Fails unless the folder is in use."""
    with pytest.raises(InputError, match="is in use by process"):
        enter(folder, resume=True)


def killed(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def held(tmp_path):
    """A run that another process has, with a phase under way."""
    child = forked(lambda: enter(tmp_path / "run", resume=False).phase("ppo").log({"update": 0}))
    yield tmp_path / "run", child
    killed(child)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("moved", ["", "moved", "linked"])
def test_a_run_that_is_alive_is_refused_and_stays_as_it_is(held, resume, moved):
    folder, child = held
    if moved:
        other = folder.with_name(moved)
        shutil.move(folder, other) if moved == "moved" else other.symlink_to(folder)
        folder = other
    before = tree(folder)
    with pytest.raises(
        InputError, match=rf"is in use by process {child} on {re.escape(socket.gethostname())} since 20"
    ):
        enter(folder, resume=resume)
    assert tree(folder) == before


def test_two_that_start_at_once_are_told_apart(tmp_path):
    """Neither has seen the other's configuration yet."""
    tmp_path.joinpath("run").mkdir()
    child = forked(lambda: enter(tmp_path / "run", resume=False))
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(InputError, match=f"in use by process {child}"):
        enter(tmp_path / "run", resume=False)
    killed(child)


def test_a_kill_frees_the_folder_even_if_a_child_of_it_lives_on(tmp_path):
    def with_a_child() -> None:
        enter(tmp_path / "run", resume=False)
        # As a worker of the environments or of a data loader: it has a copy of whatever was open.
        (tmp_path / "orphan").write_text(str(forked(lambda: None)))

    killed(forked(with_a_child))
    orphan = int((tmp_path / "orphan").read_text())
    os.kill(orphan, 0)
    enter(tmp_path / "run", resume=True).close()
    os.kill(orphan, signal.SIGKILL)


def test_a_process_may_go_on_with_its_own_run_and_another_may_once_it_is_closed(tmp_path):
    enter(tmp_path / "run", resume=False)
    run = enter(tmp_path / "run", resume=True)
    child = forked(lambda: refuse(tmp_path / "run"))
    killed(child)
    run.close()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "config.json", "versions.json"]
    killed(forked(lambda: enter(tmp_path / "run", resume=True)))


def test_a_start_that_is_refused_leaves_the_folder_to_the_run_that_has_it(tmp_path):
    enter(tmp_path / "run", resume=False)
    with pytest.raises(InputError, match="already holds another run"):
        enter(tmp_path / "run", resume=False)
    killed(forked(lambda: refuse(tmp_path / "run")))


def test_another_thread_of_the_same_process_is_another_run(tmp_path):
    enter(tmp_path / "run", resume=False)
    refused = []

    def resume() -> None:
        try:
            enter(tmp_path / "run", resume=True)
        except InputError as error:
            refused.append(str(error))

    thread = threading.Thread(target=resume)
    thread.start()
    thread.join()
    assert len(refused) == 1
    assert f"in use by process {os.getpid()}" in refused[0]


def test_a_folder_that_was_deleted_and_made_again_is_locked_anew(tmp_path):
    """As in a notebook: the lock of the file that is gone would keep nobody out."""
    enter(tmp_path / "run", resume=False)
    shutil.rmtree(tmp_path / "run")
    enter(tmp_path / "run", resume=False)
    killed(forked(lambda: refuse(tmp_path / "run")))


def test_a_refused_resume_gives_the_folder_back(tmp_path):
    enter(tmp_path / "run", resume=False).close()
    with pytest.raises(InputError, match="already holds another run"):
        enter(tmp_path / "run", resume=False)
    killed(forked(lambda: enter(tmp_path / "run", resume=True)))


def test_a_link_in_the_place_of_the_holder_s_name_is_not_followed(tmp_path: Path) -> None:
    folder, other = tmp_path / "run", tmp_path / "other"
    folder.mkdir()
    other.write_text("mine")
    (folder / HOLDER).symlink_to(other)
    lock = FolderLock(folder)
    lock.say_who()
    assert other.read_text() == "mine"
    assert not (folder / HOLDER).is_symlink()
    lock.release()


def started(folder: Path) -> None:
    enter(folder, resume=False).close()


def another(folder: Path) -> None:
    started(folder)
    (folder / "config.json").write_text('{"updates": 3}')


def locked_only(folder: Path) -> None:
    folder.mkdir()
    (folder / ".lock").touch()


def refused(look: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        look()


@pytest.mark.parametrize(
    ("make", "look"),
    [
        (started, lambda folder: require_new_or_resumed(folder, resume=True)),
        (started, lambda folder: refused(lambda: require_new_or_resumed(folder, resume=False), "another run")),
        (started, lambda folder: refused(lambda: enter(folder, resume=False), "another run")),
        (another, lambda folder: refused(lambda: enter(folder, resume=True), "3 -> 2")),
        (locked_only, lambda folder: require_new_or_resumed(folder, resume=False)),
        (locked_only, lambda folder: refused(lambda: enter(folder, resume=True), "no run")),
    ],
    ids=["look to resume", "look to start", "start", "resume of another", "look at a lock", "resume of nothing"],
)
@pytest.mark.parametrize("killed_before", [False, True])
def test_a_look_and_a_refused_start_change_nothing(
    make: Callable[[Path], None], look: Callable[[Path], object], killed_before: bool, tmp_path: Path
) -> None:
    """Nor do they for a moment, which the times of the folder would tell; the name that a killed run left stays too."""
    folder = tmp_path / "run"
    make(folder)
    if killed_before:
        (folder / HOLDER).write_text('{"process": 1}')

    def seen() -> dict[str, object]:
        there = [folder, *folder.rglob("*")]
        return {str(path): (path.stat().st_mtime_ns, path.is_dir() or path.read_bytes()) for path in there}

    before = seen()
    look(folder)
    assert seen() == before
    # And nobody holds it.
    killed(forked(lambda: FolderLock(folder)))
