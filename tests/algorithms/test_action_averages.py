"""The mean over all actions of a batch, whose episodes differ in length: biased, and by just what enumeration says."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rlhf.algorithms.a2c import A2C
from rlhf.algorithms.actor_critic import Critic
from rlhf.algorithms.base import Method
from rlhf.algorithms.off_policy import OffPolicy
from rlhf.algorithms.reinforce import Reinforce
from rlhf.rollout import Rollout
from tests.algorithms.batches_of_episodes import (
    Layers,
    batches,
    expected_gradient,
    gradient_of_return,
    returns_to_go,
)
from tests.algorithms.groups_of_episodes import gradient
from tests.algorithms.test_enumeration import TinyMdp, rollout_of


class Uneven(TinyMdp):
    """Its second action ends the episode in the state where all start: one step, or three."""

    terminal = (0, 1)


def check(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


def expected_quotient(
    policy: nn.Module,
    problem: TinyMdp,
    probabilities: Tensor,
    size: int,
    *,
    credits: Callable[[Tensor], Tensor],
    counts: Tensor,
) -> Tensor:
    """E[sum_i g_i / sum_i counts_i], g_i = sum_t credit_t grad log pi(a_t | s_t), over all ordered batches of episodes.

    Args:
        credits: `(M, size, T)` from the episodes of M batches, `(M, size)`.
        counts: `(N,)` what each of the N episodes adds to the denominator.
    """
    inputs, mask, _ = problem.trajectories()

    def logprobs(logits: Tensor) -> Tensor:
        return torch.where(mask, logits.log_softmax(-1)[inputs["states"], inputs["actions"]], 0.0)

    scores = torch.autograd.functional.jacobian(logprobs, policy.logits.detach())
    chosen = torch.cartesian_prod(*[torch.arange(len(mask))] * size).view(-1, size)
    quotients = torch.einsum("mnt,mntsa->msa", credits(chosen), scores[chosen]) / counts[chosen].sum(1).view(-1, 1, 1)
    return torch.einsum("m,msa->sa", probabilities[chosen].prod(1), quotients)


def expected_over_batches(
    method: Method, policy: nn.Module, rollout: Rollout, probabilities: Tensor, size: int
) -> Tensor:
    """Of the logits, uphill, by the method's own estimate and loss of each batch, whoever acted in it."""
    parts = batches(rollout, probabilities, size)
    return sum(
        (odds * gradient(method, policy, batch)["logits"] for batch, odds in parts),
        torch.zeros_like(policy.logits),
    )


def differs(actual: Tensor, other: Tensor) -> bool:
    return float((actual - other).norm()) > 1e-3


def test_reinforce_divides_by_the_actions_of_the_batch() -> None:
    """E[(g_1 + g_2) / (L_1 + L_2)], g = sum_t G_t grad log pi; it is not E[g] / E[L], what very large batches give."""
    problem = Uneven()
    policy = problem.policy()
    rollout, probabilities = rollout_of(problem, policy, None)
    returns, lengths = returns_to_go(rollout.rewards, 1.0), rollout.mask.sum(1).double()
    ours = expected_gradient(Reinforce(units="action", baseline="none"), policy, problem, 2)
    check(
        ours, expected_quotient(policy, problem, probabilities, 2, credits=lambda rows: returns[rows], counts=lengths)
    )
    assert differs(ours, gradient_of_return(policy, problem, 1.0) / (probabilities @ lengths))


def test_reinforce_divides_by_the_actions_with_a_baseline_of_the_others_too() -> None:
    """Of two episodes the credit of one is G_t - R, R the other's return, whose length is in the denominator as well:
    what leaves the sum per episode unbiased moves this mean."""
    problem = Uneven()
    policy = problem.policy()
    rollout, probabilities = rollout_of(problem, policy, None)
    returns, lengths = returns_to_go(rollout.rewards, 1.0), rollout.mask.sum(1).double()

    def credits(rows: Tensor) -> Tensor:
        return returns[rows] - returns[rows][:, :, :1].flip(1)

    ours = expected_gradient(Reinforce(units="action"), policy, problem, 2)
    check(ours, expected_quotient(policy, problem, probabilities, 2, credits=credits, counts=lengths))
    without = expected_gradient(Reinforce(units="action", baseline="none"), policy, problem, 2)
    assert differs(ours, without)


def test_a2c_divides_by_the_actions_of_the_batch() -> None:
    """E[(g_1 + g_2) / (L_1 + L_2)], g = sum_t A_t grad log pi, A_t = sum_k (gamma lambda)^k delta_{t+k} with
    delta_t = r_t + gamma V(s_{t+1}) - V(s_t)."""
    problem, gamma, lambda_ = Uneven(), 0.8, 0.6
    policy = problem.policy()
    rollout, probabilities = rollout_of(problem, policy, None)
    values = policy.critic.detach()[rollout.inputs["states"]] * rollout.mask
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    advantages = returns_to_go(rollout.rewards + gamma * following - values, gamma * lambda_)
    lengths = rollout.mask.sum(1).double()
    method = A2C(gamma=gamma, gae_lambda=lambda_, critic=Critic(coef=0.0))
    ours = expected_gradient(method, policy, problem, 2)
    check(
        ours,
        expected_quotient(policy, problem, probabilities, 2, credits=lambda rows: advantages[rows], counts=lengths),
    )
    whole = expected_quotient(policy, problem, probabilities, 1, credits=lambda rows: advantages[rows], counts=lengths)
    assert differs(ours, whole)


def test_off_policy_divides_by_the_actions_of_the_actors_batch() -> None:
    """E_b[(g_1 + g_2) / (L_1 + L_2)], g = sum_t (pi / b) G_t grad log pi, over batches of the actor b."""
    problem = Uneven()
    policy, actor = problem.policy(), problem.policy(seed=7)
    rollout, probabilities = rollout_of(problem, actor, None)
    with torch.no_grad():
        ratios = torch.exp(policy(rollout.inputs).logprobs - actor(rollout.inputs).logprobs)
    rollout = Rollout(**vars(rollout) | {"logprobs": policy(rollout.inputs).logprobs.detach()})
    weighed = ratios * returns_to_go(rollout.rewards, 1.0) * rollout.mask
    lengths = rollout.mask.sum(1).double()
    method = OffPolicy(units="action", baseline="none")
    ours = expected_over_batches(method, policy, rollout, probabilities, 2)
    check(
        ours, expected_quotient(policy, problem, probabilities, 2, credits=lambda rows: weighed[rows], counts=lengths)
    )
    ones = torch.ones_like(lengths)
    per_episode = expected_quotient(policy, problem, probabilities, 1, credits=lambda rows: weighed[rows], counts=ones)
    assert differs(ours, per_episode / (probabilities @ lengths))


def test_episodes_of_one_length_have_no_bias() -> None:
    """All of L = 2 steps: the mean over actions is the gradient of the return over L."""
    problem = Layers()
    policy = problem.policy()
    ours = expected_gradient(Reinforce(units="action"), policy, problem, 2)
    check(ours, gradient_of_return(policy, problem, 1.0) / 2)
