"""Errors by which a run ends in good order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Bad input: the message says what was given, what is needed and what to do.

    Recipes print the message without a traceback and exit with status 2; nothing has been changed on disk.
    """


class NonFiniteError(RuntimeError):
    """A number that training depends on is NaN or infinite; the message names the tensor and the samples."""


class DiskError(OSError):
    """The disk under a run's folder refused: the message says where, why, what is kept and how to go on.

    Recipes print the message without a traceback and exit with status 4.
    """


class EndpointError(RuntimeError):
    """A server that a reward asks fails for good: the message says which, and what came.

    Recipes print the message without a traceback and exit with status 1; what was answered before is kept.
    """


class AnotherEnded(RuntimeError):
    """Another process has ended, so this one cannot go on; why was said."""


class UserExit(RuntimeError):
    """Code of the user's called `sys.exit`, which would end the run as if all were well; the cause says where."""


# What torch and numpy say where memory ends, beside MemoryError.
MEMORY_ENDED = (
    *("out of memory", "can't allocate memory", "not enough memory", "size calculation overflowed"),
    *("integer multiplication overflow", "array is too big", "Maximum allowed dimension"),
)


def memory_ended(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(text in str(error) for text in MEMORY_ENDED)


@contextmanager
def no_exit(what: str) -> Iterator[None]:
    """Inside, `sys.exit` is an error like any other.

    Args:
        what: Whose code it is, such as reward function NAME.
    """
    try:
        yield
    except SystemExit as left:
        raise UserExit(
            f"{what} called exit({'' if left.code is None else repr(left.code)}), which no run does."
        ) from left
