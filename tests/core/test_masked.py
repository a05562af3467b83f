"""Whitening over the mask equals that of the cells picked out by it, whatever stands in the others."""

import statistics

import pytest
import torch

from rlhf.core.masked import standardise, whiten

MASK = torch.tensor([[True, True, False], [True, False, True]])
CELLS = [1.5, -2.0, 4.0, 7.25]


def cells(*inside: float, outside: float = float("nan"), dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """The numbers `inside` the mask, row by row, garbage elsewhere."""
    return torch.full(MASK.shape, outside, dtype=dtype).masked_scatter(MASK, torch.tensor(inside, dtype=dtype))


def check(actual: torch.Tensor, expected: torch.Tensor | float) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=torch.float64), rtol=0.0, atol=1e-9)


# Their sum over these cells, divided by the number, is not the value again.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.1, 1 / 3, -12345.678, 1e-12])
def test_whiten_makes_equal_values_exactly_0(value, dtype):
    x, mask = (
        torch.full((31, 37), value, dtype=dtype),
        torch.rand(31, 37, generator=torch.Generator().manual_seed(0)) < 0.9,
    )
    assert torch.equal(whiten(x, mask), torch.zeros_like(x))


def test_whiten_gives_mean_0_and_variance_1():
    mean, deviation = statistics.fmean(CELLS), statistics.pstdev(CELLS)
    check(whiten(cells(*CELLS), MASK), cells(*((cell - mean) / deviation for cell in CELLS), outside=0.0))


@pytest.mark.parametrize("outside", [0.0, 1e9, float("nan"), float("inf"), -float("inf")])
def test_whiten_ignores_padding(outside):
    check(whiten(cells(*CELLS, outside=outside), MASK), whiten(cells(*CELLS), MASK))


def test_whiten_does_not_depend_on_shift_or_scale():
    check(whiten(cells(*(1e-3 * cell - 5.0 for cell in CELLS)), MASK), whiten(cells(*CELLS), MASK))


def test_whiten_keeps_float32_with_a_large_mean():
    whitened = whiten(cells(*(cell + 4096.0 for cell in CELLS), dtype=torch.float32), MASK)
    torch.testing.assert_close(whitened, whiten(cells(*CELLS), MASK).float(), rtol=1e-5, atol=1e-5)


def test_whiten_of_an_empty_mask_is_0():
    assert torch.equal(whiten(cells(*CELLS), torch.zeros_like(MASK)), torch.zeros(2, 3, dtype=torch.float64))


def test_whiten_of_one_cell_is_0():
    mask = torch.tensor([[False, True, False], [False, False, False]])
    assert torch.equal(whiten(cells(*CELLS), mask), torch.zeros(2, 3, dtype=torch.float64))


def test_whiten_does_not_change_its_input():
    x = cells(*CELLS, outside=3.0)
    whiten(x, MASK)
    assert torch.equal(x, cells(*CELLS, outside=3.0))


def test_whiten_has_the_gradient_of_differences():
    x = cells(*CELLS, outside=3.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: whiten(x, MASK), (x,))


def test_whiten_has_a_finite_gradient_that_is_0_outside_the_mask():
    x = cells(*CELLS).requires_grad_()
    # Weighted, since the sum of whitened cells is 0 whatever they are.
    weights = torch.arange(6, dtype=torch.float64).view(2, 3)
    gradient = torch.autograd.grad((weights * whiten(x, MASK)).sum(), x)[0]
    assert torch.isfinite(gradient).all()
    assert (gradient[~MASK] == 0.0).all()
    assert (gradient[MASK] != 0.0).any()


def test_whiten_has_a_finite_gradient_at_equal_values():
    x = cells(2.0, 2.0, 2.0, 2.0).requires_grad_()
    assert torch.isfinite(torch.autograd.grad(whiten(x, MASK)[0, 0], x)[0]).all()


def moments(mean: float, variance: float) -> dict[str, torch.Tensor]:
    return {
        "mean": torch.tensor(mean, dtype=torch.float64),
        "variance": torch.tensor(variance, dtype=torch.float64),
        "size": torch.tensor(0.0, dtype=torch.float64),
    }


def test_standardise_uses_the_moments_it_is_given():
    expected = cells(*((cell - 2.0) / 3.0 for cell in CELLS), outside=0.0)
    check(standardise(cells(*CELLS), MASK, **moments(2.0, 9.0)), expected)


def test_standardise_by_its_own_moments_is_whitening():
    own = moments(statistics.fmean(CELLS), statistics.pvariance(CELLS))
    check(standardise(cells(*CELLS), MASK, **own), whiten(cells(*CELLS), MASK))


def test_standardise_of_float32_by_float64_moments_is_float32():
    assert standardise(cells(*CELLS, dtype=torch.float32), MASK, **moments(2.0, 9.0)).dtype == torch.float32


def test_standardise_does_not_change_its_input():
    x = cells(*CELLS, outside=3.0)
    standardise(x, MASK, **moments(2.0, 9.0))
    assert torch.equal(x, cells(*CELLS, outside=3.0))


def test_standardise_keeps_the_deviation_above_1e_8():
    x = cells(1e-8, 2e-8, 0.0, 0.0)
    check(standardise(x, MASK, **moments(0.0, 1e-40)), cells(1.0, 2.0, 0.0, 0.0, outside=0.0))


def test_whiten_under_vmap_equals_a_loop():
    generator = torch.Generator().manual_seed(0)
    x, mask = torch.randn(3, 4, 5, generator=generator).double(), torch.rand(3, 4, 5, generator=generator) < 0.6
    check(torch.func.vmap(whiten)(x, mask), torch.stack([whiten(x[i], mask[i]) for i in range(3)]))


# Four units in the last place of the largest are rounding: 4 x 2^-23 of 1 in float32.
@pytest.mark.parametrize(("spread", "source", "expected"), [(1e-7, 1.0, 0.0), (1e-4, 1.0, 1.0), (1e-4, 1e3, 0.0)])
def test_whiten_of_what_rounding_left_is_0(spread, source, expected):
    x = cells(spread, -spread, spread, -spread, dtype=torch.float32)
    whitened = whiten(x, MASK, cells(source, 0.0, 0.0, 0.0, dtype=torch.float32))
    torch.testing.assert_close(whitened, cells(*(expected * x.sign()[MASK]).tolist(), outside=0.0).float())
