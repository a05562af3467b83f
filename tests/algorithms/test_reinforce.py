"""REINFORCE's expected gradient over every batch of a tiny problem, and the identities that theory gives."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlhf import optimize
from rlhf.algorithms.checks import require_policy
from rlhf.algorithms.clone import BehaviourCloning
from rlhf.algorithms.reinforce import Reinforce, batch_baseline
from rlhf.control.policy import ControlPolicy, PolicyConfig, Spaces
from rlhf.errors import InputError
from rlhf.rollout import Rollout, single_steps
from tests.algorithms.batches_of_episodes import (
    CPU,
    STATE,
    Bandit,
    Layers,
    exact_gradient,
    expected_gradient,
    gradient_of_return,
    returns_to_go,
    updated,
)
from tests.algorithms.test_enumeration import TinyLm, TinyMdp, our_gradient, rollout_of
from tests.batches import make_batch, make_rollout
from tests.tabular import TabularPolicy


def check(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


UNBIASED = ["none", "leave_one_out", "step_leave_one_out", "least_variance"]


@pytest.mark.parametrize("baseline", UNBIASED)
@pytest.mark.parametrize("returns", ["to_go", "total"])
def test_the_expected_gradient_is_exact(baseline: str, returns: str) -> None:
    problem = TinyMdp()
    policy = problem.policy()
    method = Reinforce(baseline=baseline, returns=returns)
    check(expected_gradient(method, policy, problem, 2), gradient_of_return(policy, problem, 1.0))


@pytest.mark.parametrize("settings", [{"returns": "total"}, {"discounted_states": True}])
@pytest.mark.parametrize("baseline", UNBIASED)
def test_the_weighted_gradient_is_that_of_the_discounted_return(settings: dict, baseline: str) -> None:
    problem = TinyMdp()
    policy = problem.policy()
    ours = expected_gradient(Reinforce(gamma=0.6, baseline=baseline, **settings), policy, problem, 2)
    check(ours, gradient_of_return(policy, problem, 0.6))


def test_the_usual_gradient_is_not_that_of_the_discounted_return() -> None:
    """Its bias is exactly that of leaving gamma^t out."""
    problem = TinyMdp()
    policy = problem.policy()
    ours = expected_gradient(Reinforce(gamma=0.6), policy, problem, 2)
    check(ours, exact_gradient(policy, problem, lambda rewards, mask: returns_to_go(rewards, 0.6)))
    assert float((ours - gradient_of_return(policy, problem, 0.6)).norm()) > 0.05


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("settings", [{}, {"returns": "total"}, {"gamma": 0.6, "discounted_states": True}])
def test_a_mean_that_includes_the_episode_leaves_n_minus_one_parts_in_n(size: int, settings: dict) -> None:
    problem = TinyMdp()
    policy = problem.policy()
    ours = expected_gradient(Reinforce(baseline="mean", **settings), policy, problem, size)
    check(ours, (size - 1) / size * gradient_of_return(policy, problem, settings.get("gamma", 1.0)))


@pytest.mark.parametrize("size", [2, 3])
def test_a_mean_per_step_shrinks_each_step_by_how_many_reach_it(size: int) -> None:
    """Of the episodes that reach t, each has 1 / n_t of its own return taken off. With p_t the chance to reach t,
    E[1 / n_t | one does] = (1 - (1 - p_t)^N) / (N p_t), since the others are Binomial(N - 1, p_t)."""
    problem = TinyMdp()
    policy = problem.policy()
    rollout, probabilities = rollout_of(problem, policy, None)
    reach = (probabilities.unsqueeze(1) * rollout.mask).sum(0)
    kept = 1.0 - (1.0 - (1.0 - reach) ** size) / (size * reach)
    assert float(reach.min()) < 0.9
    ours = expected_gradient(Reinforce(baseline="step_mean"), policy, problem, size)
    check(ours, exact_gradient(policy, problem, lambda rewards, mask: kept * returns_to_go(rewards, 1.0)))


def test_a_value_that_is_refitted_to_the_batch_shrinks_each_state_by_how_many_visit_it() -> None:
    """A critic that is fitted to the end says the mean return of the batch's visits, the action's own among them.

    With d_s the chance that an episode comes by s, at most once, the gradient in s keeps
    d_s - (1 - (1 - d_s)^N) / N of d_s.
    """
    problem, size = Layers(), 2
    policy = problem.policy()
    method = Reinforce(baseline="value", critic_epochs=45)
    ours = expected_gradient(method, policy, problem, size)
    with torch.no_grad():
        first = policy.logits[0].softmax(0)
    visits = torch.stack([torch.ones_like(first[0]), *first])
    kept = visits - (1.0 - (1.0 - visits) ** size) / size
    rewards = torch.tensor(problem.reward, dtype=torch.float64)
    table = policy.logits.softmax(-1)
    later = (table[1:].detach() * rewards[1:]).sum(-1)
    actions = rewards.clone()
    actions[0] += later
    predicted = torch.autograd.grad((kept * (table * actions).sum(-1)).sum(), policy.logits)[0]
    check(ours, predicted)
    assert float((ours - gradient_of_return(policy, problem, 1.0)).norm()) > 0.05


def test_a_value_baseline_is_discounted_as_the_returns_it_is_taken_off() -> None:
    """gamma^t (G_t - V(s_t)) by hand, at gamma = 1/2: G is 1.5, 1, 2 and 4.5, 1; V is 1 everywhere."""
    lengths = torch.tensor([[3], [2]])
    steps = torch.arange(3)
    mask = steps < lengths
    rollout = make_rollout(TabularPolicy(4, 3), rows=2, steps=3)
    rollout = replace(
        rollout, mask=mask, dones=steps == lengths - 1, rewards=HAND[:2] * mask, values=torch.ones_like(HAND[:2]) * mask
    )
    for discounted, expected in (
        (True, [[0.5, 0.0, 0.25], [3.5, 0.0, 0.0]]),
        (False, [[0.5, 0.0, 1.0], [3.5, 0.0, 0.0]]),
    ):
        method = Reinforce(gamma=0.5, baseline="value", discounted_states=discounted)
        batch, _ = method.estimate(rollout, {})
        check(batch.advantages, torch.tensor(expected, dtype=torch.float64))


def test_the_critic_is_fitted_first_and_the_policy_takes_one_step() -> None:
    """Fitted to the end, its value of each state is the mean return of the visits; the policy then uses that."""
    problem = Layers()
    policy = problem.policy()
    rollout, _ = rollout_of(problem, policy, None)
    learner, metrics = updated(Reinforce(baseline="value", critic_epochs=150), policy, rollout)
    returns = returns_to_go(rollout.rewards, 1.0)
    states = rollout.inputs["states"]
    means = torch.stack([returns[states == state].mean() for state in range(3)])
    check(learner.critic.detach(), means)
    logprobs = policy(rollout.inputs).logprobs
    step = torch.autograd.grad((logprobs * (returns - means[states])).sum() / 4, policy.logits)[0]
    check(learner.logits.detach() - policy.logits.detach(), step)
    assert metrics["gradient_steps"] == 1


def test_units_are_episodes_or_actions() -> None:
    problem = TinyMdp()
    policy = problem.policy()
    rollout, _ = rollout_of(problem, policy, None)
    steps = {}
    for units in ("episode", "action"):
        learner, _ = updated(Reinforce(units=units), policy, rollout)
        steps[units] = learner.logits.detach() - policy.logits.detach()
    check(steps["action"] * int(rollout.mask.sum()), steps["episode"] * len(rollout.mask))


HAND = torch.tensor([[1.0, 0.0, 2.0], [4.0, 1.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        ("mean", [[8 / 3] * 3] * 3),
        ("leave_one_out", [[2.5] * 3, [1.5] * 3, [4.0] * 3]),
        ("step_mean", [[8 / 3, 1.5, 2.0]] * 3),
        ("step_leave_one_out", [[2.5, 1.0, 0.0], [1.5, 2.0, 2.0], [4.0, 1.5, 2.0]]),
    ],
)
def test_baselines_of_a_batch_by_hand(baseline: str, expected: list[list[float]]) -> None:
    """Returns to go 3, 2, 2 | 5, 1 | 0: episodes of three, two and one step."""
    lengths = torch.tensor([[3], [2], [1]])
    steps = torch.arange(3)
    mask = steps < lengths
    policy = TabularPolicy(4, 3)
    rollout = replace(make_rollout(policy, rows=3, steps=3), mask=mask, dones=steps == lengths - 1, rewards=HAND * mask)
    batch, _ = Reinforce(baseline=baseline).estimate(rollout, {})
    check(batch.advantages, torch.tensor([[3, 2, 2], [5, 1, 0], [0, 0, 0]], dtype=torch.float64))
    baselines = batch_baseline(policy, single_steps(batch), mask, baseline, CPU)
    check(baselines, torch.tensor(expected, dtype=torch.float64))


def test_the_baseline_of_least_variance_weighs_by_squared_gradients() -> None:
    """A bandit with p = (.9, .1): |grad|^2 is .02 and 1.62. Of actions 0, 0, 1, paid 1, 1, 0, the others' constants are
    .02 / 1.64, .02 / 1.64 and 1."""
    problem = Bandit()
    policy = problem.policy()
    rollout = rollout_of(problem, policy, None)[0].rows(torch.tensor([0, 0, 1]))
    batch, _ = Reinforce(baseline="least_variance").estimate(rollout, {})
    baselines = batch_baseline(policy, single_steps(batch), rollout.mask, "least_variance", CPU)
    check(baselines.squeeze(1), torch.tensor([0.02 / 1.64, 0.02 / 1.64, 1.0], dtype=torch.float64))


def test_discounting_is_an_end_that_comes_with_probability_one_minus_gamma() -> None:
    """Value and gradient under gamma are those, undiscounted, of the problem that ends at each step with 1 - gamma."""
    problem, gamma = TinyMdp(), 0.6
    policy = problem.policy()
    rollout, probabilities = rollout_of(problem, policy, None)
    discounted = Reinforce(gamma=gamma, discounted_states=True, baseline="none")
    ours = our_gradient(policy, rollout, probabilities, discounted, 10_000)["logits"]
    parts, weights = [], []
    steps, lengths = torch.arange(problem.num_steps), rollout.mask.sum(1, keepdim=True)
    for length in range(1, problem.num_steps + 1):
        kept = torch.minimum(lengths, torch.tensor(length))
        ended_here = (
            gamma ** (length - 1)
            * torch.tensor([1.0 - gamma, 1.0], dtype=torch.float64)[(lengths.squeeze(1) == length).long()]
        )
        reached = lengths.squeeze(1) >= length
        cut = replace(rollout, mask=steps < kept, dones=steps == kept - 1)
        parts.append(cut.rows(reached))
        weights.append((probabilities * ended_here)[reached])
    dying = {name: torch.cat([getattr(part, name) for part in parts]) for name in CELLS}
    inputs = {name: torch.cat([part.inputs[name] for part in parts]) for name in rollout.inputs}
    probabilities_of_dying = torch.cat(weights)
    assert float(probabilities_of_dying.sum()) == pytest.approx(1.0, abs=1e-12)
    undiscounted = Reinforce(baseline="none")
    theirs = our_gradient(policy, Rollout(inputs=inputs, **dying), probabilities_of_dying, undiscounted, 10_000)[
        "logits"
    ]
    check(ours, theirs)
    first = returns_to_go(rollout.rewards, gamma)[:, 0]
    check((probabilities * first).sum(), (probabilities_of_dying * dying["rewards"].sum(1)).sum())


CELLS = ("behaviour_logprobs", "logprobs", "values", "next_values", "rewards", "dones", "mask", "sample_ids", "costs")


@pytest.mark.parametrize("problem", [TinyMdp(), TinyLm()], ids=["mdp", "lm"])
def test_advantages_of_one_give_the_cloning_gradient(problem: TinyMdp | TinyLm) -> None:
    policy = problem.policy()
    rollout, _ = rollout_of(problem, policy, None)
    gradients = {}
    for method in (BehaviourCloning(), Reinforce()):
        batch, _ = method.estimate(rollout, {})
        units = batch.mask.double()
        batch = batch._replace(advantages=units, units=units)
        policy.zero_grad()
        loss = method.objective(STATE)
        optimize.gradient(policy, batch, batch.rows(torch.tensor([0])), loss, accelerator=CPU, micro_batch_cost=100)
        gradients[method.name] = torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])
    assert float(gradients["clone"].norm()) > 1e-2
    check(gradients["reinforce"], gradients["clone"])


def test_cloning_a_gaussian_of_fixed_sigma_is_a_scaled_squared_error() -> None:
    """-log N(a; mu, sigma) = |a - mu|^2 / (2 sigma^2) + a constant."""
    spaces = Spaces(observation_size=3, action_low=(None, None), action_high=(None, None))
    config = PolicyConfig(hidden_sizes=(5,), initial_log_std=-0.9)
    policy = ControlPolicy(spaces, config, seed=0).double()
    sigma = policy.log_std[0].exp().detach()
    generator = torch.Generator().manual_seed(0)
    inputs = {
        name: torch.randn(7, 1, size, generator=generator, dtype=torch.float64)
        for name, size in (("observations", 3), ("actions", 2))
    }
    batch = make_batch(TabularPolicy(4, 3), rows=7, steps=1)
    terms, _ = BehaviourCloning().loss(policy(inputs), batch, {})
    errors = (policy.actor(inputs["observations"]) - inputs["actions"]).square().sum(-1) / (2.0 * sigma.square())
    constant = (terms - errors).detach()
    check(constant, constant[:1].expand_as(constant))
    ours, theirs = (torch.autograd.grad(x.sum(), list(policy.actor.parameters())) for x in (terms, errors))
    for one, other in zip(ours, theirs, strict=True):
        check(one, other)


def test_the_gradient_of_the_loss_is_the_sum_of_the_gradients_of_its_steps() -> None:
    policy = TabularPolicy(4, 3)
    method = Reinforce(baseline="none")
    batch, _ = method.estimate(make_rollout(policy, rows=3, steps=4), {})
    terms, _ = method.loss(policy(batch.inputs), batch, {})
    whole = torch.autograd.grad(terms.masked_fill(~batch.mask, 0.0).sum(), policy.logits)[0]
    steps = torch.zeros_like(whole)
    for row, t in batch.mask.nonzero().tolist():
        logprob = torch.log_softmax(policy.logits, -1)[batch.inputs["states"][row, t], batch.inputs["actions"][row, t]]
        steps -= batch.advantages[row, t] * torch.autograd.grad(logprob, policy.logits)[0]
    check(whole, steps)


@pytest.mark.parametrize("baseline", ["none", "value"])
def test_only_a_critic_says_what_a_cut_episode_would_have_earned(baseline: str) -> None:
    policy = TabularPolicy(4, 3)
    rollout = make_rollout(policy, rows=2, steps=3)
    cut = replace(rollout, next_values=rollout.next_values + 5.0 * rollout.dones)
    method = Reinforce(baseline=baseline)
    returns, as_cut = (method.estimate(x, {})[0].returns for x in (rollout, cut))
    check((as_cut - returns)[rollout.mask], torch.full_like(returns, 5.0 * (baseline == "value"))[rollout.mask])


def test_rows_that_are_not_whole_episodes_are_refused() -> None:
    policy = TabularPolicy(4, 3)
    rollout = make_rollout(policy, rows=4, steps=3)
    dones = rollout.dones.clone()
    dones[2] = False
    with pytest.raises(InputError, match="1 rows of a rollout are not one whole episode"):
        updated(Reinforce(), policy, replace(rollout, dones=dones))


def test_a_row_without_actions_takes_no_part() -> None:
    policy = TabularPolicy(4, 3)
    rollout = make_rollout(policy, rows=4, steps=3)
    empty = replace(rollout, mask=rollout.mask & (torch.arange(4) != 1).unsqueeze(1))
    for baseline in ("mean", "leave_one_out", "step_leave_one_out", "least_variance"):
        method = Reinforce(baseline=baseline)
        without = updated(method, policy, rollout.rows(torch.tensor([0, 2, 3])))[0]
        check(updated(method, policy, empty)[0].logits.detach(), without.logits.detach())


def test_a_policy_with_memory_has_no_cheap_gradient_of_each_action() -> None:
    with pytest.raises(InputError, match=r"of every single action, .* Choose another method or baseline"):
        require_policy(Reinforce(baseline="least_variance"), memoryless=False, has_critic=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 1.1}, "gamma is 1.1; it must lie in"),
        ({"entropy_coef": -1.0}, "entropy_coef is -1.0; it must not be negative"),
        ({"kl_coef": math.nan}, "kl_coef is nan; it must be finite"),
        ({"critic_epochs": 0}, "critic_epochs is 0; it must be at least 1"),
        ({"returns": "total", "discounted_states": True}, "returns is total"),
    ],
)
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        Reinforce(**changes)
