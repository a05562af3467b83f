"""Figures 1, 2, 3, 4, 6 and 11."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from recipes.theory_figures import fig06_natural_steps

FIGURES = [fig06_natural_steps]
SMALL = {"seeds": 2, "effort": 0.02}


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: f"figure-{figure.NUMBER}")
def test_figure_is_deterministic_and_drawn(figure):
    data = figure.compute(**SMALL)
    again = figure.compute(**SMALL)
    assert data.keys() == again.keys()
    for name in data:
        np.testing.assert_array_equal(data[name], again[name], err_msg=name)
    assert isinstance(figure.plot(data), Figure)
    assert figure.SEES


def test_figure_6_kl_and_gradient_are_those_of_a_coin():
    data = fig06_natural_steps.compute(**SMALL)
    p = 1 / (1 + np.exp(-data["thetas"]))
    np.testing.assert_allclose(data["gradient"], p * (1 - p), atol=1e-12)
    np.testing.assert_allclose(data["natural_gradient"], 1.0, atol=1e-9)
    old = 1 / (1 + np.exp(-2.0))
    new = 1 / (1 + np.exp(-2.0 - data["steps"]))
    kl = old * np.log(old / new) + (1 - old) * np.log((1 - old) / (1 - new))
    np.testing.assert_allclose(data["kl_of_steps"][1], kl, atol=1e-12)
