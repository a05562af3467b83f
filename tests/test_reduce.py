"""Global statistics on one process; test_distributed.py holds them against two."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from rlhf.reduce import MetricSums, global_moments, global_whiten

MASK = torch.tensor([[True, True, True], [True, False, False]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.1, 1e8, -3.3])
def test_whitening_makes_equal_cells_exactly_zero(dtype: torch.dtype, value: float) -> None:
    cells = torch.full((7, 13), value, dtype=dtype)
    mask = torch.ones(7, 13, dtype=torch.bool)
    assert global_whiten(Accelerator(), cells, mask).abs().max() == 0.0


def test_moments_ignore_what_is_outside_the_mask() -> None:
    """The cells 1, 2, 3, 6 have mean 3 and population variance (4 + 1 + 0 + 9) / 4."""
    cells = torch.tensor([[1.0, 2.0, 3.0], [6.0, torch.nan, torch.inf]])
    mean, variance = global_moments(Accelerator(), cells, MASK)
    assert (float(mean), float(variance)) == (3.0, 3.5)


def test_whitened_cells_have_mean_zero_and_variance_one() -> None:
    cells = torch.tensor([[1.0, 2.0, 3.0], [6.0, torch.nan, torch.inf]], dtype=torch.float64)
    whitened = global_whiten(Accelerator(), cells, MASK)
    expected = (torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64) - 3.0) / 3.5**0.5
    torch.testing.assert_close(whitened[MASK], expected, rtol=0, atol=1e-12)
    assert whitened[~MASK].tolist() == [0.0, 0.0]


def test_metrics_are_reduced_as_their_names_say() -> None:
    """Over two micro-batches: a mean per action, a maximum (signed), and a sum per episode that ended."""
    sums = MetricSums()
    first, second = torch.tensor([[-5.0, -2.0, 9.0]]), torch.tensor([[-4.0, 7.0, 7.0]])
    mask, dones = torch.tensor([[True, True, False]]), torch.tensor([[False, True, True]])
    for cells in (first, second):
        masked = mask if cells is first else torch.tensor([[True, False, False]])
        sums.add({"mean": cells, "signed_max": cells, "sum_per_episode": cells}, masked, dones)
    metrics = sums.reduce(Accelerator())
    assert metrics == {"mean": pytest.approx(-11.0 / 3.0), "signed_max": -2.0, "sum_per_episode": -11.0}
