"""Each process of several tells the others every second that it lives and where it is. So a run ends soon, with the
cause said once, when one of them is gone, or stands still while the others wait for it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, cast

from accelerate import Accelerator

from rlhf.errors import InputError
from rlhf.runs.console import visible
from rlhf.runs.ranks import ENDED, TOLD, AnotherEnded, left_alone, store, word_left
from rlhf.runs.stop import Stopped

# Seconds: from one sign of life to the next; without one, until a process counts as gone; and from the moment that
# another has failed and said so until this one, which may wait for it in vain, is ended from outside.
BEAT, GONE, AFTER_WORD = 1.0, 15.0, 5.0
# What processes wait in for one another.
_MEETING = (f"torch{os.sep}distributed", f"accelerate{os.sep}utils{os.sep}operations", f"runs{os.sep}ranks")
_LIBRARIES = (os.path.dirname(os.__file__), "<")
LEFT = "left"


def patience() -> float:
    """Seconds for which processes wait for one that works on, RLHF_PATIENCE in the environment.

    Raises:
        InputError: It is no number above 0.
    """
    given = os.environ.get("RLHF_PATIENCE", "1800")
    with suppress(ValueError):
        if float(given) > 0:
            return float(given)
    raise InputError(f"RLHF_PATIENCE is {given!r}; it must be a number of seconds above 0.")


class Sign(NamedTuple):
    """What a process says of itself."""

    number: int
    host: str
    stage: str
    where: str
    """File and line of the innermost code that is no library's."""
    waits: bool
    """It waits for others."""


