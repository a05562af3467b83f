"""The gradient of the whole objective equals the one got by enumerating every trajectory.

The objective of one update, taken over all trajectories with their probabilities as weights, has at theta_old the
gradient of the exact J(theta), which autograd differentiates through the probability of each trajectory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf import optimize
from rlhf.algorithms.base import Method
from rlhf.algorithms.clone import BehaviourCloning
from rlhf.algorithms.ppo import PPO
from rlhf.lm.policy import CausalLM
from rlhf.rollout import Rollout
from tests.tabular import TabularPolicy

GAMMA_ONE = {"gamma": 1.0, "gae_lambda": 1.0}
STATE = {"progress": torch.tensor(0.0), "update": torch.tensor(0)}


class TinyMdp:
    """Three states, two actions, three steps; transitions are deterministic, one pair ends the episode."""

    num_steps = 3
    transition = ((1, 2), (2, 0), (0, 1))
    reward = ((0.3, -1.0), (2.0, 0.1), (-0.7, 1.1))
    terminal = (1, 1)

    def trajectories(self) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """inputs (N, T), mask (N, T), rewards (N, T): every distinct trajectory once."""
        seen: dict[tuple[tuple[int, int, float], ...], None] = {}
        for actions in itertools.product(range(2), repeat=self.num_steps):
            state, steps = 0, []
            for action in actions:
                steps.append((state, action, self.reward[state][action]))
                if (state, action) == self.terminal:
                    break
                state = self.transition[state][action]
            seen[tuple(steps)] = None
        rows = [[*steps, *[(0, 0, 0.0)] * (self.num_steps - len(steps))] for steps in seen]
        table = torch.tensor(rows, dtype=torch.float64)
        mask = torch.arange(self.num_steps) < torch.tensor([len(steps) for steps in seen]).unsqueeze(1)
        return {"states": table[..., 0].long(), "actions": table[..., 1].long()}, mask, table[..., 2]

    def policy(self, seed: int = 0) -> nn.Module:
        return TabularPolicy(3, 2, seed=seed)

    def trajectory_logprobs(self, policy: nn.Module, inputs: dict[str, Tensor], mask: Tensor) -> Tensor:
        table = torch.log_softmax(policy.logits, dim=-1)
        return torch.where(mask, table[inputs["states"], inputs["actions"]], 0.0)


class TinyLm:
    """A vocabulary of three tokens, one of which ends the response; three steps; one prompt."""

    num_steps, end, prompt = 3, 2, (0, 1)

    def trajectories(self) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        responses = [
            r
            for n in (1, 2, 3)
            for r in itertools.product(range(3), repeat=n)
            if self.end not in r[:-1] and (n == 3 or r[-1] == self.end)
        ]
        lengths = torch.tensor([len(r) for r in responses])
        tokens = torch.tensor([[*self.prompt, *r, *[0] * (3 - len(r))] for r in responses])
        mask = torch.arange(3) < lengths.unsqueeze(1)
        actions = torch.where(mask, torch.arange(3) + 2, 0)
        generator = torch.Generator().manual_seed(5)
        rewards = torch.zeros(len(responses), 3, dtype=torch.float64)
        scores = torch.randn(len(responses), generator=generator, dtype=torch.float64)
        rewards[torch.arange(len(responses)), lengths - 1] = scores
        return {"tokens": tokens, "lengths": lengths + 2, "actions": actions}, mask, rewards

    def policy(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=3, n_positions=8, n_embd=8, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=2
        )
        policy = CausalLM(GPT2LMHeadModel(config).double(), temperature=1.0, critic="shared")
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return policy

    def trajectory_logprobs(self, policy: nn.Module, inputs: dict[str, Tensor], mask: Tensor) -> Tensor:
        logits = policy.model(input_ids=inputs["tokens"]).logits
        table = torch.log_softmax(logits, dim=-1)[:, 1:-1]
        chosen = table.gather(-1, inputs["tokens"][:, 2:].unsqueeze(-1)).squeeze(-1)
        return torch.where(mask, chosen, 0.0)


PROBLEMS = pytest.mark.parametrize("problem", [TinyMdp(), TinyLm()], ids=["mdp", "lm"])


def rollout_of(problem: TinyMdp | TinyLm, policy: nn.Module, ref_logprobs: Tensor | None) -> tuple[Rollout, Tensor]:
    """Every trajectory as one rollout, and their probabilities under the policy."""
    inputs, mask, rewards = problem.trajectories()
    with torch.no_grad():
        output = policy(inputs)
        probabilities = problem.trajectory_logprobs(policy, inputs, mask).sum(1).exp()
    values = torch.where(mask, output.values, 0.0)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    last = mask & ~torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    rollout = Rollout(
        inputs=inputs,
        behaviour_logprobs=output.logprobs,
        logprobs=output.logprobs,
        values=values,
        next_values=next_values,
        rewards=rewards,
        dones=last,
        mask=mask,
        sample_ids=torch.arange(mask.shape[0]),
        costs=mask.sum(1),
        ref_logprobs=ref_logprobs,
    )
    return rollout, probabilities


def our_gradient(
    policy: nn.Module, rollout: Rollout, probabilities: Tensor, method: Method, cost: int
) -> dict[str, Tensor]:
    """The project's own estimate, loss and gradient; each trajectory weighs its probability, averaged per episode."""
    state = method.initial_state() | STATE
    batch, _ = method.estimate(rollout, state)
    weights = batch.weights * probabilities.unsqueeze(1)
    batch = batch._replace(weights=weights, units=rollout.dones * probabilities.unsqueeze(1))
    policy.zero_grad()
    loss = method.objective(state)
    optimize.gradient(
        policy, batch, batch.rows(torch.tensor([0])), loss, accelerator=Accelerator(), micro_batch_cost=cost
    )
    return {name: parameter.grad.clone() for name, parameter in policy.named_parameters()}


