"""Figures 5 to 12 that are drawn on tabular problems, at a tiny scale: each is drawn, twice the same."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

EFFORTS = {"fig05_step_size": 0.01, "fig06_parameters": 0.02}


def module(name: str) -> Any:
    return importlib.import_module(f"recipes.theory_figures.{name}")


@pytest.mark.parametrize(("name", "effort"), EFFORTS.items())
def test_figure_is_drawn_from_data_that_repeat(name, effort):
    first, second = (module(name).compute(seeds=2, effort=effort) for _ in range(2))
    assert first.keys() == second.keys()
    for key, array in first.items():
        np.testing.assert_array_equal(array, second[key])
        assert np.isfinite(array).all(), key
    assert isinstance(module(name).plot(first), Figure)


def test_natural_steps_cost_their_delta_where_it_is_small():
    data = module("fig06_parameters").compute(seeds=1, effort=1.0)
    assert data["limits"][0] == pytest.approx(1e-4)
    for way in ("up", "down"):
        # The next order of KL / delta is |1 - 2p| (2 delta / (p (1 - p)))^(1/2) / 3, at most 0.036 here.
        assert np.abs(data[f"natural kl {way}"][:, 0] / 1e-4 - 1.0).max() < 0.04


def test_kl_of_equal_steps_is_that_of_the_definition():
    data = module("fig06_parameters").compute(seeds=1, effort=1.0)
    i = int(np.argmin(np.abs(data["steps"] - 1.0)))
    for start, reached in zip((0.0, 2.0, 4.0), data["kl"][:, i], strict=True):
        p, q = (1 / (1 + np.exp(-x)) for x in (start, start + 1.0))
        assert reached == pytest.approx(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)), abs=1e-12)