class Pulse:
    """The thread that gives and reads signs of life; `at` says what this process is about to do.

    The main process hears all others, and they hear it: what is wrong with one of them is said by the main process,
    what is wrong with that by the second.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._rank, self._of = accelerator.process_index, accelerator.num_processes
        self._patience = patience()
        # A connection of its own, since a process that waits by its own keeps that.
        self._store: Any = cast(Any, store()).clone()
        self._main, self._host = threading.get_ident(), socket.gethostname()
        self._stage, self._number = "the beginning", 0
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=target, daemon=True, name="tells other processes of this one")
            for target in (self._watch, self._guard)
        ]
        self._answered, self._told = time.monotonic(), False
        # Of each process what it said last, when that came, and since when it does what it does.
        self._heard: dict[int, tuple[Sign, float, float]] = {}

    def at(self, stage: str) -> None:
        self._stage = stage

    def begin(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """From now on nobody waits for a sign of this process."""
        self._ended.set()
        for thread in self._threads:
            thread.join(AFTER_WORD)
        with suppress(RuntimeError):
            self._store.set(_alive(self._rank), LEFT)

    def failed(self, error: BaseException) -> None:
        """Leaves word of an error by which this process ends, and says it."""
        where = f"rank {self._rank} of {self._of} (on {self._host}) failed in {self._stage}"
        cause = f"{where}: {type(error).__name__}: {error}"
        # Other errors say themselves.
        if not isinstance(error, TOLD):
            _say(cause)
        self._leave_word(cause)

    def left_alone(self) -> None:
        """Says which process has ended, without which this one cannot go on, if that one could not."""
        others = [rank for rank in range(self._of) if rank != self._rank]
        what = "has ended without a word: it was killed, or its machine is out of reach"
        try:
            before = {rank: self._said(rank) for rank in others}
            time.sleep(3 * BEAT)
            if self._told or self._store.check([ENDED]) or word_left():
                return
            silent = [(rank, sign) for rank, sign in before.items() if sign and self._said(rank) == sign]
            if silent and self._store.add("rlhf/says", 1) == 1:
                _say(self._gone(*silent[0], what))
        except RuntimeError:
            # With rank 0 went what keeps all that is said.
            if self._rank == 1 and 0 in self._heard and not self._told:
                _say(self._gone(0, self._heard[0][0], what))

    def _gone(self, rank: int, sign: Sign, what: str) -> str:
        return f"rank {rank} of {self._of} (on {sign.host}), last in {sign.stage} at {sign.where}, {what}"

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._told:
            if _held_up(before):
                self._heard.clear()
            before = time.monotonic()
            try:
                self._tell()
                for rank in range(self._of) if self._rank == 0 else (0,):
                    self._hear(rank)
                self._told = self._store.check([ENDED])
                self._answered = time.monotonic()
            except RuntimeError:
                # What keeps all that is said is gone: out of reach, or it ended in good order, as this process will.
                return
            if not self._told:
                self._judge()
            if self._ended.wait(BEAT):
                return
        # The main thread may wait for one that has ended, and never hear of it.
        if not self._ended.wait(AFTER_WORD):
            os._exit(1)

    def _guard(self) -> None:
        """Ends the process where what keeps all that is said answers no more, which leaves the other thread waiting."""
        before = time.monotonic()
        while not self._ended.wait(BEAT):
            if _held_up(before):
                self._answered = time.monotonic()
            before = time.monotonic()
            if before > self._answered + GONE and not self._told:
                if self._rank == 1:
                    _say(f"the machine of rank 0 has not answered for {GONE:g} seconds")
                os._exit(1)

    def _tell(self) -> None:
        self._number += 1
        where, waits = _place(sys._current_frames().get(self._main))
        self._store.set(_alive(self._rank), json.dumps(Sign(self._number, self._host, self._stage, where, waits)))

    def _hear(self, rank: int) -> None:
        sign, now = self._said(rank), time.monotonic()
        if sign is None:
            self._heard.pop(rank, None)
            return
        before, heard, since = self._heard.get(rank, (None, now, now))
        if before is None or sign.number != before.number:
            heard = now
        if before is None or (sign.stage, sign.waits) != (before.stage, before.waits):
            since = now
        self._heard[rank] = (sign, heard, since)

    def _said(self, rank: int) -> Sign | None:
        """What it said last; None before it has begun and after it has left."""
        said = self._store.get(_alive(rank)).decode() if self._store.check([_alive(rank)]) else LEFT
        return None if said == LEFT else Sign(*json.loads(said))

    def _judge(self) -> None:
        now = time.monotonic()
        for rank, (sign, heard, _) in self._heard.items():
            if rank != self._rank and now - heard > GONE:
                what = f"has given no sign of life for {GONE:g} seconds: it was killed, or its machine is out of reach"
                self._stop(self._gone(rank, sign, what), says=self._rank == (rank == 0))
        waited = [now - since for sign, _, since in self._heard.values() if sign.waits]
        working = {rank: now - since for rank, (sign, _, since) in self._heard.items() if not sign.waits}
        if self._rank == 0 and waited and working and min(*waited, *working.values()) > self._patience:
            rank = min(working)
            what = f"has not moved for {working[rank]:.0f} seconds while others wait for it"
            self._stop(
                f"{self._gone(rank, self._heard[rank][0], what)} (RLHF_PATIENCE is {self._patience:g})", says=True
            )

    def _stop(self, cause: str, *, says: bool) -> None:
        """Ends the process from outside, whatever its main thread does."""
        if says:
            _say(cause)
        self._leave_word(cause)
        os._exit(1)

    def _leave_word(self, cause: str) -> None:
        with suppress(RuntimeError):
            self._store.set(ENDED, cause)
        if self._rank == 0:
            # What keeps the word may go with this process.
            time.sleep(2.5 * BEAT)


def _held_up(before: float) -> bool:
    """This process itself stood still since then, so the silence of others tells nothing."""
    return time.monotonic() > before + AFTER_WORD


def _alive(rank: int) -> str:
    return f"rlhf/alive/{rank}"


def _say(cause: str) -> None:
    print(visible(f"error: {cause}; --resume continues from the last checkpoint."), file=sys.stderr, flush=True)


def _place(frame: FrameType | None) -> tuple[str, bool]:
    """Where this is, by file and line of the innermost code that is no library's, and whether it waits for others."""
    waits, place = False, ""
    while frame is not None:
        name = frame.f_code.co_filename
        waits = waits or any(part in name for part in _MEETING)
        if not place and not name.startswith(_LIBRARIES) and "site-packages" not in name:
            place = f"{Path(name).name}:{frame.f_lineno}"
        frame = frame.f_back
    return place, waits


class _Alone:
    """One process has nobody to tell."""

    def at(self, stage: str) -> None:
        pass


@contextmanager
def pulse(accelerator: Accelerator) -> Iterator[Pulse | _Alone]:
    """While entered, this process and the others hear of one another; all enter together.

    Raises:
        AnotherEnded: One of the others did, and it was said why.
    """
    if accelerator.num_processes == 1:
        yield _Alone()
        return
    own = Pulse(accelerator)
    own.begin()
    try:
        yield own
    except (Exception, SystemExit) as error:
        if left_alone(error):
            own.left_alone()
            raise AnotherEnded(str(error)) from error
        if not isinstance(error, Stopped):
            own.failed(error)
        raise
    finally:
        own.end()
