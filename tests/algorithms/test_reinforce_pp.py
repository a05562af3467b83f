from __future__ import annotations

import copy
import math
import statistics

import pytest
import torch
from torch import Tensor, nn

from rlhf import optimize
from rlhf.algorithms.a2c import A2C
from rlhf.algorithms.base import Method
from rlhf.algorithms.ppo import PPO
from rlhf.algorithms.reinforce_pp import ReinforcePP
from rlhf.errors import InputError
from rlhf.rollout import Rollout, single_steps
from tests.algorithms.batches_of_episodes import STATE, Bandit, batches, expected_gradient, gradient_of_return
from tests.algorithms.groups_of_episodes import one_group
from tests.algorithms.test_enumeration import TinyMdp, rollout_of
from tests.learners import learner_of

CHOSEN = [0, 3, 3, 4, 6]


def rollout_and_policy(reference: Tensor | None = None) -> tuple[Rollout, nn.Module]:
    problem = TinyMdp()
    policy = problem.policy()
    rollout, _ = rollout_of(problem, policy, reference)
    return one_group(rollout.rows(torch.tensor(CHOSEN))), policy


def moved(rollout: Rollout, policy: nn.Module, method: ReinforcePP) -> Tensor:
    """The step of the logits that the whole update makes by gradient descent of rate 1, whitening included."""
    moving = copy.deepcopy(policy)
    batch, _ = method.estimate(rollout, {})
    plain = optimize.Optimize(learning_rate=1.0, epochs=1, whiten=ReinforcePP.whitens[-1], max_gradient_norm=0.0)
    loss = method.objective(STATE)
    learner = learner_of(moving, plain, optimizer=torch.optim.SGD(moving.parameters(), lr=1.0))
    optimize.update(learner, single_steps(batch), loss)
    assert torch.equal(moving.critic, policy.critic)
    return moving.logits.detach() - policy.logits.detach()


def predicted(rollout: Rollout, policy: nn.Module, credits: list[list[float]]) -> Tensor:
    """Mean over actions of grad log pi times the credit, whitened over all actions of the batch."""
    cells = [credit for row in credits for credit in row]
    mean, deviation = statistics.fmean(cells), statistics.pstdev(cells)
    table = torch.log_softmax(policy.logits, dim=-1)
    objective = torch.zeros((), dtype=torch.float64)
    for i, row in enumerate(credits):
        for t, credit in enumerate(row):
            state, action = rollout.inputs["states"][i, t], rollout.inputs["actions"][i, t]
            objective = objective + (credit - mean) / deviation * table[state, action] / len(cells)
    return torch.autograd.grad(objective, policy.logits)[0]


def to_go(rewards: Tensor, lengths: list[int], gamma: float) -> list[list[float]]:
    return [
        [sum(gamma ** (k - t) * float(rewards[i, k]) for k in range(t, n)) for t in range(n)]
        for i, n in enumerate(lengths)
    ]


@pytest.mark.parametrize("gamma", [1.0, 0.6])
def test_returns_to_go_are_normalised_over_the_batch(gamma: float) -> None:
    rollout, policy = rollout_and_policy()
    credits = to_go(rollout.rewards, rollout.mask.sum(1).tolist(), gamma)
    ours = moved(rollout, policy, ReinforcePP(gamma=gamma))
    torch.testing.assert_close(ours, predicted(rollout, policy, credits), rtol=0, atol=1e-9)


def test_the_group_baseline_is_taken_off_before_normalising() -> None:
    rollout, policy = rollout_and_policy()
    credits = to_go(rollout.rewards, rollout.mask.sum(1).tolist(), 1.0)
    means = [statistics.fmean(row[0] for row in part) for part in (credits[:2], credits[2:])]
    rollout.groups[2:] = 1
    less = [[credit - means[i >= 2] for credit in row] for i, row in enumerate(credits)]
    ours = moved(rollout, policy, ReinforcePP(baseline="group"))
    torch.testing.assert_close(ours, predicted(rollout, policy, less), rtol=0, atol=1e-9)


@pytest.mark.parametrize("baseline", ["none", "group"])
def test_the_expected_gradient_is_biased_as_normalising_by_the_batch_predicts(baseline: str) -> None:
    """Over every batch of two episodes; the direction is not that of the return's gradient."""
    problem = TinyMdp()
    policy = problem.policy()
    whole, probabilities = rollout_of(problem, policy, None)
    ours, expected = torch.zeros_like(policy.logits), torch.zeros_like(policy.logits)
    for rollout, probability in batches(whole, probabilities, 2):
        credits = to_go(rollout.rewards, rollout.mask.sum(1).tolist(), 1.0)
        mean = statistics.fmean(row[0] for row in credits) if baseline == "group" else 0.0
        expected += probability * predicted(rollout, policy, [[credit - mean for credit in row] for row in credits])
        ours += probability * moved(one_group(rollout), policy, ReinforcePP(baseline=baseline))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)
    exact = gradient_of_return(policy, problem, 1.0)
    assert 0.5 < float(torch.nn.functional.cosine_similarity(ours.flatten(), exact.flatten(), dim=0)) < 0.999


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("method", [ReinforcePP(), PPO(), A2C()])
def test_whitening_scales_the_gradient_of_two_outcomes_by_their_expected_deviation(method: Method, size: int) -> None:
    """Of N actions k are paid 1, the others 0: whitened, these are sqrt((N - k) / k) and -sqrt(k / (N - k)), whose
    gradient is sqrt(k (N - k)) / N (grad log p_1 - grad log p_0), the exact one times deviation / (p_1 p_0).
    """
    problem = Bandit()
    policy = problem.policy()
    with torch.no_grad():
        policy.critic.zero_()
    ours = expected_gradient(method, policy, problem, size, whiten="batch")
    chances = [math.comb(size, k) * 0.9**k * 0.1 ** (size - k) for k in range(size + 1)]
    deviation = sum(chance * math.sqrt(k * (size - k)) / size for k, chance in enumerate(chances))
    exact = gradient_of_return(policy, problem, 1.0)
    torch.testing.assert_close(ours, deviation / 0.09 * exact, rtol=0, atol=1e-7)


def test_the_reference_is_charged_action_by_action() -> None:
    problem = TinyMdp()
    inputs, mask, _ = problem.trajectories()
    with torch.no_grad():
        reference = problem.trajectory_logprobs(problem.policy(seed=7), inputs, mask)
    rollout, policy = rollout_and_policy(reference)
    charged = rollout.rewards - 0.3 * (rollout.logprobs - rollout.ref_logprobs)
    credits = to_go(charged, rollout.mask.sum(1).tolist(), 1.0)
    ours = moved(rollout, policy, ReinforcePP(kl_coef=0.3))
    torch.testing.assert_close(ours, predicted(rollout, policy, credits), rtol=0, atol=1e-9)


def test_only_the_baseline_needs_groups() -> None:
    rollout, _ = rollout_and_policy()
    rollout.groups[0] = 5
    ReinforcePP().estimate(rollout, {})
    with pytest.raises(InputError, match="rows that share a start"):
        ReinforcePP(baseline="group").estimate(rollout, {})


@pytest.mark.parametrize("bad", [{"gamma": -0.1}, {"clip": 0.0}, {"kl_coef": -1.0}, {"entropy_coef": -1.0}])
def test_settings_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError):
        ReinforcePP(**bad)
