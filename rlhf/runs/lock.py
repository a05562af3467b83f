"""One process at a time in a run's folder."""

from __future__ import annotations

import atexit
import datetime
import json
import os
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, NamedTuple

from filelock import FileLock, Timeout

from rlhf.errors import InputError

LOCK = ".lock"
# Who holds it, for the message; the lock itself is the operating system's and ends with the process that took it.
HOLDER = ".lock.json"


class Held(NamedTuple):
    """A lock of this process, and the thread whose run has it."""

    lock: FileLock
    thread: threading.Thread


class FolderLock:
    """Held from here until `release` or the end of the process, however that comes; forked children do not hold it.

    Of a folder that has been locked before nothing changes until `say_who`, so that who only looks leaves it as it was.
    A later run of the same thread takes it over, as in a notebook, where an earlier one may have failed.

    Raises:
        InputError: Another process or thread holds it.
    """

    # By process, for a fork copies this, and by file, whose folder may be moved or be reached by another path.
    _held: ClassVar[dict[tuple[int, int, int], Held]] = {}

    def __init__(self, folder: Path) -> None:
        self._holder = folder / HOLDER
        lock = FileLock(folder / LOCK, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self._key = _identity(folder)
            earlier = self._held.get(self._key)
            if earlier is None or (earlier.thread is not threading.current_thread() and earlier.thread.is_alive()):
                raise InputError(f"{folder} is in use by {_who(self._holder)}; wait for its end, or stop it.") from None
            self._inherited, lock = True, earlier.lock
        else:
            self._key, self._inherited = _identity(folder), False
            atexit.register(self.release)
        self._held[self._key] = Held(lock, threading.current_thread())
        self._said = self._inherited

    def undo(self) -> None:
        """Leaves the folder to who had it."""
        if not self._inherited:
            self.release()

    def release(self) -> None:
        """Gives the folder back; nothing if that was done, or if this is a copy in a forked child."""
        if self._key[0] != os.getpid() or self._key not in self._held:
            return
        atexit.unregister(self.release)
        # On a disk that fails, the name of who held the lock may stay; it says nothing without the lock.
        if self._said:
            with suppress(OSError):
                self._holder.unlink(missing_ok=True)
        self._held.pop(self._key).lock.release()

    def say_who(self) -> None:
        """Has those that are refused told of this process."""
        if self._said:
            return
        self._said = True
        since = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        holder = {"process": os.getpid(), "host": socket.gethostname(), "since": since}
        try:
            # If it is a link, what it leads to is not ours.
            self._holder.unlink(missing_ok=True)
            self._holder.write_text(json.dumps(holder) + "\n", encoding="utf-8")
        except OSError:
            self.release()
            raise


def _identity(folder: Path) -> tuple[int, int, int]:
    file = (folder / LOCK).stat()
    return os.getpid(), file.st_dev, file.st_ino


def _who(holder: Path) -> str:
    try:
        who = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {who['process']} on {who['host']} since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
