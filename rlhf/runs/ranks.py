"""What the main process does for all of them, and how they learn that one of them has ended."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from rlhf.errors import AnotherEnded, DiskError, InputError, NonFiniteError

T = TypeVar("T")
# Errors that end every rank as they end the main process; any other is a RuntimeError there.
TOLD: tuple[type[Exception], ...] = (InputError, DiskError, NonFiniteError)
# What gloo says in a process that waits for another which has ended.
PEER_ENDED = ("closed by peer", "reset by peer", "Broken pipe")
# Seconds for which collectives of gloo wait: those who meet may have worked for long, and one that ends is noticed.
_LONG = 7 * 24 * 3600.0
# In the store by which the processes found each other: the signal that ended one which could not agree with the others.
WORD = "rlhf/ended-by-signal"


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


def have_patience(accelerator: Accelerator) -> None:
    """Lets collectives wait as long: on GPUs, where one that ends is not noticed, for `patience()`; else for days."""
    seconds = patience()
    if accelerator.num_processes > 1:
        limit = timedelta(seconds=seconds if accelerator.device.type == "cuda" else _LONG)
        torch.distributed.distributed_c10d._set_pg_timeout(limit)


def on_main(accelerator: Accelerator, act: Callable[[], T]) -> T:
    """What `act` returns on the main process, on every rank; its errors reach every rank too, so that none waits."""
    if accelerator.num_processes == 1:
        return act()
    outcome: list[Any] = [None, None, None]
    raised: Exception | None = None
    if accelerator.is_main_process:
        try:
            outcome[0] = act()
        except Exception as error:
            raised = error
            outcome[1:] = [next((i for i, kind in enumerate(TOLD) if isinstance(error, kind)), None), str(error)]
    broadcast_object_list(outcome)
    if raised is not None:
        raise raised
    result, kind, message = outcome
    if message is not None:
        raise AnotherEnded(f"the main process failed: {message}") if kind is None else TOLD[kind](message)
    return result


def left_alone(error: BaseException | None) -> bool:
    """Whether it was raised because another process, with which this one was to exchange something, has ended."""
    if isinstance(error, AnotherEnded):
        return True
    said = str(error) if isinstance(error, RuntimeError) else ""
    return "gloo" in said and any(text in said for text in PEER_ENDED)


def leave_word(number: int) -> None:
    """Tells the other processes, which may wait for this one in vain, that this signal ends it."""
    if torch.distributed.is_initialized():
        # It may have been kept by a process that has ended.
        with suppress(RuntimeError):
            store().set(WORD, str(number))


def word_left() -> int:
    """The signal that ended another process, if it could leave word of it; else 0."""
    with suppress(RuntimeError):
        if store().check([WORD]):
            return int(store().get(WORD))
    return 0


def store() -> torch.distributed.Store:
    return torch.distributed.distributed_c10d._get_default_store()
