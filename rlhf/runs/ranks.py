"""What the main process does for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from rlhf.errors import DiskError, InputError, NonFiniteError

T = TypeVar("T")
# Errors that end every rank as they end the main process; any other is a RuntimeError there.
TOLD: tuple[type[Exception], ...] = (InputError, DiskError, NonFiniteError)


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
        raise RuntimeError(f"the main process failed: {message}") if kind is None else TOLD[kind](message)
    return result
