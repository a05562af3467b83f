"""Each process of several tells the others every second that it lives and where it is. So a run ends soon, with the
cause said once, when one of them is gone, or stands still while the others wait for it.
"""

from __future__ import annotations

import itertools
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

from rlhf.errors import AnotherEnded
from rlhf.runs.console import visible
from rlhf.runs.ranks import TOLD, WORD, left_alone, patience, store
from rlhf.runs.stop import Stopped, stop_signals

# Seconds: from one sign of life to the next; without one, until a process on another machine counts as gone (which one
# call that keeps Python's lock may take, so it is not less); and from the moment that another has said that it ends,
# until this one, which may wait for it in vain, is ended from outside.
BEAT, GONE, AFTER_WORD = 1.0, 25.0, 5.0
# What processes wait for one another in: library code, and that of ours in which results are waited for.
_MEETING = (f"torch{os.sep}distributed{os.sep}", f"accelerate{os.sep}utils{os.sep}operations")
_OURS = str(Path(__file__).parents[1]) + os.sep
_WAITING = _OURS + "reduce.py"
_LIBRARIES = (str(Path(os.__file__).parent), "<")
_LEFT, _ENDED, _SAYS = "left", "ended", "says"
_pulses = itertools.count()


class Sign(NamedTuple):
    """What a process says of itself."""

    number: int
    host: str
    pid: int
    stage: str
    where: str
    """File and line of the innermost code that is no library's."""
    waits: bool
    """It waits for others."""


