"""The performance difference lemma and the bound on it, over thousands of random MDPs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from theory import bounds, mdp
from theory.mdp import Mdp

NUM_MDPS = 4000


def stacks(gamma: float = 0.9, *, closeness: float = 1.0) -> tuple[Mdp, Tensor, Tensor]:
    """Random MDPs and two policies on each, `closeness` apart in standard deviations of their logits."""
    worlds = mdp.random_mdps(NUM_MDPS, num_states=4, num_actions=3, seed=0)
    logits = torch.randn(2, NUM_MDPS, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return worlds, logits[0].softmax(-1), (logits[0] + closeness * logits[1]).softmax(-1)


def over(function, worlds: Mdp, old: Tensor, new: Tensor, gamma: float) -> Tensor:
    return vmap(lambda *x: function(*x, gamma=gamma))(worlds, old, new)


def change_of_return(worlds: Mdp, old: Tensor, new: Tensor, gamma: float) -> Tensor:
    def returns(policy: Tensor) -> Tensor:
        return vmap(lambda world, p: mdp.expected_return(world, p, gamma=gamma))(worlds, policy)

    return returns(new) - returns(old)


def test_performance_difference_lemma_is_exact_on_random_mdps() -> None:
    worlds, old, new = stacks()
    lemma = over(bounds.performance_difference, worlds, old, new, 0.9)
    torch.testing.assert_close(lemma, change_of_return(worlds, old, new, 0.9), rtol=0, atol=1e-9)


def test_performance_difference_is_the_mean_advantage_over_one_less_gamma() -> None:
    world, old, new = (x[0] if isinstance(x, Tensor) else Mdp(*(y[0] for y in x)) for x in stacks())
    occupancy, gains = mdp.occupancy(world, new, gamma=0.9), mdp.advantages(world, old, gamma=0.9)
    mean = (occupancy.unsqueeze(-1) * new * gains).sum()
    difference = bounds.performance_difference(world, old, new, gamma=0.9)
    assert float(difference) == pytest.approx(float(mean) / (1 - 0.9), abs=1e-9)


def test_surrogate_and_return_have_the_same_gradient_at_the_old_policy() -> None:
    worlds, old, _ = stacks()
    world, logits = Mdp(*(x[0] for x in worlds)), old[0].log()
    ours = torch.func.grad(lambda x: bounds.surrogate(world, old[0], x.softmax(-1), gamma=0.9))(logits)
    torch.testing.assert_close(ours, mdp.policy_gradient(world, logits, gamma=0.9), rtol=0, atol=1e-9)


def test_bound_is_zero_for_identical_policies() -> None:
    worlds, old, _ = stacks()
    limits = over(bounds.kl_bound, worlds, old, old, 0.9)
    assert float(limits.abs().max()) == 0.0


@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("closeness", [0.01, 0.1, 1.0, 3.0])
def test_bound_is_never_violated_on_random_mdps(gamma: float, closeness: float) -> None:
    worlds, old, new = stacks(closeness=closeness)
    error = change_of_return(worlds, old, new, gamma) - over(bounds.surrogate, worlds, old, new, gamma)
    limits = over(bounds.kl_bound, worlds, old, new, gamma)
    assert bool((error.abs() <= limits + 1e-12).all())
    assert float(error.abs().max()) > 0.0


def test_bound_equals_its_formula_written_out() -> None:
    worlds, old, new = (x[7] if isinstance(x, Tensor) else Mdp(*(y[7] for y in x)) for x in stacks())
    values, weights = mdp.state_values(worlds, old, gamma=0.9), mdp.occupancy(worlds, old, gamma=0.9)
    eps, kl = 0.0, 0.0
    for s in range(4):
        gain, divergence = -float(values[s]), 0.0
        for a in range(3):
            gain += float(new[s, a] * (worlds.rewards[s, a] + 0.9 * worlds.transitions[s, a] @ values))
            divergence += float(new[s, a]) * math.log(new[s, a] / old[s, a])
        eps, kl = max(eps, abs(gain)), kl + float(weights[s]) * divergence
    expected = math.sqrt(2) * 0.9 * eps / 0.01 * math.sqrt(kl)
    assert float(bounds.kl_bound(worlds, old, new, gamma=0.9)) == pytest.approx(expected, rel=1e-9)


def test_horizon_weight_tends_to_that_of_no_horizon() -> None:
    assert bounds.horizon_weight(gamma=0.9, horizon=math.inf) == pytest.approx(90.0, abs=1e-9)
    assert bounds.horizon_weight(gamma=0.9, horizon=1000) == pytest.approx(90.0, abs=1e-9)
    assert bounds.horizon_weight(gamma=1.0, horizon=5) == 0 + 1 + 2 + 3 + 4


def test_bound_of_finite_horizon_is_never_violated() -> None:
    """Time is part of the state: layers of four states, each leading to the next, six of them, without discount."""
    horizon, worlds = 6, mdp.random_mdps(300, num_states=4, num_actions=3, seed=1)
    logits = torch.randn(2, 300, 4 * horizon, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    old, new = logits[0].softmax(-1), (logits[0] + 0.5 * logits[1]).softmax(-1)
    layers = torch.zeros(300, horizon, 4, 3, horizon, 4, dtype=torch.float64)
    for t in range(horizon - 1):
        layers[:, t, :, :, t + 1] = worlds.transitions
    layered = Mdp(
        layers.view(300, 4 * horizon, 3, 4 * horizon),
        worlds.rewards.repeat(1, horizon, 1),
        torch.cat([worlds.start, torch.zeros(300, 4 * (horizon - 1), dtype=torch.float64)], dim=1),
    )
    error = change_of_return(layered, old, new, 1.0) - over(bounds.surrogate, layered, old, new, 1.0)
    gains = vmap(lambda w, p, q: (q * mdp.advantages(w, p, gamma=1.0)).sum(-1))(layered, old, new)
    visits = vmap(lambda w, p: mdp.visits(w, p, gamma=1.0))(layered, old)
    weights = torch.arange(horizon - 1, -1, -1).repeat_interleave(4).double()
    weight = bounds.horizon_weight(gamma=1.0, horizon=horizon)
    kl = (visits * weights * (new * (new / old).log()).sum(-1)).sum(-1) / weight
    limits = vmap(lambda e, k: bounds.surrogate_error(e, k, weight=weight))(gains.abs().amax(-1), kl)
    assert bool((error.abs() <= limits + 1e-12).all())
    # There is something to bound.
    assert float(error.abs().max()) > 0.01
