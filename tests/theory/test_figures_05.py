"""Figures 5 to 12 that are drawn on tabular problems, at a tiny scale: each is drawn, twice the same."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from theory.figures import tabular

EFFORTS = {
    "fig05_step_size": 0.01,
    "fig07_clipping": 0.02,
    "fig08_epochs": 0.02,
    "fig09_stale_data": 0.02,
    "fig10_monotone_improvement": 0.02,
    "fig12_replay": 0.01,
}


def module(name: str) -> Any:
    return importlib.import_module(f"theory.figures.{name}")


@pytest.mark.parametrize(("name", "effort"), EFFORTS.items())
def test_figure_is_drawn_from_data_that_repeat(name, effort):
    first, second = (module(name).compute(seeds=1, effort=effort) for _ in range(2))
    assert first.keys() == second.keys()
    for key, array in first.items():
        np.testing.assert_array_equal(array, second[key])
        assert np.isfinite(array).all(), key
    assert isinstance(module(name).plot(first), Figure)


def test_clip_alone_and_the_minimum_agree_but_for_the_wrong_side():
    """Along the gradient all objectives start with one slope; away from it the minimum is never above the others."""
    worlds = tabular.random_worlds(2, num_states=20, num_actions=4, seed=1)
    data = module("fig07_clipping").along_a_line(worlds, 11)
    unclipped, alone, least = (data[f"line {name}"] for name in ("unclipped", "clip alone", "min(unclipped, clip)"))
    assert np.abs(np.stack([unclipped, alone, least])[:, np.abs(data["distances"]) < 1e-9]).max() < 1e-12
    assert (least <= np.minimum(unclipped, alone) + 1e-12).all()


def test_first_step_of_ppo_is_that_of_the_plain_surrogate():
    data = module("fig08_epochs").compute(seeds=2, effort=0.02)
    for name in ("PPO-clip", "PPO-KL"):
        np.testing.assert_allclose(data[f"kl {name}"][0], data["kl unclipped"][0], rtol=0, atol=1e-12)


def test_planners_never_decrease_the_return_and_the_bound_holds():
    figure, worlds = module("fig10_monotone_improvement"), tabular.random_worlds(3, num_states=6, num_actions=3, seed=2)
    for improve in (figure.greedy, figure.safest):
        policies = [torch.zeros_like(worlds.rewards), *figure.planning(worlds, improve, 6)]
        returns = torch.stack([tabular.success(worlds, x) for x in policies])
        assert (returns[1] > 1e-4).all()
        assert figure.falls(returns.numpy()).max() == 0.0
    assert returns[-1].max() < 1.0
    error, bound = figure.errors(
        worlds, policies[0], 3.0 * torch.randn(3, 6, 3, generator=torch.Generator().manual_seed(0)).double()
    )
    assert (error > 1e-3).all()
    assert (error < bound).all()


def test_falls_are_the_updates_after_which_the_return_is_less():
    runs = np.array([[0.0, 0.5, 0.2, 0.9, 0.8], [0.0, 0.1, 0.1 - 1e-12, 0.2, 0.3]]).T
    np.testing.assert_array_equal(module("fig10_monotone_improvement").falls(runs), [0.5, 0.0])


def test_products_of_ratios_are_unbiased_and_single_ratios_are_not():
    data = module("fig09_stale_data").compute(seeds=2, effort=0.02)
    near = np.median(data["kl"], axis=-1) < 0.1
    for name in ("marginal ratio", "product until the action", "product over the trajectory"):
        assert data[f"bias {name}"][near].max() < 1e-9, name
    for name in ("uncorrected", "ratio of the action"):
        assert data[f"bias {name}"].min() > 1e-4, name
    # On its own steps it begins where the data come from, and leaves.
    assert data["steps bias"][0].max() < 1e-9
    assert data["steps bias"][-1].min() > 1e-3


def test_enumerated_gradient_is_that_of_backward_recursion():
    figure, worlds = module("fig09_stale_data"), tabular.random_worlds(1, num_states=3, num_actions=2, seed=3)
    rollout, by_chance = figure.trajectories(worlds, torch.zeros_like(worlds.rewards))

    def value(logits):
        """By recursion over the steps that are left, without any trajectory."""
        policy, values = logits.softmax(-1), torch.zeros(3, dtype=torch.float64)
        for _ in range(figure.STEPS):
            values = (policy * (worlds.rewards[0] + worlds.transitions[0] @ values)).sum(-1)
        return (worlds.start[0] * values).sum()

    logits = torch.tensor([[0.3, -0.2], [1.0, 0.0], [-0.5, 0.4]], dtype=torch.float64)
    expected = torch.func.grad(value)(logits)
    found = figure.true_gradient(rollout, by_chance, logits.unsqueeze(0))[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_both_resamplings_leave_only_the_states_to_the_buffer():
    figure, worlds = module("replay_tables"), tabular.random_worlds(2, num_states=4, num_actions=3, seed=2)
    acted, logits = torch.randn(2, 2, 4, 3, generator=torch.Generator().manual_seed(0)).double()
    accepted = figure.accepted_gradient(worlds, acted, logits)
    for rung, (_, drawn) in figure.LADDER.items():
        # One drawn action stands for the mean of several.
        if drawn > 1:
            continue
        found, of_critic = figure.expected_gradients(rung, worlds, acted, logits)
        # With a' ~ pi Q of the policy is what the buffer teaches, and without V of who acted.
        torch.testing.assert_close(of_critic, torch.zeros_like(of_critic), rtol=0, atol=1e-9)
        if drawn == 1:
            torch.testing.assert_close(found, accepted, rtol=0, atol=1e-9)
        if drawn == 0:
            assert (found - accepted).abs().max() > 1e-2
            # Without a lag all rungs are the policy gradient.
            expected = (1.0 - tabular.GAMMA) * tabular.exact_gradient(worlds, logits)
            found, _ = figure.expected_gradients(rung, worlds, logits, logits)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_variance_of_the_reparameterised_gradient_is_that_of_the_action():
    data = module("fig12_replay").by_dimension(2, 0.5)
    variance = module("fig12_replay").SPREAD ** 2
    # Of 2000 samples in d dimensions; six standard deviations of a mean of squares.
    tolerance = 6 * variance * np.sqrt(2 / (2000 * data["dimensions"]))
    assert (np.abs(data["variance reparameterised"] - variance) < tolerance[:, None]).all()
    assert (np.diff(data["variance score function"][1:], axis=0) > 0.0).all()
