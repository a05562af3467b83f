"""Sums over all ranks: what makes a number the same on one process and on many."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlhf.core.masked import largest, standardise

# Numbers that ranks add up at once, at least: one message of many small ones.
_BUCKET = 2**22


def global_sum(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """The sum of every rank's `tensor`; all ranks must call it, with one shape."""
    return tensor if accelerator.num_processes == 1 else accelerator.reduce(tensor, reduction="sum")


def global_max(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """The elementwise maximum of every rank's `tensor`; all ranks must call it, with one shape."""
    if accelerator.num_processes == 1:
        return tensor
    return accelerator.gather(tensor.unsqueeze(0)).amax(dim=0)


def anywhere(accelerator: Accelerator, here: bool) -> bool:
    """Whether it is so on any rank."""
    if accelerator.num_processes == 1:
        return here
    return bool(global_max(accelerator, torch.tensor(int(here), device=accelerator.device)))


def global_gradients(accelerator: Accelerator, parameters: Iterable[nn.Parameter]) -> None:
    """Makes every `.grad` the sum of all ranks'; all must hold gradients of the same parameters."""
    if accelerator.num_processes == 1:
        return
    bucket: list[Tensor] = []
    for gradient in [*(parameter.grad for parameter in parameters if parameter.grad is not None), None]:
        if bucket and (gradient is None or gradient.dtype != bucket[0].dtype or _numbers(bucket) > _BUCKET):
            total = accelerator.reduce(torch.cat([each.flatten() for each in bucket]), reduction="sum")
            for each, part in zip(bucket, total.split([each.numel() for each in bucket]), strict=True):
                each.copy_(part.view_as(each))
            bucket = []
        if gradient is not None:
            bucket.append(gradient)


def _numbers(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def gather_rows(accelerator: Accelerator, rows: Tensor) -> tuple[Tensor, int]:
    """All ranks' `(B,)` tensors end to end in rank order, and where this rank's part starts."""
    if accelerator.num_processes == 1:
        return rows, 0
    counts = accelerator.gather(torch.tensor([rows.shape[0]], device=rows.device)).tolist()
    padded = rows.new_zeros(max(counts))
    padded[: rows.shape[0]] = rows
    parts = accelerator.gather(padded).view(len(counts), -1)
    whole = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
    return whole, sum(counts[: accelerator.process_index])


def global_moments(accelerator: Accelerator, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance of the masked cells of all ranks, float64, in two passes."""
    cells = x.double().masked_fill(~mask, 0.0)
    total = global_sum(accelerator, torch.stack([cells.sum(), mask.sum().double()]))
    count = total[1].clamp(min=1.0)
    mean = total[0] / count
    squares = (cells - mean).square().masked_fill(~mask, 0.0).sum()
    return mean, global_sum(accelerator, squares) / count


def advantage_metrics(accelerator: Accelerator, advantages: Tensor, mask: Tensor) -> dict[str, float]:
    """What is logged of the advantages that a policy learns from, before they are whitened."""
    mean, variance = global_moments(accelerator, advantages, mask)
    return {"advantage_mean": float(mean), "advantage_std": float(variance.sqrt())}


def global_whiten(accelerator: Accelerator, x: Tensor, mask: Tensor, *sources: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the masked cells of all ranks; cells that are equal, to the rounding of the largest of
    them and of the `sources` that x was computed from, become exactly 0."""
    # Shifted by one of their own values, equal cells are 0 before anything can round.
    cells = torch.cat([x[mask], x.new_full((1,), -torch.inf)])
    peak, size = global_max(accelerator, torch.stack([cells.amax(), largest(mask, x, *sources)]))
    shifted = (x - peak).masked_fill(~mask, 0.0)
    mean, variance = global_moments(accelerator, shifted, mask)
    return standardise(shifted, mask, mean=mean, variance=variance, size=size)


class MetricSums:
    """Adds up metrics over micro-batches, `(B, T)` of actions or `(B,)` of rows; `reduce` makes them global numbers.

    A name that ends in `_max` is reduced by maximum, one in `_per_episode` is summed and divided by the episodes
    that ended, every other is averaged: over the mask, or over the rows that have an action in it.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._of_rows: set[str] = set()
        self._count: Tensor | int = 0
        self._rows: Tensor | int = 0
        self._episodes: Tensor | int = 0

    def add(self, metrics: dict[str, Tensor], mask: Tensor, dones: Tensor | None = None) -> None:
        of_rows = {name: values for name, values in metrics.items() if values.dim() == 1}
        if of_rows:
            self._add_rows(of_rows, mask.any(dim=1))
        self._add_cells({name: values for name, values in metrics.items() if name not in of_rows}, mask, dones)

    def _add_rows(self, metrics: dict[str, Tensor], acted: Tensor) -> None:
        self._of_rows |= metrics.keys()
        self._rows = self._rows + acted.sum()
        for name, values in metrics.items():
            total = values.detach().double().masked_fill(~acted, 0.0).sum()
            self._sums[name] = self._sums[name] + total if name in self._sums else total

    def _add_cells(self, metrics: dict[str, Tensor], mask: Tensor, dones: Tensor | None) -> None:
        if not metrics:
            return
        cells = torch.stack([cell.detach() for cell in metrics.values()]).flatten(1).double()
        outside = ~mask.flatten()
        sums = cells.masked_fill(outside, 0.0).sum(dim=1)
        peaks = cells.masked_fill(outside, -torch.inf).amax(dim=1)
        for i, name in enumerate(metrics):
            if name.endswith("_max"):
                self._sums[name] = torch.maximum(self._sums[name], peaks[i]) if name in self._sums else peaks[i]
            else:
                self._sums[name] = self._sums[name] + sums[i] if name in self._sums else sums[i]
        self._count = self._count + mask.sum()
        if dones is not None:
            self._episodes = self._episodes + (dones & mask).sum()

    def reduce(self, accelerator: Accelerator) -> dict[str, float]:
        """The metrics as numbers, the same on every rank; every rank must hold the same names."""
        names = list(self._sums)
        zero = torch.zeros((), dtype=torch.float64, device=accelerator.device)
        values = torch.stack([*self._sums.values(), zero + self._count, zero + self._rows, zero + self._episodes])
        sums = global_sum(accelerator, values).tolist()
        # A maximum over no cell at all is -inf on a rank that only pads; the sum is not used for those names.
        peaks = global_max(accelerator, values).tolist()
        count, rows, episodes = (max(each, 1.0) for each in sums[-3:])
        metrics = {}
        for i, name in enumerate(names):
            if name.endswith("_max"):
                metrics[name] = peaks[i]
            else:
                of = rows if name in self._of_rows else count
                metrics[name] = sums[i] / (episodes if name.endswith("_per_episode") else of)
        return metrics
