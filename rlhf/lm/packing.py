"""Where each sequence's tokens stand in the rows a transformer reads: packed end to end, one a row, or several behind
a prompt that they share."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Rows of shared prompts may be as long as this where no sequence is: in longer ones attention, which looks at all of
# the row, costs more than the prompts that it saves.
_WIDEST = 1024
# They are used if they leave out at least this share of the cells.
_WORTHWHILE = 0.1


class Sequences(NamedTuple):
    """The sequences of a pass.

    Args:
        sizes: Number of real tokens of each, at least 1.
        prompts: A number for each that those share which begin with the same prompt.
        prompt_sizes: Tokens of those prompts; at most the sequence's own size.
    """

    sizes: Sequence[int]
    prompts: Sequence[int]
    prompt_sizes: Sequence[int]

    def some(self, start: int, end: int) -> Sequences:
        return Sequences(*(numbers[start:end] for numbers in self))


class Layouts(NamedTuple):
    """In which layouts a model says of each sequence what it says of it alone.

    Args:
        packs: Restarting position ids keep packed sequences apart, so a row may hold several.
        most_shared: Sequences of at most so many tokens may share their prompt; 0: they may not.
    """

    packs: bool
    most_shared: int


class Layout(NamedTuple):
    """Rows for the transformer.

    Args:
        tokens: `(R, L)`.
        position_ids: `(R, L)`, restarting at 0 with each sequence. Cells after a row's last sequence carry its
            positions on: they come after every real token, so causality alone keeps them out of it.
        starts: `(B,)`, where each sequence begins in the flattened rows, after what it shares.
        mask: `(R, 1, L, L)`, True where a cell reads another; None: as the positions say.
        shared: `(B,)` how many of its first tokens each sequence shares with others.
        shared_starts: `(B,)`, where those begin.
    """

    tokens: Tensor
    position_ids: Tensor
    starts: Tensor
    mask: Tensor | None = None
    shared: Tensor | None = None
    shared_starts: Tensor | None = None

    def cell(self, positions: Tensor) -> Tensor:
        """Where in the flattened rows the tokens at these positions `(B, T)` of the sequences are."""
        own = self.starts.unsqueeze(1) + positions
        if self.shared is None or self.shared_starts is None:
            return own
        shared = self.shared.unsqueeze(1)
        return torch.where(positions < shared, self.shared_starts.unsqueeze(1) + positions, own - shared)


class Piece(NamedTuple):
    """What stands together in a row: sequences one behind the other after `shared` tokens of all of them."""

    sequences: list[int]
    shared: int
    length: int


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


def sharing(tokens: Tensor, sequences: Sequences) -> Layout:
    """As `packed`, but a prompt that several sequences begin with stands there once, and each of them reads it."""
    found = pieces(sequences)
    rows, offsets = best_fit_decreasing([piece.length for piece in found])
    width = max(piece.length for piece in found)
    starts, shared, shared_starts = ([0] * len(sequences.sizes) for _ in range(3))
    for piece, row, offset in zip(found, rows, offsets, strict=True):
        first = row * width + offset
        end = first + piece.shared
        for index in piece.sequences:
            starts[index], shared[index], shared_starts[index] = end, piece.shared, first
            end += sequences.sizes[index] - piece.shared
    device, num_cells = tokens.device, (max(rows) + 1) * width
    layout = Layout(
        tokens.new_zeros(num_cells),
        tokens.new_zeros(num_cells),
        *(torch.tensor(starts, device=device), None),
        *(torch.tensor(numbers, device=device) for numbers in (shared, shared_starts)),
    )
    columns = torch.arange(tokens.shape[1], device=device)
    real = columns < torch.tensor(sequences.sizes, device=device).unsqueeze(1)  # (B, S)
    cells = layout.cell(columns.expand_as(real))[real]
    layout.tokens[cells], layout.position_ids[cells] = tokens[real], columns.expand_as(real)[real]
    # Who wrote each cell, and whom its owner reads besides: 1 to B are sequences, the next ones prompts.
    owners, reads = tokens.new_zeros(num_cells), tokens.new_zeros(num_cells)
    numbers = torch.arange(1, len(tokens) + 1, device=device).unsqueeze(1)
    prompts = len(tokens) + 1 + layout.shared_starts.unsqueeze(1)  # type: ignore[union-attr]
    behind = columns < layout.shared.unsqueeze(1)  # type: ignore[union-attr]
    owners[cells] = torch.where(behind, prompts, numbers)[real]
    reads[cells] = prompts.expand_as(real)[real]
    owners, reads = owners.view(-1, width), reads.view(-1, width)
    same = owners.unsqueeze(2) == owners.unsqueeze(1)
    before = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    mask = before & (same | (reads.unsqueeze(2) == owners.unsqueeze(1)))
    return layout._replace(
        tokens=layout.tokens.view(-1, width),
        position_ids=layout.position_ids.view(-1, width),
        mask=mask.unsqueeze(1),
    )


def pieces(sequences: Sequences) -> list[Piece]:
    """The sequences of each prompt together, as many as a row may hold."""
    widest = max(_WIDEST, *sequences.sizes)
    families: dict[int, list[int]] = {}
    for index, prompt in enumerate(sequences.prompts):
        families.setdefault(prompt, []).append(index)
    found = []
    for family in families.values():
        shared = sequences.prompt_sizes[family[0]]
        part, length = [family[0]], sequences.sizes[family[0]]
        for index in family[1:]:
            own = sequences.sizes[index] - shared
            if length + own > widest:
                found.append(Piece(part, shared, length))
                part, length = [], shared
            part.append(index)
            length += own
        found.append(Piece(part, shared, length))
    return [piece if len(piece.sequences) > 1 else piece._replace(shared=0) for piece in found]


def cells(sequences: Sequences, layouts: Layouts) -> int:
    """Tokens in the rows of such sequences, padding included."""
    together = _cells_with_sharing(sequences, layouts)
    return _cells_apart(sequences, layouts) if together is None else together


def worthwhile(sequences: Sequences, layouts: Layouts) -> bool:
    """Whether prompts are to stand there once."""
    return _cells_with_sharing(sequences, layouts) is not None


def _cells_apart(sequences: Sequences, layouts: Layouts) -> int:
    sizes = sequences.sizes
    return _cells(sizes) if layouts.packs else len(sizes) * max(sizes)


def _cells_with_sharing(sequences: Sequences, layouts: Layouts) -> int | None:
    """None where it is not allowed, or saves too little."""
    if len(set(sequences.prompts)) == len(sequences.prompts) or max(sequences.sizes) > layouts.most_shared:
        return None
    together = _cells([piece.length for piece in pieces(sequences)])
    return together if together <= (1.0 - _WORTHWHILE) * _cells_apart(sequences, layouts) else None


def _cells(lengths: Sequence[int]) -> int:
    return (max(best_fit_decreasing(lengths)[0]) + 1) * max(lengths)


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
