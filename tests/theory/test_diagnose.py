"""Diagnostics from data: against their definitions, and against the exact values where the data are exhaustive."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlhf.errors import InputError
from rlhf.rollout import Rollout
from tests.algorithms.test_trpo import control_rollout, gaussian_policy, softmax_policy
from tests.batches import make_rollout
from tests.lm.test_trpo import rollout_of as lm_rollout
from tests.lm.worlds import word_policy
from tests.tabular import TabularPolicy
from theory import bounds, mdp
from theory.diagnose import diagnose
from theory.mdp import Mdp

CPU = Accelerator(cpu=True)


def run(old: nn.Module, new: nn.Module, rollout: Rollout, **changes: Any) -> dict[str, float]:
    knobs = {"gamma": 0.9, "gae_lambda": 0.8, "horizon": math.inf, "micro_batch_cost": 10_000, **changes}
    return diagnose(old, new, rollout, accelerator=CPU, **knobs)


def moved(policy: nn.Module, scale: float = 0.1) -> Any:
    other = copy.deepcopy(policy)
    with torch.no_grad():
        for i, parameter in enumerate(other.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)).to(parameter)
            parameter.add_(scale * noise)
    return other


def case(kind: str) -> tuple[Any, Rollout]:
    if kind == "tabular":
        policy = TabularPolicy(4, 3)
        return policy, make_rollout(policy, rows=9, steps=5)
    if kind == "lm":
        policy = word_policy()
        return policy, lm_rollout(policy)
    policy = softmax_policy() if kind == "softmax" else gaussian_policy()
    return policy, control_rollout(policy)


KINDS = pytest.mark.parametrize("kind", ["tabular", "softmax", "gaussian", "lm"])


@KINDS
def test_identical_policies_have_no_surrogate_no_kl_and_no_bound(kind: str) -> None:
    policy, rollout = case(kind)
    assert all(value == pytest.approx(0.0, abs=1e-12) for value in run(policy, policy, rollout).values())


def torch_distribution(distribution: Any) -> torch.distributions.Distribution:
    if hasattr(distribution, "logits"):
        return torch.distributions.Categorical(logits=distribution.logits)
    normal = torch.distributions.Normal(distribution.mean, distribution.log_std.exp())
    return torch.distributions.Independent(normal, 1)


@KINDS
def test_kl_is_that_of_torch_in_both_directions(kind: str) -> None:
    policy, rollout = case(kind)
    other = moved(policy)
    metrics = run(policy, other, rollout)
    with torch.no_grad():
        old, new = (torch_distribution(each(rollout.inputs, distribution=True)[1]) for each in (policy, other))
    for name, pair in (("kl_old_new", (old, new)), ("kl_new_old", (new, old))):
        cells = torch.distributions.kl_divergence(*pair)[rollout.mask]
        assert metrics[name] == pytest.approx(float(cells.mean()), rel=1e-9)
        assert metrics[f"{name}_max"] == pytest.approx(float(cells.max()), rel=1e-9)
    assert metrics["kl_old_new"] != pytest.approx(metrics["kl_new_old"], rel=1e-4)


@KINDS
def test_numbers_do_not_depend_on_micro_batches(kind: str) -> None:
    policy, rollout = case(kind)
    other = moved(policy)
    assert run(policy, other, rollout, micro_batch_cost=5) == pytest.approx(run(policy, other, rollout), rel=1e-9)


def exhaustive(world: Mdp, policy: TabularPolicy, *, gamma: float, cells: int) -> Rollout:
    """Every (state, action) as often, of `cells`, as d_pi and the policy have it, paid its exact Q: so with the exact V
    as the critic, advantages of single steps are exact and means over the data are means under d_pi."""
    table = policy.logits.detach().softmax(-1)
    counts = (cells * mdp.occupancy(world, table, gamma=gamma).unsqueeze(-1) * table).round().long().flatten()
    pairs = torch.repeat_interleave(torch.arange(12), counts).unsqueeze(1)
    inputs = {"states": pairs // 3, "actions": pairs % 3}
    logprobs = table.log()[inputs["states"], inputs["actions"]]
    ones = torch.ones_like(pairs, dtype=torch.bool)
    return Rollout(
        inputs=inputs,
        behaviour_logprobs=logprobs,
        logprobs=logprobs,
        values=mdp.state_values(world, table, gamma=gamma)[inputs["states"]],
        next_values=torch.zeros_like(logprobs),
        rewards=mdp.action_values(world, table, gamma=gamma)[inputs["states"], inputs["actions"]],
        dones=ones,
        mask=ones,
        sample_ids=torch.arange(len(pairs)),
        costs=torch.ones(len(pairs), dtype=torch.int64),
    )


@pytest.mark.parametrize("seed", range(5))
def test_exhaustive_data_give_the_exact_surrogate_and_a_bound_no_smaller_than_the_exact(seed: int) -> None:
    """With exact advantages and every state seen, the largest |(ratio - 1) A| of an action is at least eps."""
    world = Mdp(*(x[seed] for x in mdp.random_mdps(5, num_states=4, num_actions=3, seed=0)))
    policy = TabularPolicy(4, 3, seed=seed)
    other = moved(policy, 0.3)
    metrics = run(policy, other, exhaustive(world, policy, gamma=0.9, cells=100_000), micro_batch_cost=10**6)
    old, new = (each.logits.detach().softmax(-1) for each in (policy, other))
    exact = float(bounds.surrogate(world, old, new, gamma=0.9))
    assert metrics["surrogate_return"] == pytest.approx(exact, abs=1e-3)
    divergences = (new * (new / old).log()).sum(-1)
    mean = float((mdp.occupancy(world, old, gamma=0.9) * divergences).sum())
    assert metrics["kl_new_old"] == pytest.approx(mean, rel=1e-3)
    gains = (new * mdp.advantages(world, old, gamma=0.9)).sum(-1)
    assert metrics["eps_estimate"] >= float(gains.abs().max()) - 1e-9
    assert metrics["bound_estimate"] >= 0.999 * float(bounds.kl_bound(world, old, new, gamma=0.9))
    change = mdp.expected_return(world, new, gamma=0.9) - mdp.expected_return(world, old, gamma=0.9)
    assert abs(float(change) - exact) <= metrics["bound_estimate"]


@pytest.mark.parametrize(
    ("gamma", "weight", "steps"), [(1.0, 0 + 1 + 2 + 3 + 4, 5), (0.5, 0.5 + 0.5 + 0.375 + 0.25, 1.9375)]
)
def test_bound_of_a_horizon_is_that_of_its_steps(gamma: float, weight: float, steps: float) -> None:
    """sqrt 2 eps sqrt(KL) sum t gamma^t, and sum gamma^t steps of surrogate, t < 5."""
    policy, rollout = case("tabular")
    metrics = run(policy, moved(policy), rollout, gamma=gamma, horizon=5)
    expected = math.sqrt(2.0 * metrics["kl_new_old"]) * metrics["eps_estimate"] * weight
    assert metrics["bound_estimate"] == pytest.approx(expected, rel=1e-12)
    assert metrics["surrogate_return"] == pytest.approx(steps * metrics["surrogate"], rel=1e-12)


def test_surrogate_and_eps_are_those_of_the_ratios() -> None:
    policy, rollout = case("tabular")
    other = moved(policy)
    metrics = run(policy, other, rollout, gae_lambda=0.0)

    def logprobs(each: Any) -> Tensor:
        return each.logits.detach().log_softmax(-1)[rollout.inputs["states"], rollout.inputs["actions"]]

    errors = rollout.rewards + 0.9 * rollout.next_values - rollout.values
    gains = ((logprobs(other) - logprobs(policy)).exp() - 1.0) * errors
    assert metrics["surrogate"] == pytest.approx(float(gains[rollout.mask].mean()), rel=1e-9)
    assert metrics["eps_estimate"] == pytest.approx(float(gains[rollout.mask].abs().max()), rel=1e-9)


def test_no_horizon_without_discount_is_refused() -> None:
    policy, rollout = case("tabular")
    with pytest.raises(InputError, match="horizon"):
        run(policy, policy, rollout, gamma=1.0)
