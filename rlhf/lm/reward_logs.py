"""What reward functions say beside their scores: columns of the samples, and numbers that are logged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from rlhf.errors import InputError
from rlhf.lm.payments import plain

LOGGING = ("log_extra", "log_metric")
"""What a reward function may name to be given: `log_extra(column, values)` with one value a sample, which samples.jsonl
shows, and `log_metric(name, value)`, whose mean over all calls and processes is logged, each by its samples."""

Weighed = tuple[float, int]
"""A number, and of how many samples it is."""


class RewardLog:
    """Of one call of all functions.

    Args:
        num_samples: How many samples each function was given.
    """

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self.extra: dict[str, list[Any]] = {}
        self.metrics: dict[str, list[Weighed]] = {}

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """Raises InputError unless there is a number, a text or None for each sample."""
        found = plain(column, values)
        if not isinstance(found, list) or len(found) != self.num_samples:
            said = f"{len(found)} values" if isinstance(found, list) else type(found).__name__
            raise InputError(f"log_extra({column!r}, ...) was given {said} for {self.num_samples} samples.")
        self.extra[str(column)] = [self._readable(column, plain(column, value)) for value in found]

    def log_metric(self, name: str, value: float) -> None:
        """Raises InputError unless it is a finite number."""
        number = plain(name, value)
        if isinstance(number, bool) or not isinstance(number, Real) or not math.isfinite(number):
            raise InputError(f"log_metric({name!r}, ...) was given {value!r:.60}; it takes a finite number.")
        self.metrics.setdefault(str(name), []).append((float(number), self.num_samples))

    def _readable(self, column: str, value: Any) -> Any:
        if value is None or isinstance(value, str | bool | int):
            return value
        if isinstance(value, float) and math.isfinite(value):
            return value
        raise InputError(
            f"log_extra({column!r}, ...) was given {value!r:.60}; a value must be a text, a finite number or None."
        )


def mean_metrics(metrics: dict[str, list[Weighed]], accelerator: Accelerator, prefix: str) -> dict[str, float]:
    """The mean of each over all samples of all processes, which all must call this."""
    everyone = gather_object([metrics]) if accelerator.num_processes > 1 else [metrics]
    names = sorted({name for one in everyone for name in one})
    together = {name: [value for one in everyone for value in one.get(name, [])] for name in names}
    return {
        f"{prefix}{name}": sum(value * size for value, size in values) / sum(size for _, size in values)
        for name, values in together.items()
    }