def exact_gradient(policy: nn.Module, objective: Callable[[], Tensor]) -> dict[str, Tensor]:
    policy.zero_grad()
    objective().backward()
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in policy.named_parameters()
    }


def assert_equal(ours: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    assert max(float(gradient.abs().max()) for gradient in exact.values()) > 1e-3
    for name, gradient in exact.items():
        torch.testing.assert_close(ours[name], gradient, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@PROBLEMS
def test_probabilities_of_all_trajectories_add_up_to_one(problem: TinyMdp | TinyLm) -> None:
    _, probabilities = rollout_of(problem, problem.policy(), None)
    assert float(probabilities.sum()) == pytest.approx(1.0, abs=1e-12)


@PROBLEMS
@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
@pytest.mark.parametrize("cost", [1, 4, 10_000])
def test_ppo_gradient_is_exact_at_the_old_policy(problem: TinyMdp | TinyLm, kl_coef: float, cost: int) -> None:
    """-grad J_beta + value and entropy terms, with J_beta = E[R - beta sum(log pi - log ref)] by enumeration."""
    policy = problem.policy()
    inputs, mask, rewards = problem.trajectories()
    with torch.no_grad():
        ref_logprobs = problem.trajectory_logprobs(problem.policy(seed=7), inputs, mask)
    rollout, probabilities = rollout_of(problem, policy, ref_logprobs if kl_coef else None)
    method = PPO(**GAMMA_ONE, kl_coef=kl_coef, value_coef=0.7, entropy_coef=0.05)

    def objective() -> Tensor:
        logprobs = problem.trajectory_logprobs(policy, inputs, mask)
        charged = rewards - kl_coef * (logprobs - ref_logprobs)
        exact_return = (logprobs.sum(1).exp() * charged.sum(1)).sum()
        output = policy(inputs)
        to_go = charged.detach().flip(1).cumsum(1).flip(1)
        squares = torch.where(mask, 0.5 * (output.values - to_go).square(), 0.0).sum(1)
        entropy = torch.where(mask, output.entropy, 0.0).sum(1)
        return -exact_return + (probabilities * (0.7 * squares - 0.05 * entropy)).sum()

    exact = exact_gradient(policy, objective)
    assert_equal(our_gradient(policy, rollout, probabilities, method, cost), exact)


@PROBLEMS
def test_ppo_gradient_is_exact_away_from_the_old_policy(problem: TinyMdp | TinyLm) -> None:
    """After a step the objective is E_old[min(r A, clip(r) A)] (eq. 7), with A the return to go minus the value."""
    policy = problem.policy()
    inputs, mask, rewards = problem.trajectories()
    rollout, probabilities = rollout_of(problem, policy, None)
    with torch.no_grad():
        for i, parameter in enumerate(policy.parameters()):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)).double())
    method = PPO(**GAMMA_ONE, clip=0.2, value_clip=0.1, value_coef=1.0)
    advantages = rewards.flip(1).cumsum(1).flip(1) - rollout.values
    sides = set()

    def objective() -> Tensor:
        logprobs = problem.trajectory_logprobs(policy, inputs, mask)
        output = policy(inputs)
        total = torch.zeros((), dtype=torch.float64)
        for n, t in mask.nonzero().tolist():
            ratio = (logprobs[n, t] - rollout.logprobs[n, t]).exp()
            clipped = min(max(ratio.item(), 0.8), 1.2)
            unclipped = ratio * advantages[n, t] <= clipped * advantages[n, t]
            sides.add(unclipped.item())
            gain = ratio * advantages[n, t] if unclipped else clipped * advantages[n, t]
            old, value = rollout.values[n, t], output.values[n, t]
            target = advantages[n, t] + old
            near = old + torch.clamp(value - old, -0.1, 0.1)
            worse = torch.maximum((value - target).square(), (near - target).square())
            total = total + probabilities[n] * (-gain + 0.5 * worse)
        return total

    exact = exact_gradient(policy, objective)
    assert sides == {True, False}
    assert_equal(our_gradient(policy, rollout, probabilities, method, 10_000), exact)


@PROBLEMS
def test_cloning_gradient_is_exact(problem: TinyMdp | TinyLm) -> None:
    """Demonstrations weighted by a demonstrator q: the gradient of the cross-entropy -sum q(tau) log p(tau)."""
    policy = problem.policy()
    inputs, mask, _ = problem.trajectories()
    rollout, _ = rollout_of(problem, policy, None)
    demonstrator = torch.softmax(torch.arange(mask.shape[0], dtype=torch.float64).sin(), dim=0)

    def objective() -> Tensor:
        return -(demonstrator * problem.trajectory_logprobs(policy, inputs, mask).sum(1)).sum()

    exact = exact_gradient(policy, objective)
    assert_equal(our_gradient(policy, rollout, demonstrator, BehaviourCloning(), 4), exact)
