"""Deals demonstrations out as rollouts, so that cloning runs through the same loop as every other method."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf.core.epochs import epoch_rows
from rlhf.errors import InputError
from rlhf.rollout import Collected, Rollout


def require_rows(num_rows: int, rows_per_update: int, accelerator: Accelerator) -> None:
    """Refuses fewer rows than one update needs, or a number of them that processes cannot share.

    Raises:
        InputError: With the numbers.
    """
    if rows_per_update < 1 or rows_per_update > num_rows:
        raise InputError(
            f"rows_per_update is {rows_per_update} and there are {num_rows} demonstrations; take at least 1 row "
            "and at most all of them."
        )
    if rows_per_update % accelerator.num_processes:
        raise InputError(
            f"rows_per_update is {rows_per_update}, which {accelerator.num_processes} processes cannot share "
            "evenly; make it a multiple of them."
        )


class DemonstrationCollector:
    """Update u takes the next `rows_per_update` rows, in another hashed order each epoch; ranks share them evenly.

    Sample ids and groups are those of the demonstrations; where a rollout runs into the next epoch, that epoch's are
    raised by one range of them, so that no two rows of a rollout share one.

    Args:
        size: Rows side by side that count as one, such as those of a pair.
    """

    def __init__(
        self, rollout: Rollout, *, rows_per_update: int, seed: int, accelerator: Accelerator, size: int = 1
    ) -> None:
        require_rows(rollout.mask.shape[0] // size, rows_per_update, accelerator)
        self.rollout, self.size = rollout.to(torch.device("cpu")), size
        self.rows_per_update, self.seed, self.accelerator = rows_per_update, seed, accelerator

    def collect(self, policy: Any, update: int) -> Collected:
        num_rows = self.rollout.mask.shape[0] // self.size
        share = self.rows_per_update // self.accelerator.num_processes
        first = update * self.rows_per_update
        start = first + share * self.accelerator.process_index
        rows = epoch_rows(self.seed, "demonstrations", num_rows=num_rows, start=start, count=share)
        epochs_ahead = torch.arange(start, start + share) // num_rows - first // num_rows
        chosen = self.rollout.rows((rows.unsqueeze(1) * self.size + torch.arange(self.size)).flatten())
        epochs_ahead = epochs_ahead.repeat_interleave(self.size)
        chosen = replace(
            chosen,
            sample_ids=_raised(chosen.sample_ids, self.rollout.sample_ids, epochs_ahead),
            groups=None if chosen.groups is None else _raised(chosen.groups, self.rollout.groups, epochs_ahead),
        )
        epoch = (first + self.rows_per_update) / num_rows
        return Collected(chosen.to(self.accelerator.device), {"epoch": epoch, "episodes": self.rows_per_update}, [])

    def state_dict(self) -> dict[str, Any]:
        """Nothing: what an update takes follows from its number."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def close(self) -> None:
        """Nothing is held open."""


def _raised(ids: Tensor, all_ids: Tensor | None, epochs_ahead: Tensor) -> Tensor:
    assert all_ids is not None
    return ids + epochs_ahead * (int(all_ids.max()) + 1)
