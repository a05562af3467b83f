"""Stopping in good order: SIGTERM and Ctrl-C become a question the loop asks after each update."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, NoReturn

from rlhf.deferred import deferred

with deferred():
    import torch
    from accelerate import Accelerator

    from rlhf.reduce import global_max
    from rlhf.runs.ranks import leave_word, left_alone, word_left


class Stopped(Exception):
    """The run was asked to stop and did; `status` is the exit status the shell expects.

    Args:
        saved: After the update in hand was done and saved; else it was given up.
    """

    def __init__(self, number: int, *, saved: bool = True) -> None:
        place = "here" if saved else "the last checkpoint"
        super().__init__(f"stopped by {signal.Signals(number).name}; --resume continues from {place}.")
        self.status, self.saved = 128 + number, saved


class StopSignals:
    """While entered, SIGTERM and the first Ctrl-C only set a flag; the second Ctrl-C interrupts at once."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.received = 0
        self._agreed = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        # Python lets only the main thread handle signals; in any other one nobody asks us to stop.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if isinstance(error, Stopped) and not error.saved:
            leave_word(error.status - 128)
        elif isinstance(error, KeyboardInterrupt):
            leave_word(signal.SIGINT)
        elif left_alone(error):
            # Another process ended while this one waited for it: of the signal that this one may have got as well.
            number = self.received or word_left()
            if number:
                raise Stopped(number, saved=False) from None

    def requested(self) -> bool:
        """Whether any rank was asked to stop; every rank must call this, and all get the same answer."""
        received = torch.tensor(self.received, device=self._accelerator.device)
        self._agreed = int(global_max(self._accelerator, received))
        return self._agreed != 0

    def stop(self) -> NoReturn:
        """Raises Stopped for the signal on which the ranks agreed."""
        raise Stopped(self._agreed)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        if self._accelerator.is_main_process:
            # A handler may run in the middle of a print, so it writes past the buffers.
            again = " Ctrl-C again stops at once." if number == signal.SIGINT else ""
            with suppress(OSError):
                os.write(2, f"\nStopping after this update.{again}\n".encode())


def stop_signals() -> StopSignals | None:
    """What heeds signals at present."""
    found = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return found if isinstance(found, StopSignals) else None