class Pulse:
    """What gives and reads signs of life; `at` says what this process is about to do.

    The main process hears all others, and they hear it. What is wrong with one of them the main process says; what is
    wrong with that, the second one and the first on each other machine.

    Args:
        saved: The run can be resumed.
    """

    def __init__(self, accelerator: Accelerator, *, saved: bool) -> None:
        self._rank, self._of = accelerator.process_index, accelerator.num_processes
        self._patience, self._saved = patience(), saved
        self._speaks_for_main = self._rank == 1 or accelerator.local_process_index == 0
        # Connections of their own, since a thread that waits by one keeps it.
        self._tells, self._store = (cast(Any, store()).clone() for _ in range(2))
        # An earlier run of these processes may have left words.
        self._keys = f"rlhf/pulse-{next(_pulses)}"
        self._signal_before = self._store.check([WORD])
        self._main, self._host = threading.get_ident(), socket.gethostname()
        self._stage = "the beginning"
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=target, daemon=True, name="tells other processes of this one")
            for target in (self._tell, self._watch, self._guard)
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
            self._tells.set(self._key(self._rank), _LEFT)

    def failed(self, error: BaseException) -> None:
        """Leaves word of an error by which this process ends, and says it, unless another has."""
        where = f"rank {self._rank} of {self._of} (on {self._host}) failed in {self._stage}"
        # Other errors say themselves.
        self._leave_word(f"{where}: {type(error).__name__}: {error}", says=not isinstance(error, TOLD))

    def left_alone(self, error: BaseException) -> None:
        """Says which process has ended, without which this one cannot go on, if that one could not."""
        others = [rank for rank in range(self._of) if rank != self._rank]
        what = "has ended without a word: it was killed, or its machine is out of reach"
        try:
            before = {rank: self._said(rank) for rank in others}
            for _ in range(30):
                if self._told or self._word_is_left():
                    return
                time.sleep(0.1 * BEAT)
            silent = [(rank, sign) for rank, sign in before.items() if sign and self._said(rank) == sign]
            broke = f"the connection of rank {self._rank} to another process broke ({error})"
            self._leave_word(self._gone(*silent[0], what) if silent else broke, says=True)
        except RuntimeError:
            # With rank 0 went what keeps all that is said; a signal that came here as well says why.
            signals = stop_signals()
            stopped = signals is not None and signals.received
            if self._speaks_for_main and 0 in self._heard and not self._told and not stopped:
                self._say(self._gone(0, self._heard[0][0], what))

    def _key(self, name: object) -> str:
        return f"{self._keys}/{name}"

    def _gone(self, rank: int, sign: Sign, what: str) -> str:
        return f"rank {rank} of {self._of} (on {sign.host}), last in {sign.stage} at {sign.where}, {what}"

    def _tell(self) -> None:
        for number in itertools.count():
            where, waits = _place(sys._current_frames().get(self._main))
            sign = Sign(number, self._host, os.getpid(), self._stage, where, waits)
            try:
                self._tells.set(self._key(self._rank), json.dumps(sign))
            except RuntimeError:
                return
            if self._ended.wait(BEAT):
                return

    def _watch(self) -> None:
        while not self._told:
            before = time.monotonic()
            try:
                for rank in range(self._of) if self._rank == 0 else (0,):
                    self._hear(rank)
                    self._answered = time.monotonic()
                self._told = self._word_is_left()
                self._answered = time.monotonic()
            except RuntimeError:
                # What keeps all that is said is gone: out of reach, or it ended in good order, as this process will.
                return
            if not self._told:
                self._judge()
            if self._ended.wait(BEAT):
                return
            if time.monotonic() > before + AFTER_WORD:
                # This process itself was held up, so the silence of others tells nothing.
                self._heard.clear()
        # The main thread may wait for one that has ended, and never hear of it.
        if not self._ended.wait(AFTER_WORD):
            os._exit(1)

    def _guard(self) -> None:
        """Ends the process where what keeps all that is said answers no more: the other threads wait for it."""
        before = time.monotonic()
        while not self._ended.wait(BEAT):
            now = time.monotonic()
            if now > before + AFTER_WORD:
                self._answered = now
            before = now
            if now > self._answered + GONE and not self._told:
                if self._speaks_for_main:
                    self._say(f"the machine of rank 0 has not answered for {GONE:g} seconds")
                os._exit(1)

    def _hear(self, rank: int) -> None:
        sign, now = self._said(rank), time.monotonic()
        if sign is None:
            self._heard.pop(rank, None)
            return
        before, heard, since = self._heard.get(rank, (None, now, now))
        if before is None or sign.number != before.number or self._lives(sign):
            heard = now
        if before is None or (sign.stage, sign.waits) != (before.stage, before.waits):
            since = now
        self._heard[rank] = (sign, heard, since)

    def _said(self, rank: int) -> Sign | None:
        """What it said last; None before it has begun and after it has left."""
        key = self._key(rank)
        said = self._store.get(key).decode() if self._store.check([key]) else _LEFT
        return None if said == _LEFT else Sign(*json.loads(said))

    def _word_is_left(self) -> bool:
        """One of them ends by an error, or by a signal, and says why."""
        by_signal = not self._signal_before and self._store.check([WORD])
        return by_signal or self._store.check([self._key(_ENDED)])

    def _lives(self, sign: Sign) -> bool:
        """Whether it is a process of this machine and is there, silent though it may be."""
        if sign.host != self._host:
            return False
        try:
            os.kill(sign.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            pass
        return True

    def _judge(self) -> None:
        now = time.monotonic()
        for rank, (sign, heard, _) in self._heard.items():
            if rank != self._rank and now - heard > GONE:
                what = f"has given no sign of life for {GONE:g} seconds: it was killed, or its machine is out of reach"
                self._stop(self._gone(rank, sign, what), says=self._rank == 0 or self._speaks_for_main)
        waited = [now - since for sign, _, since in self._heard.values() if sign.waits]
        working = {rank: now - since for rank, (sign, _, since) in self._heard.items() if not sign.waits}
        if self._rank == 0 and waited and working and min(*waited, *working.values()) > self._patience:
            rank = min(working)
            what = f"works for {working[rank]:.0f} seconds while others wait for it"
            cause = f"{self._gone(rank, self._heard[rank][0], what)} (RLHF_PATIENCE is {self._patience:g})"
            self._stop(cause, says=True)

    def _stop(self, cause: str, *, says: bool) -> None:
        """Ends the process from outside, whatever its main thread does."""
        self._leave_word(cause, says=says)
        os._exit(1)

    def _leave_word(self, cause: str, *, says: bool) -> None:
        """Tells the others to end, and says why if none of them has."""
        with suppress(RuntimeError):
            says = says and self._tells.add(self._key(_SAYS), 1) == 1
            self._tells.set(self._key(_ENDED), cause)
        if says:
            self._say(cause)
        if self._rank == 0:
            # What keeps the word may go with this process.
            time.sleep(2.5 * BEAT)

    def _say(self, cause: str) -> None:
        hint = "; --resume continues from the last checkpoint" if self._saved else ""
        print(visible(f"error: {cause}{hint}."), file=sys.stderr, flush=True)


def _place(frame: FrameType | None) -> tuple[str, bool]:
    """Where this is, by file and line of the innermost code that is no library's, and whether it waits for others
    there."""
    waits = False
    while frame is not None:
        name = frame.f_code.co_filename
        waits = waits or any(part in name for part in _MEETING)
        own = name.startswith(_OURS) or not (name.startswith(_LIBRARIES) or "site-packages" in name)
        if own:
            return f"{Path(name).name}:{frame.f_lineno}", waits or name == _WAITING
        frame = frame.f_back
    return "", waits


class _Alone:
    """One process has nobody to tell."""

    def at(self, stage: str) -> None:
        pass


@contextmanager
def pulse(accelerator: Accelerator, *, saved: bool) -> Iterator[Pulse | _Alone]:
    """While entered, this process and the others hear of one another; all enter together.

    Raises:
        AnotherEnded: One of the others did, and it was said why.
    """
    if accelerator.num_processes == 1:
        yield _Alone()
        return
    own = Pulse(accelerator, saved=saved)
    own.begin()
    try:
        yield own
    except (Exception, SystemExit) as error:
        if left_alone(error):
            own.left_alone(error)
            raise AnotherEnded(str(error)) from error
        if not isinstance(error, Stopped):
            own.failed(error)
        raise
    finally:
        own.end()
