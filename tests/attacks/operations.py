"""Something that happens at the n-th operation of a run on its files: a kill, or an error of the disk."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What Python's audit hooks tell of files, beside `open`.
_EVENTS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.link", "shutil.rmtree"}
# What works on a full disk.
_FREEING = {"os.remove", "os.rmdir", "shutil.rmtree", "os.truncate", "os.chmod"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT

Act = Callable[[str], None]


def at_operation(
    root: Path, act: Act, *, number: int, forever: bool = False, freeing: bool = True
) -> Callable[[], None]:
    """What an attempt calls before its recipe: from then on, `act` is called at the n-th operation below `root`.

    Args:
        forever: At every later one as well.
        freeing: Also count operations that free room.
    """

    def install() -> None:
        seen = 0

        def operated(what: str) -> None:
            nonlocal seen
            seen += 1
            if seen == number or (forever and seen > number):
                act(what)

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "open":
                if not _opened_to_write(arguments):
                    return
            elif event not in _EVENTS or (not freeing and event in _FREEING):
                return
            if not isinstance(arguments[0], int) and str(root) in os.path.abspath(os.fsdecode(arguments[0])):
                operated(f"{event} {arguments[0]}")

        flush = os.fsync

        def fsync(descriptor: Any) -> None:
            operated("fsync")
            flush(descriptor)

        os.fsync = fsync
        sys.addaudithook(hook)

    return install


def _opened_to_write(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    by_mode = mode is not None and any(letter in str(mode) for letter in "wax+")
    return by_mode or (isinstance(flags, int) and bool(flags & _WRITING))


def written_to(listing: Path) -> Act:
    """Notes each operation, one a line."""
    descriptor = os.open(listing, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    return lambda what: os.write(descriptor, f"{what}\n".encode())  # type: ignore[return-value]


def die(what: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def telling(place: Path, *, stop: bool) -> Act:
    """Makes a file, by which others know that the run has come so far; and stops it until it is told to go on."""

    def tell(what: str) -> None:
        place.touch()
        if stop:
            os.kill(os.getpid(), signal.SIGSTOP)

    return tell


def failing(code: int) -> Act:
    def fail(what: str) -> None:
        raise OSError(code, os.strerror(code), what.split(" ", 1)[-1])

    return fail


CODES = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, errno.EDQUOT)
