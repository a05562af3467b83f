"""User code that may wait for long, such as a reward that asks an endpoint: SIGTERM and time limits reach it."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from rlhf.errors import InputError
from rlhf.runs.ranks import leave_word
from rlhf.runs.stop import Stopped, stop_signals

# Seconds after SIGTERM: until then what waits may come back by itself, so that the update in hand is saved; from then
# on it is interrupted; and at last the process ends from outside, whatever its main thread does.
PATIENCE, END = 0.75, 1.5
# Ignored by default, and by hardly anybody used: what interrupts the main thread where it stands.
_INTERRUPT: int = getattr(signal, "SIGURG", 0)


class Interrupted(BaseException):
    """Raised inside user code; no Exception, since what asks endpoints catches those and tries again."""


class Waiting:
    """While entered, SIGTERM ends what runs inside within two seconds, with `Stopped`; `limit` sets a time limit.

    A thread watches from beside. It reads of signals from where the interpreter writes them, since the main thread may
    wait in a library for long before it handles one. Outside the main thread nothing is
    watched, and limits are refused.
    """

    def __init__(self) -> None:
        self._watched = bool(_INTERRUPT) and threading.current_thread() is threading.main_thread()
        self._main = threading.get_ident()
        self._inside = False
        self._told = 0.0
        self._deadline = 0.0

    def __enter__(self) -> Waiting:
        if not self._watched:
            return self
        signals = stop_signals()
        self._heeds_sigterm = signals is not None
        if signals is not None and signals.received == signal.SIGTERM:
            self._told = time.monotonic()
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._previous_handler = signal.signal(_INTERRUPT, self._interrupt)
        self._previous_descriptor = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watches rewards")
        self._inside = True
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._inside = False
        if not self._watched:
            return
        signal.set_wakeup_fd(self._previous_descriptor)
        signal.signal(_INTERRUPT, self._previous_handler)
        self._writer.close()
        self._thread.join()
        self._reader.close()
        # What was interrupted may have made another error of it.
        if error is not None and self._ends():
            raise Stopped(signal.SIGTERM, saved=False) from error

    @contextmanager
    def limit(self, seconds: float, what: str) -> Iterator[None]:
        """Inside, `what` has so many seconds; 0 is no limit.

        Raises:
            TimeoutError: It took longer.
        """
        if not seconds:
            yield
            return
        if not self._watched:
            raise InputError(
                "a time limit on rewards needs the main thread of the process; train there, or set it to 0."
            )
        deadline = self._deadline = time.monotonic() + seconds
        try:
            try:
                yield
            finally:
                self._deadline = 0.0
        except BaseException as error:
            if time.monotonic() < deadline or self._ends() or isinstance(error, KeyboardInterrupt):
                raise
            raise TimeoutError(f"{what} took more than {seconds:g} seconds.") from error
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{what} took more than {seconds:g} seconds.")

    def _ends(self) -> bool:
        return bool(self._told) and time.monotonic() > self._told + PATIENCE

    def _watch(self) -> None:
        while True:
            ready, _, _ = select.select([self._reader], [], [], 0.2)
            numbers = self._reader.recv(64) if ready else None
            if numbers == b"":
                return
            if numbers and signal.SIGTERM in numbers and self._heeds_sigterm and not self._told:
                self._told = time.monotonic()
            if self._told and time.monotonic() > self._told + END:
                leave_word(signal.SIGTERM)
                os.write(
                    2, b"stopped by SIGTERM in code that does not end; --resume continues from the last checkpoint.\n"
                )
                os._exit(128 + signal.SIGTERM)
            if self._ends() or 0.0 < self._deadline < time.monotonic():
                signal.pthread_kill(self._main, _INTERRUPT)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._inside and (self._ends() or 0.0 < self._deadline < time.monotonic()):
            raise Interrupted
