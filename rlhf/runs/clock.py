"""How long a run takes: every second between two rows of its metrics is told in one of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping


class Clock:
    """One of a run, asked by its phases in turn."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since it was last asked, or made."""
        last, self._last = self._last, time.perf_counter()
        return self._last - last


def seconds_spent(rows: Iterable[Mapping[str, float]]) -> float:
    """Seconds that rows of metrics account for, of one phase or of several, in all processes that had a part in them.

    That is from when the run's folder was opened to its last row: the first evaluation, models that are loaded or
    fitted meanwhile, checkpoints, and all of it again in a process that resumes. Left out are what came before the
    folder (data that are read, models that are loaded first), what was done after the last checkpoint of a process that
    was killed, and the writing of the end.
    """
    return sum(value for row in rows for name, value in row.items() if name.startswith("seconds/"))
