"""PPO with a KL penalty: its gradient by enumeration, and the coefficient that adapts to the KL that is logged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf import optimize
from rlhf.algorithms.ppo_kl import PPOKL
from rlhf.errors import InputError
from tests.algorithms.test_enumeration import (
    GAMMA_ONE,
    PROBLEMS,
    STATE,
    TinyLm,
    TinyMdp,
    assert_equal,
    exact_gradient,
    our_gradient,
    rollout_of,
)
from tests.batches import make_rollout
from tests.learners import learner_of
from tests.tabular import TabularPolicy


def distributions(problem: TinyMdp | TinyLm, policy: Any, inputs: dict[str, Tensor]) -> Tensor:
    """`(N, T, A)` log-probabilities of every action in every state of the trajectories."""
    if isinstance(problem, TinyMdp):
        return torch.log_softmax(policy.logits, dim=-1)[inputs["states"]]
    return torch.log_softmax(policy.model(input_ids=inputs["tokens"]).logits, dim=-1)[:, 1:-1]


@PROBLEMS
@pytest.mark.parametrize("penalty", [0.5, 3.0])
@pytest.mark.parametrize("distance", [0.0, 0.3])
def test_gradient_is_that_of_the_penalised_surrogate(
    problem: TinyMdp | TinyLm, penalty: float, distance: float
) -> None:
    """E_old[ratio A - beta KL(old || new)] (eq. 8), the KL summed over every action there is, not over those taken."""
    policy = problem.policy()
    inputs, mask, rewards = problem.trajectories()
    rollout, probabilities = rollout_of(problem, policy, None)
    with torch.no_grad():
        old = distributions(problem, policy, inputs).clone()
        for i, parameter in enumerate(policy.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)).double()
            parameter.add_(distance * noise)
    method = PPOKL(**GAMMA_ONE, penalty=penalty, value_coef=0.7, entropy_coef=0.05)
    targets = rewards.flip(1).cumsum(1).flip(1)

    def objective() -> Tensor:
        new = distributions(problem, policy, inputs)
        output = policy(inputs)
        ratios = torch.exp(problem.trajectory_logprobs(policy, inputs, mask) - rollout.logprobs)
        divergence = (old.exp() * (old - new)).sum(-1)
        squares = 0.5 * (output.values - targets).square()
        terms = -ratios * (targets - rollout.values) + penalty * divergence + 0.7 * squares - 0.05 * output.entropy
        return (probabilities * torch.where(mask, terms, 0.0).sum(1)).sum()

    exact = exact_gradient(policy, objective)
    assert_equal(our_gradient(policy, rollout, probabilities, method, 4), exact)


@PROBLEMS
def test_gradient_at_the_old_policy_is_the_plain_policy_gradient(problem: TinyMdp | TinyLm) -> None:
    """Whatever the penalty: it does not bound the first step."""
    policy = problem.policy()
    rollout, probabilities = rollout_of(problem, policy, None)
    method = PPOKL(**GAMMA_ONE, penalty=1e4, value_coef=0.0)
    inputs, mask, rewards = problem.trajectories()

    def objective() -> Tensor:
        logprobs = problem.trajectory_logprobs(policy, inputs, mask)
        return -(logprobs.sum(1).exp() * rewards.sum(1)).sum()

    assert_equal(our_gradient(policy, rollout, probabilities, method, 10_000), exact_gradient(policy, objective))


def test_loss_is_the_surrogate_and_the_penalty_of_the_ratios() -> None:
    """Ratio 2 with advantage 3 and beta .5: -6 + .5 (2 - 1 - log 2)."""
    policy = TabularPolicy(2, 2)
    batch, _ = PPOKL().estimate(make_rollout(policy, rows=1, steps=1), {})
    output = policy(batch.inputs)
    batch = batch._replace(logprobs=output.logprobs.detach() - torch.tensor(2.0).log(), advantages=3.0 * batch.units)
    method = PPOKL(value_coef=0.0)
    terms, metrics = method.loss(output, batch, {**STATE, "penalty": torch.tensor(0.5, dtype=torch.float64)})
    expected = -6.0 + 0.5 * (2.0 - 1.0 - float(torch.tensor(2.0).log()))
    assert float(terms.detach()) == pytest.approx(expected, abs=1e-6)
    assert float(metrics["policy_loss"].detach()) == pytest.approx(-6.0, abs=1e-6)


@pytest.mark.parametrize(
    ("kl", "factor"), [(0.0, 0.5), (0.0066, 0.5), (0.0067, 1.0), (0.0149, 1.0), (0.0151, 2.0), (10.0, 2.0)]
)
def test_penalty_halves_below_and_doubles_above_its_target_by_a_half(kl: float, factor: float) -> None:
    method = PPOKL(penalty=3.0, penalty_target=0.01)
    state = method.adapt(method.initial_state(), {"approx_kl_k3_last": kl})
    assert float(state["penalty"]) == 3.0 * factor


def test_linear_target_shrinks_with_the_run() -> None:
    """.01 is the target at the start; at .6 of the run it is .004, which .01 exceeds by more than a half."""
    method = PPOKL(penalty=3.0, penalty_target=0.01, penalty_target_schedule="linear")
    for progress, factor in ((0.0, 1.0), (0.25, 1.0), (0.6, 2.0)):
        state = method.initial_state() | {"progress": torch.tensor(progress)}
        assert float(method.adapt(state, {"approx_kl_k3_last": 0.01})["penalty"]) == 3.0 * factor


def test_penalty_without_a_target_stays() -> None:
    method = PPOKL(penalty=3.0, penalty_target=0.0)
    assert float(method.adapt(method.initial_state(), {"approx_kl_k3_last": 9.0})["penalty"]) == 3.0


@pytest.mark.parametrize(("kl", "factor"), [(0.0, 1 / 64), (9.0, 64.0)])
def test_penalty_stays_within_six_steps_of_where_it_started(kl: float, factor: float) -> None:
    """So that it is back in time, however long the KL was on one side."""
    method = PPOKL(penalty=3.0)
    state = method.initial_state()
    for _ in range(2000):
        state = method.adapt(state, {"approx_kl_k3_last": kl})
    assert float(state["penalty"]) == 3.0 * factor


def test_larger_penalties_move_the_policy_less() -> None:
    moved = []
    for penalty in (0.01, 1.0, 100.0):
        policy = TabularPolicy(4, 3)
        method = PPOKL(penalty=penalty)
        state = method.initial_state() | STATE
        batch, _ = method.estimate(make_rollout(policy, rows=9, steps=5), state)
        optimizing = optimize.Optimize(epochs=40, learning_rate=0.02)
        loss = method.objective(state)
        metrics = optimize.update(learner_of(policy, optimizing), batch, loss)
        moved.append(metrics["approx_kl_k3_last"])
    assert moved[0] > 2.0 * moved[1] > 4.0 * moved[2] > 0.0


@pytest.mark.parametrize("wrong", [{"penalty": 0.0}, {"penalty_target": -1.0}, {"gamma": 2.0}, {"kl_coef": -1.0}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        PPOKL(**wrong)
