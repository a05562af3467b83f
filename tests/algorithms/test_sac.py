"""SAC's loss against hand numbers, its gradients against quadrature, and a bandit with a known soft optimum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf import optimize
from rlhf.algorithms.sac import SAC, Output
from rlhf.control.policy import PolicyConfig, Spaces
from rlhf.control.twin_policy import TwinPolicy
from rlhf.core.squashed import squashed_gaussian_logprobs
from rlhf.errors import InputError
from rlhf.rollout import Rollout
from tests.learners import learner_of

CPU = Accelerator(cpu=True)
SPACES = Spaces(observation_size=2, action_low=(-2.0, 0.0, -1.0), action_high=(2.0, 5.0, 1.0))


def policy_of(spaces: Spaces = SPACES) -> TwinPolicy:
    policy = TwinPolicy(spaces, PolicyConfig(hidden_sizes=(8, 8), critic="action"), seed=1).double()
    with torch.no_grad():
        for parameter in (*policy.actor.parameters(), *policy.target_critic.parameters()):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
        policy.log_temperature.fill_(math.log(0.4))
    return policy


def random_rollout(rows: int, spaces: Spaces = SPACES) -> Rollout:
    generator = torch.Generator().manual_seed(0)
    states, following = torch.randn(2, rows, 1, spaces.observation_size, generator=generator, dtype=torch.float64)
    low, high = (torch.tensor(bounds, dtype=torch.float64) for bounds in (spaces.action_low, spaces.action_high))
    share = torch.rand(rows, 1, spaces.action_size, generator=generator, dtype=torch.float64)
    mask, unknown = torch.ones(rows, 1, dtype=torch.bool), torch.zeros(rows, 1, dtype=torch.float64)
    return Rollout(
        inputs={"observations": states, "actions": low + share * (high - low)},
        behaviour_logprobs=unknown,
        logprobs=unknown,
        values=unknown,
        next_values=unknown,
        rewards=torch.randn(rows, 1, generator=generator, dtype=torch.float64),
        dones=mask,
        mask=mask,
        sample_ids=torch.arange(rows),
        costs=torch.ones(rows, dtype=torch.int64),
        terminals=torch.arange(rows).unsqueeze(1) % 3 == 0,
        next_inputs={"observations": following},
    )


def hand_output(**changes: Tensor) -> Output:
    """One cell: twin values 1 and 3, drawn action with log p -0.5 worth 2 and 1.5, the next 0.25 worth 5 and 4."""

    def cell(*x: float) -> Tensor:
        return (
            torch.tensor(x, dtype=torch.float64).view(1, 1, -1).squeeze(-1)
            if len(x) == 1
            else torch.tensor(x, dtype=torch.float64).view(1, 1, -1)
        )

    output = Output(
        values=cell(1.0, 3.0),
        logprobs=cell(-0.5),
        sampled_values=cell(2.0, 1.5),
        next_logprobs=cell(0.25),
        next_values=cell(5.0, 4.0),
        log_temperature=cell(math.log(0.2)),
    )
    return output._replace(**changes)


@pytest.mark.parametrize(("row", "target"), [(1, 0.9 * (4.0 - 0.2 * 0.25)), (0, 0.0)])
def test_sac_loss_by_hand(row: int, target: float) -> None:
    """y = r + gamma (min Q' - temperature log p'), r alone where the episode ends (row 0)."""
    method = SAC(gamma=0.9, target_entropy=-1.0)
    batch, _ = method.estimate(random_rollout(2), {})
    batch = batch.rows(torch.tensor([row]))
    terms, metrics = method.loss(hand_output(), batch, {})
    y = float(batch.rewards) + target
    value_loss = 0.5 * ((y - 1.0) ** 2 + (y - 3.0) ** 2)
    policy_loss = 0.2 * -0.5 - 1.5
    # Three numbers make an action: the target entropy is -3, the entropy now 0.5.
    temperature_loss = math.log(0.2) * (0.5 + 3.0)
    assert float(metrics["value_loss"]) == pytest.approx(value_loss, abs=1e-9)
    assert float(metrics["policy_loss"]) == pytest.approx(policy_loss, abs=1e-9)
    assert float(terms) == pytest.approx(value_loss + policy_loss + temperature_loss, abs=1e-9)


def test_sac_trains_each_part_by_its_own_loss() -> None:
    """One backward pass over the sum gives each part the gradient that its loss alone gives it, by the definitions."""
    policy, method = policy_of(), SAC(gamma=0.9)
    batch, _ = method.estimate(random_rollout(6), {})
    noise, next_noise = torch.randn(2, 6, 1, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    inputs = {**batch.inputs, "noise": noise, "next_noise": next_noise}
    terms, _ = method.loss(policy(inputs), batch, {})
    policy.zero_grad()
    terms.mean().backward()
    found = {name: parameter.grad.clone() for name, parameter in policy.named_parameters() if parameter.requires_grad}

    def drawn(states: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = policy.actor(states).squeeze(-2).chunk(2, -1)
        draws = mean + log_std.exp() * eps
        return draws.tanh(), squashed_gaussian_logprobs(draws, mean, log_std)

    states, following = batch.inputs["observations"], batch.inputs["next_observations"]
    low, high = torch.tensor(SPACES.action_low).double(), torch.tensor(SPACES.action_high).double()
    unit = (batch.inputs["actions"] - (low + high) / 2) / ((high - low) / 2)
    with torch.no_grad():
        action, logprob = drawn(following, next_noise)
        lowest = policy.target_critic(torch.cat([following, action], -1)).squeeze(-1).min(-1).values
        targets = batch.rewards + 0.9 * torch.where(batch.terminals, 0.0, lowest - 0.4 * logprob)
    values = policy.critic(torch.cat([states, unit], -1)).squeeze(-1)
    critic = 0.5 * (values - targets.unsqueeze(-1)).square().sum(-1).mean()
    action, logprob = drawn(states, noise)
    actor = (0.4 * logprob - policy.critic(torch.cat([states, action], -1)).squeeze(-1).min(-1).values).mean()
    temperature = (-policy.log_temperature * (logprob.detach() - 3.0)).mean()
    for part, objective in (("critic", critic), ("actor", actor), ("log_temperature", temperature)):
        names = [name for name in found if name.split(".")[0] == part]
        exact = torch.autograd.grad(objective, [dict(policy.named_parameters())[name] for name in names])
        for name, gradient in zip(names, exact, strict=True):
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    assert {name.split(".")[0] for name in found} == {"critic", "actor", "log_temperature"}


def test_reparameterised_gradient_is_the_score_function_gradient_in_expectation() -> None:
    """Of E[Q(tanh u) - temperature log p], u ~ N(mean, std), for a curved Q; both by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    noise = torch.tensor(nodes).unsqueeze(1)
    shares = torch.tensor(weights / math.sqrt(2.0 * math.pi))
    parameters = torch.tensor([0.4, -0.3], dtype=torch.float64, requires_grad=True)

    def logprobs(draws: Tensor) -> Tensor:
        mean, log_std = parameters.expand(len(draws), 2).split(1, dim=1)
        return squashed_gaussian_logprobs(draws, mean, log_std)

    def quality(draws: Tensor) -> Tensor:
        return (3.0 * draws.tanh()).sin().squeeze(1) + draws.tanh().squeeze(1) ** 2

    draws = parameters[0] + parameters[1].exp() * noise
    value = (shares * (quality(draws) - 0.2 * logprobs(draws))).sum()
    (through_the_draw,) = torch.autograd.grad(value, parameters)
    fixed = draws.detach()
    gains = (quality(fixed) - 0.2 * logprobs(fixed)).detach()
    (score,) = torch.autograd.grad((shares * logprobs(fixed) * gains).sum(), parameters)
    assert float(score.abs().min()) > 1e-2
    torch.testing.assert_close(through_the_draw, score, rtol=0, atol=1e-6)


