"""Where each sequence's tokens stand in the rows a transformer reads: packed end to end, or one a row."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """Rows for the transformer.

    Args:
        tokens: `(R, L)`.
        position_ids: `(R, L)`, restarting at 0 with each sequence. Cells after a row's last sequence carry its
            positions on: they come after every real token, so causality alone keeps them out of it.
        starts: `(B,)`, where each sequence begins in the flattened rows.
    """

    tokens: Tensor
    position_ids: Tensor
    starts: Tensor


def packed(tokens: Tensor, lengths: Tensor) -> Layout:
    """Several sequences a row, by best-fit-decreasing, rows as long as the longest sequence.

    Args:
        tokens: `(B, S)`, each row's real tokens first.
        lengths: `(B,)`, number of real tokens, at least 1.
    """
    sizes = lengths.tolist()
    rows, offsets = best_fit_decreasing(sizes)
    width = max(sizes)
    starts = torch.tensor(
        [row * width + offset for row, offset in zip(rows, offsets, strict=True)], device=tokens.device
    )
    cells = (max(rows) + 1) * width
    columns = torch.arange(tokens.shape[1], device=tokens.device)
    real = columns < lengths.unsqueeze(1)  # (B, S)
    flat = tokens.new_zeros(cells)
    flat[(starts.unsqueeze(1) + columns)[real]] = tokens[real]
    # Each cell counts from the latest start at or before it; every row begins with one.
    begins = torch.zeros_like(flat)
    begins[starts] = starts
    positions = torch.arange(cells, device=tokens.device) - begins.cummax(0).values
    return Layout(flat.view(-1, width), positions.view(-1, width), starts)


def padded(tokens: Tensor, lengths: Tensor) -> Layout:
    """One sequence a row, padded on the right to the longest."""
    width = int(lengths.max())
    columns = torch.arange(width, device=tokens.device)
    rows = tokens[:, :width].masked_fill(columns >= lengths.unsqueeze(1), 0)
    starts = torch.arange(len(tokens), device=tokens.device) * width
    return Layout(rows, columns.expand_as(rows), starts)


def cells(sizes: Sequence[int], packs: bool) -> int:
    """Tokens in the rows of such sequences, padding included."""
    num_rows = max(best_fit_decreasing(sizes)[0]) + 1 if packs else len(sizes)
    return num_rows * max(sizes)


def best_fit_decreasing(lengths: Sequence[int]) -> tuple[list[int], list[int]]:
    """Row and offset of each sequence: longest first, each into the row that it fills best.

    At most 11/9 of the fewest possible rows, plus four, as first-fit-decreasing (Johnson, 1973), but n log n.
    """
    width = max(lengths)
    rows, offsets = [0] * len(lengths), [0] * len(lengths)
    rooms: list[tuple[int, int]] = []  # (room, row), sorted
    num_rows = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect.bisect_left(rooms, (lengths[index], 0))
        if place < len(rooms):
            room, row = rooms.pop(place)
        else:
            room, row = width, num_rows
            num_rows += 1
        rows[index], offsets[index] = row, width - room
        bisect.insort(rooms, (room - lengths[index], row))
    return rows, offsets
