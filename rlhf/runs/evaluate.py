"""What an evaluation returns, and how a curve is judged: when it reaches a threshold, and when it stays there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Evaluation(NamedTuple):
    """Flat metrics (`eval_return_mean`, ...) and one record a sample for people to read."""

    metrics: dict[str, float]
    samples: list[dict[str, Any]]


def first_hit(steps: Sequence[int], means: Sequence[float], threshold: float) -> int | None:
    """The first evaluated step with a mean of at least `threshold`; None if there is none."""
    return next((step for step, mean in zip(steps, means, strict=True) if mean >= threshold), None)


def stays_from(steps: Sequence[int], means: Sequence[float], threshold: float) -> int | None:
    """The first evaluated step from which every later mean is at least `threshold`; None if the last is below it."""
    found = None
    for step, mean in zip(reversed(steps), reversed(means), strict=True):
        # Negated, so that NaN counts as below.
        if not mean >= threshold:
            break
        found = step
    return found
