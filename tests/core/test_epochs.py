"""Epoch order: each row once an epoch, another order each time, a function of the position alone."""

import torch

from rlhf.core.epochs import epoch_rows


def rows(start: int, count: int, *, num_rows: int = 10, seed: int = 0) -> list[int]:
    return epoch_rows(seed, "rows", num_rows=num_rows, start=start, count=count).tolist()


def test_each_epoch_holds_every_row_once():
    for epoch in range(5):
        assert sorted(rows(10 * epoch, 10)) == list(range(10))


def test_each_epoch_and_each_seed_has_another_order():
    assert rows(0, 10) != rows(10, 10)
    assert rows(0, 10) != rows(0, 10, seed=1)


def test_any_cut_of_the_sequence_is_the_same_sequence():
    whole = rows(0, 47)
    assert [row for start in range(0, 42, 7) for row in rows(start, 7)] == whole[:42]
    assert rows(8, 5) == whole[8:13]


def test_a_stretch_may_be_longer_than_an_epoch():
    counts = torch.bincount(epoch_rows(0, "rows", num_rows=3, start=0, count=12))
    assert counts.tolist() == [4, 4, 4]
