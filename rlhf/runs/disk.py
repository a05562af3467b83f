"""What the disk under a run's folder refuses, in one line; and whether it has room for the run."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from rlhf.errors import DiskError


@contextmanager
def one_line(folder: Path, *, needed: int = 0) -> Iterator[None]:
    """What the operating system refuses becomes a DiskError that says what is kept and how to go on.

    Args:
        folder: Of the run, or of one of its phases.
        needed: Bytes about to be written; 0 if that is not known.
    """
    try:
        yield
    except DiskError:
        raise
    except (OSError, SafetensorError) as error:
        refused = reason(error)
        # Without a number it is no fault of the disk, but some library's own message.
        if refused is None:
            raise
        path = named(error) or folder
        raise DiskError(
            f"{path}: {refused}; {room(folder, needed)}. {_kept(folder)} Mend the disk or make room on it, then run "
            "the same command with --resume."
        ) from error


def named(error: Exception) -> str | None:
    """The file it is about; of two, the one that was to be made, since the other is ours and temporary."""
    return getattr(error, "filename2", None) or getattr(error, "filename", None)


def reason(error: Exception) -> str | None:
    """The operating system's words for what went wrong; None if it has said nothing."""
    if isinstance(error, OSError):
        return None if error.errno is None else os.strerror(error.errno)
    # The writer of safetensors gives the number in its text only.
    number = re.search(r"\(os error (\d+)\)", str(error))
    return None if number is None else os.strerror(int(number[1]))


def room(folder: Path, needed: int = 0) -> str:
    """How much is needed, if that is known, and how much is free."""
    wanted = f"{readable(needed)} are needed, " if needed else ""
    try:
        return f"{wanted}{readable(free_bytes(folder))} are free"
    except OSError:
        return f"{wanted}how many are free cannot be read"


def free_bytes(folder: Path) -> int:
    """On the disk that holds the folder, or that will once it is made."""
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free


def size_of(folder: Path) -> int:
    """Bytes of all files in it; 0 if it is absent."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def readable(size: int) -> str:
    """A number of bytes for people."""
    if size < 10_000:
        return f"{size} bytes"
    value, unit = float(size), 0
    while value >= 1000.0 and unit < 4:
        value, unit = value / 1000.0, unit + 1
    return f"{value:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[unit]}"


def _kept(folder: Path) -> str:
    """The newest checkpoint below the folder, which a fault leaves as it is."""
    with suppress(OSError):
        found = [path for path in folder.rglob("checkpoints/*") if path.name.isdecimal()]
        if found:
            return f"The checkpoint {max(found, key=lambda path: path.stat().st_mtime)} is kept."
    return "There is no checkpoint yet."
