"""Packing: every token once, in rows no longer than the longest sequence."""

from __future__ import annotations

import pytest
import torch

from rlhf.lm.packing import Layouts, Sequences, best_fit_decreasing, packed, padded, pieces, sharing, worthwhile

TOKENS = torch.tensor([[1, 2, 0, 0, 0], [3, 4, 5, 6, 7], [8, 0, 0, 0, 0], [9, 10, 11, 0, 0]])
LENGTHS = torch.tensor([2, 5, 1, 3])


def test_best_fit_decreasing_by_hand():
    # 5 fills row 0; 3 opens row 1 and 2 fills it; 1 opens row 2.
    assert best_fit_decreasing([2, 5, 1, 3]) == ([1, 0, 2, 1], [3, 0, 0, 0])
    # 6 fills row 0; 4 opens row 1, 3 row 2; 2 fills row 1; 1 joins row 2.
    assert best_fit_decreasing([3, 1, 6, 2, 4]) == ([2, 2, 0, 1, 1], [0, 3, 0, 4, 0])


def test_packed_rows_by_hand():
    layout = packed(TOKENS, LENGTHS)
    assert layout.tokens.tolist() == [[3, 4, 5, 6, 7], [9, 10, 11, 1, 2], [8, 0, 0, 0, 0]]
    assert layout.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 0, 1], [0, 1, 2, 3, 4]]
    assert layout.starts.tolist() == [8, 0, 10, 5]


def test_padded_rows_by_hand():
    layout = padded(TOKENS[:, :4].clone().fill_(7), torch.tensor([2, 3, 1, 3]))
    assert layout.tokens.tolist() == [[7, 7, 0], [7, 7, 7], [7, 0, 0], [7, 7, 7]]
    assert layout.position_ids.tolist() == [[0, 1, 2]] * 4
    assert layout.starts.tolist() == [0, 3, 6, 9]


@pytest.mark.parametrize("lay_out", [packed, padded])
def test_layouts_hold_every_sequence_where_they_say(lay_out):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 30, (50,), generator=generator)
    tokens = torch.randint(1, 99, (50, 29), generator=generator)
    layout = lay_out(tokens, lengths)
    for row, length, start in zip(tokens, lengths.tolist(), layout.starts.tolist(), strict=True):
        assert torch.equal(layout.tokens.flatten()[start : start + length], row[:length])
        assert torch.equal(layout.position_ids.flatten()[start : start + length], torch.arange(length))


def test_packed_rows_are_few():
    lengths = torch.randint(1, 100, (300,), generator=torch.Generator().manual_seed(2))
    layout = packed(torch.ones(300, 100, dtype=torch.int64), lengths)
    assert layout.tokens.shape[0] <= 11 / 9 * -(-int(lengths.sum()) // int(lengths.max())) + 1


# A prompt of three tokens and one of two; the last sequence has the first prompt and nothing else.
FAMILIES = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 0, 0], [1, 2, 3, 9, 0], [1, 2, 3, 0, 0]])
SEQUENCES = Sequences([5, 3, 4, 3], [0, 1, 0, 0], [3, 2, 3, 3])


def test_shared_prompts_by_hand():
    layout = sharing(FAMILIES, SEQUENCES)
    assert layout.tokens.tolist() == [[1, 2, 3, 4, 5, 9], [6, 7, 8, 0, 0, 0]]
    assert layout.position_ids.tolist() == [[0, 1, 2, 3, 4, 3], [0, 1, 2, 0, 0, 0]]
    positions = torch.arange(5).expand(4, 5)
    cells = layout.cell(positions)
    assert [row[:size] for row, size in zip(cells.tolist(), SEQUENCES.sizes, strict=True)] == [
        [0, 1, 2, 3, 4],
        [6, 7, 8],
        [0, 1, 2, 5],
        [0, 1, 2],
    ]
    first, second = layout.mask[:, 0].int().tolist()
    assert first == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0, 1],
    ]
    assert [row[:3] for row in second[:3]] == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert all(row[:3] == [0, 0, 0] and row[i] == 1 for i, row in enumerate(second) if i >= 3)


def test_every_token_reads_its_own_sequence_and_nothing_else():
    """Of many sequences behind a few prompts: from each cell on, what it reads is its sequence up to there."""
    generator = torch.Generator().manual_seed(3)
    prompt_sizes = torch.tensor([6, 1, 4])
    numbers = torch.randint(3, (40,), generator=generator)
    sizes = prompt_sizes[numbers] + torch.randint(0, 9, (40,), generator=generator)
    tokens = torch.randint(1, 99, (40, 14), generator=generator)
    behind = torch.arange(6) < prompt_sizes[numbers].unsqueeze(1)
    tokens[:, :6] = torch.where(behind, numbers.unsqueeze(1), tokens[:, :6])
    layout = sharing(tokens, Sequences(sizes.tolist(), numbers.tolist(), prompt_sizes[numbers].tolist()))
    flat, width = layout.tokens.flatten(), layout.tokens.shape[1]
    for row, size, cells in zip(tokens, sizes.tolist(), layout.cell(torch.arange(14).expand(40, 14)), strict=True):
        for end in range(size):
            place = int(cells[end])
            read = layout.mask[place // width, 0, place % width].nonzero().squeeze(1) + place // width * width
            assert sorted(read.tolist()) == sorted(cells[: end + 1].tolist())
            assert torch.equal(flat[cells[: end + 1]], row[: end + 1])
            assert int(layout.position_ids.flatten()[place]) == end


def test_families_longer_than_a_row_are_parted_and_take_their_prompt_along():
    sequences = Sequences([700, 700, 700, 300], [0, 0, 0, 1], [500, 500, 500, 100])
    # 500 + 200 + 200 = 900; a third would make 1100.
    assert pieces(sequences) == [([0, 1], 500, 900), ([2], 0, 700), ([3], 0, 300)]
    # No row is cut below the longest sequence.
    assert pieces(Sequences([1500, 1400], [0, 0], [1400, 1400])) == [([0, 1], 1400, 1500)]


def test_prompts_are_shared_where_that_leaves_out_a_tenth():
    both = Layouts(packs=True, most_shared=100)
    assert worthwhile(Sequences([10, 10], [0, 0], [2, 2]), both)
    assert not worthwhile(Sequences([10, 10], [0, 0], [1, 1]), both)
    assert not worthwhile(Sequences([10, 10], [0, 1], [9, 9]), both)
    assert not worthwhile(Sequences([10, 101], [0, 0], [9, 9]), both)
    assert not worthwhile(Sequences([10, 10], [0, 0], [9, 9]), both._replace(most_shared=0))