def two_planes() -> TwinPolicy:
    """Of one number, -2 to 5. All units of its critics are on, so that both are linear in the action; they cross."""
    spaces = Spaces(observation_size=2, action_low=(-2.0,), action_high=(5.0,))
    config = PolicyConfig(hidden_sizes=(8,), critic="action", initial_log_std=-1.0)
    policy = TwinPolicy(spaces, config, seed=1).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in policy.actor.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        policy.critic.biases[0].fill_(20.0)
        # In the middle of states and actions they agree.
        policy.critic.biases[1].sub_(policy.critic(torch.zeros(3, dtype=torch.float64)).unsqueeze(-1))
        policy.log_temperature.fill_(math.log(0.4))
    return policy


@torch.no_grad()
def crossings_of(policy: TwinPolicy, states: Tensor) -> Tensor:
    """`(S,)` actions, on the scale of -1 to 1, that both critics value alike."""
    ends = torch.tensor([[-1.0], [1.0]], dtype=torch.float64).expand(len(states), 2, 1)
    values = policy.critic(torch.cat([states.unsqueeze(1).expand(-1, 2, -1), ends], -1)).squeeze(-1)
    below, above = (values[..., 1] - values[..., 0]).unbind(1)
    return -(below + above) / (above - below)


def split_quadrature(low: float, middle: Tensor, high: float, num_nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss-Legendre on [low, middle] and on [middle, high], `(S, 2 num_nodes)` for `(S,)`."""
    nodes, weights = (torch.tensor(x) for x in np.polynomial.legendre.leggauss(num_nodes))
    left, right = (middle - low).unsqueeze(1) / 2, (high - middle).unsqueeze(1) / 2
    points = torch.cat([low + left * (1.0 + nodes), high - right * (1.0 - nodes)], dim=1)
    return points, torch.cat([left * weights, right * weights], dim=1)


def test_the_policy_gradient_over_its_noise_is_that_of_the_integral_over_actions() -> None:
    """J_pi(s) = int p(a | s) (temperature log p(a | s) - min(Q_1, Q_2)(s, a)) da over [-1, 1], where p alone depends on
    the policy: log p(a) = log N(atanh a; mean, std) - log(1 - a^2).

    Both integrals are split where the critics cross. The integrands are smooth on either side, so Gauss-Legendre is
    exact but for rounding; across the kink Gauss-Hermite, with 160 nodes, is off by 1e-2.
    """
    policy, method = two_planes(), SAC()
    states = torch.tensor([[0.3, -0.8], [-1.1, 0.4], [0.6, 0.9]], dtype=torch.float64)
    crossings = crossings_of(policy, states)
    assert float(crossings.abs().max()) < 0.9
    mean, log_std = (policy.actor(states).squeeze(-2) + torch.tensor([0.0, -1.0])).split(1, dim=-1)
    kinks = ((crossings.atanh().unsqueeze(1) - mean) / log_std.exp()).detach().squeeze(1)
    noise, shares = split_quadrature(-9.0, kinks, 9.0, 100)
    shares = shares * torch.exp(-0.5 * noise.square()) / math.sqrt(2.0 * math.pi)
    cells = noise.reshape(-1, 1, 1)
    rollout = random_rollout(len(cells), policy.spaces)
    batch, _ = method.estimate(rollout, {})
    repeated = states.repeat_interleave(noise.shape[1], 0).unsqueeze(1)
    inputs = {**batch.inputs, "observations": repeated, "noise": cells, "next_noise": torch.zeros_like(cells)}
    terms, _ = method.loss(policy(inputs), batch, {})
    ours = torch.autograd.grad((shares.reshape(-1, 1) * terms).sum(), list(policy.actor.parameters()))

    actions, weights = split_quadrature(-1.0, crossings, 1.0, 300)
    z = (actions.atanh() - mean) / log_std.exp()
    logprobs = -0.5 * z.square() - log_std - 0.5 * math.log(2.0 * math.pi) - torch.log1p(-actions.square())
    pairs = torch.cat([states.unsqueeze(1).expand(*actions.shape, 2), actions.unsqueeze(-1)], -1)
    lowest = policy.critic(pairs).squeeze(-1).min(-1).values
    exact = (weights * logprobs.exp() * (0.4 * logprobs - lowest)).sum()
    expected = torch.autograd.grad(exact, list(policy.actor.parameters()))
    assert max(float(part.abs().max()) for part in expected) > 0.1
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def update_once(
    policy: TwinPolicy, rollout: Rollout, *, index: int = 0, rate: float = 0.005, minibatches: int = 1
) -> dict[str, float]:
    method = SAC(target_rate=rate)
    settings = optimize.Optimize(epochs=1, minibatches=minibatches, whiten="none")
    batch, _ = method.estimate(rollout, {})
    return method.update(learner_of(policy, settings, update_index=index), rollout, batch, {})[0]


def test_sac_update_moves_every_part_and_the_targets() -> None:
    policy, before = policy_of(), policy_of().state_dict()
    metrics = update_once(policy, random_rollout(8), rate=0.25, minibatches=2)
    after = policy.state_dict()
    assert metrics["gradient_steps"] == 2
    assert all(not torch.equal(after[name], before[name]) for name in after)


def test_sac_noise_is_that_of_the_update_and_the_row() -> None:
    """The same update gives the same weights, another update other noise, rows in another order the same step."""
    policies = [policy_of() for _ in range(4)]
    rollout = random_rollout(8)
    for policy, index in zip(policies[:3], (3, 3, 4), strict=True):
        update_once(policy, rollout, index=index)
    update_once(policies[3], rollout.rows(torch.arange(8).flip(0)), index=3)
    weights = [torch.cat([tensor.flatten() for tensor in policy.state_dict().values()]) for policy in policies]
    assert torch.equal(weights[0], weights[1])
    assert float((weights[0] - weights[2]).abs().max()) > 1e-6
    torch.testing.assert_close(weights[0], weights[3], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("field", "value"), [("gamma", 1.1), ("batch_size", 0), ("target_rate", 0.0), ("target_rate", 1.5)]
)
def test_sac_refuses_settings_out_of_range(field: str, value: float) -> None:
    with pytest.raises(InputError, match=field):
        SAC(**{field: value})
