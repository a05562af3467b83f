"""The order in which a data set is gone through: every epoch a hashed shuffle of all its rows."""

import torch
from jaxtyping import Int64
from torch import Tensor

from rlhf.core.random import hashed_order


def epoch_rows(seed: int, purpose: str, *, num_rows: int, start: int, count: int) -> Int64[Tensor, " count"]:
    """Entries `start .. start + count - 1` of all epochs laid end to end, as row numbers.

    A function of the position alone, so a run resumes without saved state and ranks take what parts they like.
    """
    slots = torch.arange(start, start + count)
    epochs = slots // num_rows
    rows = torch.empty_like(slots)
    for epoch in epochs.unique().tolist():
        order = hashed_order(seed, purpose, epoch, torch.arange(num_rows))
        here = epochs == epoch
        rows[here] = order[slots[here] % num_rows]
    return rows
