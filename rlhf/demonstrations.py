"""Deals demonstrations out as rollouts, so that cloning runs through the same loop as every other method."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator

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

    Sample ids are those of the demonstrations; where a rollout runs into the next epoch, that epoch's are raised by
    one range of ids, so that no two rows of a rollout share one.
    """

    def __init__(self, rollout: Rollout, *, rows_per_update: int, seed: int, accelerator: Accelerator) -> None:
        require_rows(rollout.mask.shape[0], rows_per_update, accelerator)
        self.rollout = rollout.to(torch.device("cpu"))
        self.rows_per_update, self.seed, self.accelerator = rows_per_update, seed, accelerator

    def collect(self, policy: Any, update: int) -> Collected:
        num_rows = self.rollout.mask.shape[0]
        share = self.rows_per_update // self.accelerator.num_processes
        first = update * self.rows_per_update
        start = first + share * self.accelerator.process_index
        rows = epoch_rows(self.seed, "demonstrations", num_rows=num_rows, start=start, count=share)
        epochs_ahead = torch.arange(start, start + share) // num_rows - first // num_rows
        chosen = self.rollout.rows(rows)
        id_range = int(self.rollout.sample_ids.max()) + 1
        chosen = replace(chosen, sample_ids=chosen.sample_ids + epochs_ahead * id_range)
        epoch = (first + self.rows_per_update) / num_rows
        return Collected(chosen.to(self.accelerator.device), {"epoch": epoch, "episodes": self.rows_per_update}, [])

    def state_dict(self) -> dict[str, Any]:
        """Nothing: what an update takes follows from its number."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def close(self) -> None:
        """Nothing is held open."""
