"""What an evaluation returns, and how a curve is judged: when it reaches a threshold, and when it stays there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np


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


def judged(steps: Sequence[int], means: Sequence[float], threshold: float) -> dict[str, float | None]:
    """A learning curve in four numbers; the share is over all evaluations, that of the start included."""
    return {
        "first_hit_step": first_hit(steps, means, threshold),
        "stays_from_step": stays_from(steps, means, threshold),
        "share_of_evaluations_solved": sum(mean >= threshold for mean in means) / len(means),
        "best_eval_return_mean": max(means),
    }


def interquartile_mean(scores: Sequence[float] | np.ndarray) -> float:
    """Mean of the middle half of runs, which one lucky or failed run does not move (Agarwal et al., 2021, section 4.3;
    https://arxiv.org/abs/2108.13264). A quarter that is no whole number of runs counts in part.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    edges = np.arange(len(ordered) + 1)
    quarter = len(ordered) / 4
    shares = np.clip(np.minimum(edges[1:], len(ordered) - quarter) - np.maximum(edges[:-1], quarter), 0.0, 1.0)
    return float((shares * ordered).sum() / shares.sum())


def bootstrap_interval(
    scores: Sequence[float] | np.ndarray, *, statistic: Callable[[np.ndarray], float], seed: int, resamples: int = 2000
) -> tuple[float, float]:
    """95 % percentile interval of a statistic of runs, from as many runs drawn again with replacement (Efron, 1979)."""
    values = np.asarray(scores, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    statistics = [statistic(values[rows]) for rows in drawn]
    low, high = np.quantile(statistics, (0.025, 0.975))
    return float(low), float(high)
