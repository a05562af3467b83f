from __future__ import annotations

import numpy as np
import pytest
import torch

from rlhf.control.normalize import Normalizer


def alone(sums: torch.Tensor) -> torch.Tensor:
    return sums


def test_normalizer_is_the_identity_before_its_first_update() -> None:
    x = torch.tensor([[1e3, -2.0]])
    assert torch.equal(Normalizer(2)(x), x.double())


def test_normalizer_holds_mean_and_population_variance_of_all_rows() -> None:
    rows = np.random.default_rng(0).normal(50.0, [0.1, 7.0], (900, 2))
    normalizer = Normalizer(2)
    for part in np.split(rows, [1, 40, 41, 500]):
        normalizer.update(torch.as_tensor(part), alone)
    np.testing.assert_allclose(normalizer.mean.numpy(), rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(normalizer.var.numpy(), rows.var(0), rtol=1e-9)
    normalised = normalizer(torch.as_tensor(rows))
    np.testing.assert_allclose(normalised.mean(0).numpy(), 0.0, atol=1e-9)


def test_normalizer_takes_no_notice_of_no_rows() -> None:
    normalizer = Normalizer(1)
    normalizer.update(torch.empty(0, 1), alone)
    assert float(normalizer.count) == 0
    assert float(normalizer(torch.tensor([3.0]))) == 3.0


def test_normalizer_clips_at_ten_deviations() -> None:
    normalizer = Normalizer(1)
    normalizer.update(torch.tensor([[-1.0], [1.0]]), alone)
    assert normalizer(torch.tensor([[99.0], [-99.0]])).flatten().tolist() == [10.0, -10.0]


def test_normalizer_of_a_constant_is_zero() -> None:
    normalizer = Normalizer(1)
    normalizer.update(torch.full((7, 1), 0.1), alone)
    assert float(normalizer(torch.tensor([0.1]))) == pytest.approx(0.0, abs=1e-9)
