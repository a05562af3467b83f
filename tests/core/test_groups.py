from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlhf.core import groups

ALL = {
    "centred": groups.centred,
    "leave_one_out": groups.leave_one_out,
    "standardised": lambda *data: groups.standardised(*data, epsilon=1e-4),
}
EVERY = pytest.mark.parametrize("compare", ALL.values(), ids=ALL)


def check(actual: Tensor, expected: Tensor | list) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=1e-9)


def scores_of(*numbers: float) -> tuple[Tensor, Tensor, Tensor]:
    """One group, all of it scored."""
    scores = torch.tensor(numbers, dtype=torch.float64)
    return scores, torch.zeros(len(numbers), dtype=torch.int64), torch.ones(len(numbers), dtype=torch.bool)


def test_leave_one_out_of_published_numbers() -> None:
    check(groups.leave_one_out(*scores_of(1, 2, 5, 8)), [-4, -8 / 3, 4 / 3, 16 / 3])


def test_centred_takes_the_mean_of_all() -> None:
    check(groups.centred(*scores_of(1, 2, 5, 8)), [-3, -2, 1, 4])


def test_standardised_divides_by_the_deviation_of_a_sample() -> None:
    """As torch.std: deviations -3, -2, 1, 4 have squares 9 + 4 + 1 + 16 = 30, so the variance is 30 / (4 - 1)."""
    expected = torch.tensor([-3.0, -2, 1, 4], dtype=torch.float64) / (10**0.5 + 1e-4)
    check(groups.standardised(*scores_of(1, 2, 5, 8), epsilon=1e-4), expected)


def test_leave_one_out_is_the_mean_of_the_others_by_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(9, generator=generator, dtype=torch.float64)
    membership = torch.tensor([7, -3, 7, 2, -3, 7, 2, 2, 2])
    expected = []
    for i in range(9):
        others = [float(scores[j]) for j in range(9) if j != i and membership[j] == membership[i]]
        expected.append(float(scores[i]) - sum(others) / len(others))
    check(groups.leave_one_out(scores, membership, torch.ones(9, dtype=torch.bool)), expected)


@EVERY
def test_groups_do_not_see_each_other(compare) -> None:
    a, b = scores_of(1, 2, 5), scores_of(-7, 3, 100)
    together = compare(
        torch.stack([a[0], b[0]], dim=1).flatten(), torch.tensor([4, 9, 4, 9, 4, 9]), torch.ones(6, dtype=torch.bool)
    )
    check(together[::2], compare(*a))
    check(together[1::2], compare(*b))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("score", [0.1, 1 / 3, 4000.1])
def test_equal_scores_are_exactly_zero(compare, score: float, dtype: torch.dtype) -> None:
    for number in (2, 3, 7):
        scores = torch.full((number,), score, dtype=dtype)
        assert not compare(scores, *scores_of(*[0] * number)[1:]).any()


def test_standardised_of_the_scores_of_trl_and_verl() -> None:
    """(rewards - rewards.mean()) / (rewards.std() + epsilon), which TRL computes with 1e-4 and verl with 1e-6."""
    scores, membership, mask = scores_of(1, 0, 0, 1, 2, 2.5, -1, 7)
    membership = torch.arange(8) // 4
    for epsilon in (1e-4, 1e-6):
        theirs = [(part - part.mean()) / (part.std() + epsilon) for part in scores.view(2, 4)]
        check(groups.standardised(scores, membership, mask, epsilon=epsilon), torch.cat(theirs))


@EVERY
@pytest.mark.parametrize("scores", [(0.1 + 0.2, 0.3), (0.30000002, 0.3, 0.3), (-1e6, -1e6 + 0.1)])
def test_scores_that_differ_by_rounding_are_alike(compare, scores: tuple[float, ...]) -> None:
    """Of float32, in which rewards are kept: its spacing is 3e-8 at 0.3, and 0.06 at a million."""
    assert not compare(*scores_of(*scores)).any()


@EVERY
@pytest.mark.parametrize("scores", [(0.3, 0.300001), (1e6, 1e6 + 1), (0.0, 1e-12)])
def test_scores_that_differ_by_more_than_rounding_are_not(compare, scores: tuple[float, ...]) -> None:
    assert compare(*scores_of(*scores)).all()


@EVERY
def test_rows_without_a_score_count_for_nothing(compare) -> None:
    scores, membership, mask = scores_of(1, float("nan"), 5, 8)
    mask[1] = False
    got = compare(scores, membership, mask)
    check(got[[0, 2, 3]], compare(*scores_of(1, 5, 8)))
    assert float(got[1]) == 0.0


@EVERY
def test_a_row_that_is_left_alone_is_zero(compare) -> None:
    scores, membership, mask = scores_of(3, 8)
    mask[1] = False
    assert compare(scores, membership, mask).tolist() == [0.0, 0.0]


@EVERY
def test_groups_can_be_batched(compare) -> None:
    scores = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    membership, mask = torch.tensor([0, 0, 1, 1, 1, 1]), torch.tensor([True] * 5 + [False])
    batched = torch.func.vmap(compare, in_dims=(0, None, None))(scores, membership, mask)
    check(batched, torch.stack([compare(row, membership, mask) for row in scores]))


def test_row_shares_average_over_a_row() -> None:
    mask = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    check(groups.row_shares(mask), [[0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3], [0, 0, 0]])


@EVERY
@pytest.mark.parametrize("number", [1, 8, 200_000])
def test_groups_take_memory_of_their_rows(compare, number: int) -> None:
    """Each with each of them would be 320 GB."""
    rows = torch.arange(200_000)
    scores = rows.double() % 8
    advantages = compare(scores, rows // number, torch.ones(200_000, dtype=torch.bool))
    assert advantages.shape == scores.shape
    assert advantages.sum() == pytest.approx(0.0, abs=1e-6)
    assert bool((advantages != 0.0).any()) == (number > 1)
