"""Packing: every token once, in rows no longer than the longest sequence."""

from __future__ import annotations

import pytest
import torch

from rlhf.lm.packing import best_fit_decreasing, packed, padded

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
