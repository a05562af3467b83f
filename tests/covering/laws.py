"""What every kind of run keeps, whatever its mechanisms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import rlhf

OF_THE_CLOCK = ("seconds", "steps_per_second", "memory")
Weights = Mapping[str, Tensor]
ROUNDING = {"float64": 1e-9, "float32": 1e-4, "bf16": 0.1}


class Interrupted(RuntimeError):
    """Stands for a kill between two checkpoints."""


class Interruptible:
    """What a task inherits before its own kind, to end its run at an update."""

    interrupted_at: int | None = None

    def collect(self, policy: Any, update: int, here: rlhf.Here) -> rlhf.Collected:
        if update == self.interrupted_at:
            raise Interrupted
        return super().collect(policy, update, here)  # type: ignore[misc]


@contextmanager
def quickly() -> Iterator[None]:
    """Without drawings, tables and waiting for the disk, which take longer than all the rest of a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlhf.runs.summary.write_report", lambda folder: None)
        patch.setattr("rlhf.runs.summary.print_summary", lambda folder: None)
        patch.setattr("os.fsync", lambda file: None)
        yield


def optimize_of(case: Mapping[str, str], *, budget: int, critic: bool) -> rlhf.Optimize:
    """
    Args:
        critic: There is one to learn; where the schedule is linear, at a rate of its own.
    """
    epochs, minibatches = (int(number) for number in case["steps"].split(" x "))
    return rlhf.Optimize(
        learning_rate=0.3,
        critic_learning_rate=0.1 if critic and case["schedule"] == "linear" else 0.0,
        # Far above any gradient: steps are as good as those of SGD, in which a missing factor shows and rounding does
        # not become a whole step.
        adam_eps=1.0,
        epochs=epochs,
        minibatches=minibatches,
        whiten=case["whiten"],
        micro_batch_cost=budget,
        schedule=case["schedule"],
        warmup_updates=1 if case["schedule"] == "linear" else 0,
    )


def limit_of(case: Mapping[str, str]) -> float:
    """Most by which rounding may change a step, relative to it."""
    # Conjugate gradients of a model this small enlarge rounding ten orders of magnitude (gradients agree to 1e-15).
    return max(1e-2 if case["method"] == "trpo" else 0.0, ROUNDING[case["precision"]])


class Run(NamedTuple):
    """What a law sees of a run."""

    before: Weights
    after: Weights
    """With whatever moves beside the weights, such as running moments."""
    rows: list[dict[str, Any]]
    """Metrics of the updates and evaluations."""


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def changed(before: Weights, after: Weights) -> list[str]:
    """Names of those that are not what they were, to the last bit of the precision that they are held in."""
    return [name for name in before if not torch.equal(before[name].to(after[name].dtype), after[name])]


def assert_same_change(before: Weights, one: Weights, other: Weights, *, limit: float) -> None:
    """Of all weights together, relative to how far they moved."""
    changes = [torch.cat([(after[name] - before[name]).flatten() for name in before]) for after in (one, other)]
    size = changes[0].norm()
    assert size > 0.0, "nothing moved"
    error = float((changes[0] - changes[1]).norm() / size)
    assert error <= limit, error


def assert_resumed_is_uninterrupted(whole: Run, start: Callable[..., Run]) -> None:
    """Law 6, bit for bit.

    Args:
        start: Starts the run anew in a folder of its own, with `interrupted_at` an update, or with `resume`.
    """
    with pytest.raises(Interrupted):
        start(interrupted_at=1)
    resumed = start(resume=True)
    assert not changed(whole.after, resumed.after)
    assert whole.after.keys() == resumed.after.keys()
    # It may have evaluated more often.
    for row, again in zip(whole.rows, resumed.rows, strict=True):
        row = {name: value for name, value in row.items() if not name.startswith(OF_THE_CLOCK)}
        assert {name: again.get(name) for name in row} == row
