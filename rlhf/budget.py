"""Rows in micro-batches: what one forward pass takes stays within a budget, padding included."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from rlhf.reduce import global_max
from rlhf.rollout import Batch

Passed = Callable[[int, int], int]


def passed_by(policy: Any, inputs: dict[str, Tensor]) -> Passed | None:
    """What a pass over the rows from one number up to another takes; None where each row takes its cost and no more.

    A policy that pads or packs its rows says so by `passed(inputs)`.
    """
    module = bare(policy)
    return module.passed(inputs) if hasattr(module, "passed") else None


def bare(policy: Any) -> Any:
    """The policy without what data parallelism puts around it."""
    return policy.module if isinstance(policy, DistributedDataParallel) else policy


def micro_batches(
    costs: Tensor, budget: int, blocks: Tensor | None = None, *, passed: Passed | None = None
) -> list[Tensor]:
    """Row indices in order, cut so that each part's costs, and what a pass over it takes, stay within `budget` (a
    costlier block stands alone).

    Args:
        blocks: `(B,)`, side by side: where not to cut; None: each row stands alone.
        passed: As from `passed_by`.
    """
    num_rows = costs.shape[0]
    if num_rows == 0:
        return []
    if int(costs.sum()) <= budget and (passed is None or passed(0, num_rows) <= budget):
        return [torch.arange(num_rows, device=costs.device)]
    sizes = [1] * num_rows if blocks is None else blocks.unique_consecutive(return_counts=True)[1].tolist()
    ends = list(accumulate(sizes))
    spent = [0, *accumulate(costs.tolist())]
    parts, first, start = [], 0, 0
    while start < num_rows:
        last = first
        while last + 1 < len(ends) and spent[ends[last + 1]] - spent[start] <= budget:
            last += 1
        if passed is not None and passed(start, ends[last]) > budget:
            last = _halved(start, ends, first, last, budget, passed)
        parts.append(torch.arange(start, ends[last], device=costs.device))
        first, start = last + 1, ends[last]
    return parts


def _halved(start: int, ends: list[int], first: int, last: int, budget: int, passed: Passed) -> int:
    """The last block up to whose end a pass stays within the budget, as far as halving finds it; the first in any
    case."""
    while last - first > 1:
        middle = (first + last) // 2
        if passed(start, ends[middle]) <= budget:
            first = middle
        else:
            last = middle
    return first


def even_micro_batches(
    rows: Batch, filler: Batch, *, accelerator: Accelerator, micro_batch_cost: int, policy: Any = None
) -> list[Batch]:
    """This rank's rows in micro-batches, as many on every rank: what is missing is `filler` without weight or mask.

    Where one does not do, the costliest rows come first: rows padded to one length are nearly of that length anyway,
    and if memory ends, then before work was done for nothing.

    Args:
        policy: What will score them; None: each row takes its cost and no more.
    """

    def parts_of(rows: Batch) -> list[Tensor]:
        return micro_batches(rows.costs, micro_batch_cost, rows.blocks, passed=passed_by(policy, rows.inputs))

    parts = parts_of(rows)
    if len(parts) > 1:
        rows = rows.rows(_costliest_first(rows))
        parts = parts_of(rows)
    most = int(global_max(accelerator, torch.tensor(len(parts), device=rows.costs.device)))
    batches = [rows] if len(parts) == 1 else [rows.rows(part) for part in parts]
    return batches + [_weightless(filler)] * (most - len(parts))


def _costliest_first(rows: Batch) -> Tensor:
    """Row indices by falling cost; those of a block, which counts by its costliest row, stay side by side."""
    if rows.blocks is None:
        return rows.costs.argsort(descending=True, stable=True)
    _, block_of = rows.blocks.unique_consecutive(return_inverse=True)
    most = torch.zeros_like(rows.costs).scatter_reduce(0, block_of, rows.costs, "amax", include_self=False)
    return most[block_of].argsort(descending=True, stable=True)


def filler_of(batch: Batch) -> Batch:
    """The first row, or block of rows: what ranks with fewer micro-batches run without weight."""
    if batch.blocks is None:
        return batch.rows(torch.zeros(1, dtype=torch.int64, device=batch.mask.device))
    return batch.rows(batch.blocks == batch.blocks[0])


def _weightless(rows: Batch) -> Batch:
    return rows._replace(weights=torch.zeros_like(rows.weights), mask=torch.zeros_like(rows.mask))
