"""A2C, TD and Q actor-critic: expected gradients by enumeration, biases as predicted, and the order of fitting."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlhf import optimize
from rlhf.algorithms import actor_critic
from rlhf.algorithms.a2c import A2C
from rlhf.algorithms.actor_critic import Critic, critic_targets, stepping_only
from rlhf.algorithms.base import Method
from rlhf.algorithms.impala import Impala
from rlhf.algorithms.ppo import PPO
from rlhf.algorithms.q_actor_critic import QActorCritic
from rlhf.errors import InputError
from rlhf.rollout import PolicyOutput, Rollout, single_steps
from tests.algorithms.test_enumeration import PROBLEMS, TinyLm, TinyMdp, our_gradient, rollout_of
from tests.batches import make_batch, make_rollout
from tests.episodes import (
    NUM_ACTIONS,
    NUM_STATES,
    STATE,
    Enumerated,
    QPolicy,
    enumerated,
    expected_gradient,
    gradient_by_weights,
    three_steps,
)
from tests.learners import learner_of
from tests.tabular import TabularPolicy
from theory import mdp

TD = A2C(gae_lambda=0.0, critic=Critic(target="td0"))
METHODS = pytest.mark.parametrize("method", [A2C(), TD, QActorCritic()], ids=["a2c", "td", "q"])
TARGETS = ("monte_carlo", "td0", "n_step", "td_lambda")
PLAIN = optimize.Optimize(learning_rate=1.0, epochs=1, max_gradient_norm=0.0, whiten="none")
FROZEN = Critic(coef=0.0)


def close(actual: Tensor, expected: Tensor) -> None:
    assert float(expected.abs().max()) > 1e-3
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


def with_critic(policy: nn.Module, table: Tensor) -> Any:
    with torch.no_grad():
        policy.critic.copy_(table)
    return policy


def policy_of(method: Method, gamma: float) -> Any:
    """A random softmax with the exact critic that the method asks for."""
    if isinstance(method, QActorCritic):
        policy = QPolicy(NUM_STATES, NUM_ACTIONS)
        return with_critic(policy, mdp.action_values(three_steps(), policy.logits.detach().softmax(-1), gamma=gamma))
    policy = TabularPolicy(NUM_STATES, NUM_ACTIONS)
    return with_critic(policy, mdp.state_values(three_steps(), policy.logits.detach().softmax(-1), gamma=gamma))


EXACT = [
    TD,
    A2C(gae_lambda=0.6),
    A2C(gae_lambda=1.0),
    A2C(advantage="n_step", num_steps=1),
    A2C(advantage="n_step", num_steps=2),
    QActorCritic(baseline="none"),
    QActorCritic(baseline="expected"),
]


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_with_an_exact_critic_the_expected_gradient_is_exact(method: Method, gamma: float) -> None:
    """sum_s visits(s) sum_a grad pi(a | s) Q(s, a); with gamma 1 the gradient of the return itself."""
    world, policy = three_steps(), policy_of(method, gamma)
    ours = expected_gradient(policy, enumerated(world, policy), replace(method, gamma=gamma, critic=FROZEN))
    values = mdp.action_values(world, policy.logits.detach().softmax(-1), gamma=gamma)
    close(ours["logits"], gradient_by_weights(world, policy, values))
    if gamma == 1.0:
        close(ours["logits"], -mdp.policy_gradient(world, policy.logits.detach(), gamma=1.0))


@PROBLEMS
@pytest.mark.parametrize("kind", [A2C, Impala])
def test_the_gradient_right_after_acting_is_ppos(problem: TinyMdp | TinyLm, kind: type[Method]) -> None:
    """grad L_PG = grad L_IS at theta_old, on the language model too; PPO's own is proven by enumeration."""
    policy = problem.policy()
    rollout, probabilities = rollout_of(problem, policy, problem.trajectories()[2])
    settings = {"kl_coef": 0.3, "entropy_coef": 0.05}
    known = PPO(gae_lambda=1.0, value_coef=0.5, **settings)
    expected = our_gradient(policy, rollout, probabilities, known, 4)
    ours = our_gradient(policy, rollout, probabilities, kind(**settings), 4)
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, rtol=0, atol=1e-9)


@pytest.mark.parametrize("lambda_", [0.0, 0.4, 1.0])
def test_the_bias_of_an_imperfect_critic_is_the_predicted_one(lambda_: float) -> None:
    """With errors e = V' - V the advantage is off by -e(s), which no action sees, and by what it bootstraps:
    gamma (1 - lambda) sum_s' P(s' | s, a) sum_k (gamma lambda P_pi)^k e (s'). At lambda 0: gamma P e."""
    gamma, world = 0.8, three_steps()
    policy = policy_of(A2C(), gamma)
    errors = torch.tensor([0.5, -0.3, 1.0, 0.2, -0.7, 0.4], dtype=torch.float64)
    table = policy.logits.detach().softmax(-1)
    follow = torch.einsum("sa,sat->st", table, world.transitions)
    spread = torch.linalg.solve(torch.eye(NUM_STATES).double() - gamma * lambda_ * follow, errors)
    bias = gradient_by_weights(world, policy, gamma * (1.0 - lambda_) * world.transitions @ spread)
    exact = gradient_by_weights(world, policy, mdp.action_values(world, table, gamma=gamma))
    with_critic(policy, policy.critic + errors)
    method = A2C(gamma=gamma, gae_lambda=lambda_, critic=FROZEN)
    ours = expected_gradient(policy, enumerated(world, policy), method)["logits"]
    close(ours, exact + bias)
    assert (float(bias.abs().max()) > 1e-2) is (lambda_ < 1.0)


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_the_bias_of_an_imperfect_critic_is_that_of_the_state_n_steps_on(num_steps: int) -> None:
    """With errors e = V' - V the n-step advantage is off by gamma^n P_a P_pi^(n-1) e - e(s), where the second part is
    the same for every action; no episode is longer than 3 steps, so at n = 3 nothing is left of the first."""
    gamma, world = 0.8, three_steps()
    policy = policy_of(A2C(), gamma)
    errors = torch.tensor([0.5, -0.3, 1.0, 0.2, -7.0, 4.0], dtype=torch.float64)
    table = policy.logits.detach().softmax(-1)
    follow = torch.einsum("sa,sat->st", table, world.transitions)
    later = gamma**num_steps * world.transitions @ torch.linalg.matrix_power(follow, num_steps - 1) @ errors
    bias = gradient_by_weights(world, policy, later - errors.unsqueeze(-1))
    exact = gradient_by_weights(world, policy, mdp.action_values(world, table, gamma=gamma))
    with_critic(policy, policy.critic + errors)
    method = A2C(gamma=gamma, advantage="n_step", num_steps=num_steps, critic=FROZEN)
    close(expected_gradient(policy, enumerated(world, policy), method)["logits"], exact + bias)
    assert (float(bias.abs().max()) > 1e-2) is (num_steps < 3)


def test_the_bias_of_an_imperfect_q_is_its_error() -> None:
    world, policy = three_steps(), policy_of(QActorCritic(), 0.8)
    exact = policy.critic.detach().clone()
    errors = torch.linspace(-1.0, 1.0, NUM_STATES * NUM_ACTIONS).double().sin().view(NUM_STATES, NUM_ACTIONS)
    with_critic(policy, exact + errors)
    for baseline in ("none", "expected"):
        method = QActorCritic(gamma=0.8, critic=FROZEN, baseline=baseline)
        ours = expected_gradient(policy, enumerated(world, policy), method)
        close(ours["logits"], gradient_by_weights(world, policy, exact + errors))


def test_a_lambda_of_0_is_a_return_of_one_step() -> None:
    world, policy = three_steps(), policy_of(A2C(), 0.8)
    with_critic(policy, torch.randn(NUM_STATES, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    episodes, critic = enumerated(world, policy), Critic(target="td0", coef=0.7)
    td = A2C(gamma=0.8, gae_lambda=0.0, entropy_coef=0.1, critic=critic)
    one = A2C(gamma=0.8, advantage="n_step", num_steps=1, entropy_coef=0.1, critic=critic)
    pairs = zip(
        expected_gradient(policy, episodes, td).items(),
        expected_gradient(policy, episodes, one).values(),
        strict=True,
    )
    for (name, ours), theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12, msg=name)


@METHODS
@pytest.mark.parametrize("target", TARGETS)
def test_an_exact_critic_stays_where_it_is(method: Method, target: str) -> None:
    world, policy = three_steps(), policy_of(method, 0.8)
    critic = Critic(target=target, num_steps=2, td_lambda=0.6, coef=1.0)
    ours = expected_gradient(policy, enumerated(world, policy), replace(method, gamma=0.8, critic=critic))
    torch.testing.assert_close(ours["critic"], torch.zeros_like(policy.critic), rtol=0, atol=1e-9)


@pytest.mark.parametrize("target", ["monte_carlo", "td0"])
def test_the_critic_moves_by_its_error_or_by_its_bellman_error(target: str) -> None:
    """Expected gradient of (V - target)^2 / 2: visits (V' - V) for Monte Carlo, visits (V' - r - gamma P V') for TD."""
    gamma, world, policy = 0.8, three_steps(), policy_of(A2C(), 0.8)
    table, exact = policy.logits.detach().softmax(-1), policy.critic.detach().clone()
    wrong = torch.randn(NUM_STATES, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with_critic(policy, wrong)
    critic = Critic(target=target, coef=0.7)
    ours = expected_gradient(policy, enumerated(world, policy), A2C(gamma=gamma, critic=critic))
    right = exact if target == "monte_carlo" else (table * mdp.backup(world, wrong, gamma=gamma)).sum(-1)
    close(ours["critic"], 0.7 * mdp.visits(world, table, gamma=1.0) * (wrong - right))


def bandit(policy: TabularPolicy, actions: tuple[int, ...]) -> Rollout:
    """One state; each row is one action, which ends its episode and pays 1, 0 or -2."""
    taken = torch.tensor(actions).unsqueeze(1)
    inputs = {"states": torch.zeros_like(taken), "actions": taken}
    with torch.no_grad():
        output = policy(inputs)
    return Rollout(
        inputs=inputs,
        behaviour_logprobs=output.logprobs,
        logprobs=output.logprobs,
        values=output.values,
        next_values=torch.zeros_like(output.values),
        rewards=torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)[taken],
        dones=torch.ones_like(taken, dtype=torch.bool),
        mask=torch.ones_like(taken, dtype=torch.bool),
        sample_ids=torch.arange(len(actions)),
        costs=torch.ones(len(actions), dtype=torch.int64),
    )


def updated(policy: Any, rollout: Rollout, method: Method, *, optimizer: Any = None, **changes):
    """The policy after one update by plain gradient steps of size 1, and the update's metrics."""
    optimizer = optimizer or torch.optim.SGD(policy.parameters(), lr=1.0)
    batch, _ = method.estimate(rollout, STATE)
    batch = single_steps(batch) if policy.memoryless else batch
    learner = learner_of(policy, replace(PLAIN, **changes), optimizer=optimizer)
    metrics, _ = method.update(learner, rollout, batch, STATE)
    return policy, metrics


@pytest.mark.parametrize(("epochs", "share"), [(0, 1.0), (1, 2 / 3)])
def test_fitting_on_the_same_batch_first_shrinks_the_gradient_as_predicted(epochs: int, share: float) -> None:
    """Over all batches of 3 actions: the fitted V is the batch's mean, which holds each action itself, so the
    expected step is (N - 1) / N of the gradient. Values captured before leave it whole."""
    start = TabularPolicy(1, 3)
    before = start.logits.detach().clone()
    pi = before[0].softmax(-1)
    total = torch.zeros_like(before)
    for actions in itertools.product(range(3), repeat=3):
        policy = copy.deepcopy(start)
        updated(policy, bandit(policy, actions), A2C(critic=Critic(epochs=epochs, coef=0.0)))
        total += pi[list(actions)].prod() * (policy.logits.detach() - before)
    rewards = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    close(total, share * (pi * (rewards - pi @ rewards)).unsqueeze(0))


def a_and_b(policy: TabularPolicy) -> Rollout:
    """Sutton and Barto, 2018, example 6.4: A, 0, B, 0 once; B, 1 six times; B, 0 once. A is state 0."""
    states = torch.tensor([[0, 1], *[[1, 0]] * 7])
    mask = torch.tensor([[True, True], *[[True, False]] * 7])
    rollout = make_rollout(policy, rows=8, steps=2)
    inputs = {"states": states, "actions": torch.zeros_like(states)}
    with torch.no_grad():
        output = policy(inputs)
    rewards = torch.zeros(8, 2, dtype=torch.float64)
    rewards[1:7, 0] = 1.0
    following = torch.zeros(8, 2, dtype=torch.float64)
    following[0, 0] = policy.critic[1].item()
    dones = torch.tensor([[False, True], *[[True, False]] * 7])
    # Where no episode is cut, the next state of each step is the row's next.
    return replace(
        rollout,
        inputs=inputs,
        mask=mask,
        dones=dones,
        rewards=rewards,
        next_values=following,
        **dict.fromkeys(("behaviour_logprobs", "logprobs"), output.logprobs),
        values=output.values,
    )


@pytest.mark.parametrize(
    ("target", "renew", "value_of_a"), [("monte_carlo", False, 0.0), ("td0", True, 0.75), ("td0", False, -0.6)]
)
def test_batch_monte_carlo_and_batch_td_find_different_values(target: str, renew: bool, value_of_a: float) -> None:
    """V(A) is 0 by Monte Carlo and 3/4 by TD with renewed labels; with kept ones it is the old V(B)."""
    policy = with_critic(TabularPolicy(2, 1), torch.tensor([0.3, -0.6], dtype=torch.float64))
    critic = Critic(target=target, epochs=160, renew_labels=renew)
    updated(policy, a_and_b(policy), A2C(critic=critic), learning_rate=1.1)
    expected = torch.tensor([value_of_a, 0.75], dtype=torch.float64)
    torch.testing.assert_close(policy.critic.detach(), expected, rtol=0, atol=1e-8)


def test_each_part_steps_alone_even_with_momentum() -> None:
    """In a fit the actor stays bit for bit, though Adam's momentum would move it; afterwards the critic does."""
    policy = TabularPolicy(4, 3)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.1, weight_decay=0.1)
    for parameter in policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for chosen, other in ((policy.critic, policy.logits), (policy.logits, policy.critic)):
        before = other.detach().clone(), chosen.detach().clone()
        for parameter in policy.parameters():
            parameter.grad = torch.zeros_like(parameter)
        with stepping_only(optimizer, [chosen]):
            optimizer.step()
        assert torch.equal(other, before[0])
        assert not torch.equal(chosen, before[1])
    # Without it the same gradients of 0 move what they had left alone.
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert not torch.equal(policy.critic, before[0])


def test_the_policy_steps_by_the_fitted_critic() -> None:
    """The step is that of a policy whose critic had been fitted before acting."""
    method = A2C(gae_lambda=0.5, critic=Critic(target="td0", epochs=3))
    fitted, metrics = updated(TabularPolicy(4, 3), make_rollout(TabularPolicy(4, 3), rows=6, steps=4), method)
    known = with_critic(TabularPolicy(4, 3), fitted.critic)
    rollout = make_rollout(known, rows=6, steps=4)
    plain, _ = updated(known, rollout, replace(method, critic=FROZEN))
    assert not torch.equal(fitted.critic, TabularPolicy(4, 3).critic)
    torch.testing.assert_close(fitted.logits, plain.logits, rtol=0, atol=1e-12)
    assert metrics["value_loss_fitting"] > 0


def test_a_schedule_falls_to_zero_over_the_run_where_the_policy_is() -> None:
    state = {"progress": torch.tensor(0.25)}
    assert actor_critic.scheduled(0.2, "constant", {}) == 0.2
    like = torch.zeros(1, dtype=torch.float64)
    assert float(actor_critic.scheduled(0.2, "linear", state, like=like)) == pytest.approx(0.15, abs=1e-12)
    assert actor_critic.scheduled(0.2, "linear", state, like=like.to("meta")).device.type == "meta"


@pytest.mark.parametrize("epochs", [0, 1])
def test_logged_advantages_are_those_that_the_policy_learns_from(epochs: int) -> None:
    """Rewards 1, 0 and -2; the fitted V is their mean, -1/3, and the one before another."""
    policy = with_critic(TabularPolicy(1, 3), torch.tensor([5.0], dtype=torch.float64))
    _, metrics = updated(policy, bandit(policy, (0, 1, 2)), A2C(critic=Critic(epochs=epochs, coef=0.0)))
    assert metrics["advantage_mean"] == pytest.approx(0.0 if epochs else -1 / 3 - 5.0, abs=1e-12)
    assert metrics["advantage_std"] == pytest.approx((42 / 27) ** 0.5, rel=1e-12)


def test_a_language_model_fits_its_critic_first() -> None:
    problem = TinyLm()
    policy = problem.policy()
    rollout, _ = rollout_of(problem, policy, None)
    head = policy.value_head.weight.detach().clone()
    trunk = {name: x.detach().clone() for name, x in policy.model.named_parameters()}
    method = A2C(critic=Critic(epochs=2))
    _, metrics = updated(policy, rollout, method, learning_rate=0.1)
    assert metrics["ratio_error_max"] < 1e-9
    assert not torch.equal(policy.value_head.weight, head)
    assert any(not torch.equal(x, trunk[name]) for name, x in policy.model.named_parameters())


@METHODS
def test_leaving_the_reference_is_charged_to_the_rewards(method: Method) -> None:
    rollout = make_rollout(TabularPolicy(4, 3), rows=5, steps=4)
    watched = replace(rollout, ref_logprobs=rollout.logprobs - 0.3)
    charged = replace(rollout, rewards=rollout.rewards - 0.1 * 0.3)
    ours, cells = replace(method, kl_coef=0.1).estimate(watched, STATE)
    expected, _ = method.estimate(charged, STATE)
    for name in ("advantages", "returns"):
        torch.testing.assert_close(getattr(ours, name), getattr(expected, name), rtol=0, atol=1e-12)
    assert {"kl_ref_k1", "kl_ref_k3", "kl_ref_per_episode", "td_error", "value_max"} <= set(cells)


def test_critic_targets_are_the_returns_that_their_names_say() -> None:
    """Rewards 1, 2, 3 and values 10, 20 after the first two, gamma 1/2."""
    rollout = replace(
        make_rollout(TabularPolicy(1, 1), rows=1, steps=1),
        **dict.fromkeys(("behaviour_logprobs", "logprobs", "values"), torch.zeros(1, 3, dtype=torch.float64)),
        rewards=torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64),
        next_values=torch.tensor([[10.0, 20.0, 0.0]], dtype=torch.float64),
        dones=torch.tensor([[False, False, True]]),
        mask=torch.ones(1, 3, dtype=torch.bool),
    )
    expected = {
        "td0": [6.0, 12.0, 3.0],
        "monte_carlo": [2.75, 3.5, 3.0],
        "n_step": [7.0, 3.5, 3.0],
        "td_lambda": [1 + 0.5 * (5 + 0.5 * 7.75), 7.75, 3.0],
    }
    for target, numbers in expected.items():
        critic = Critic(target=target, num_steps=2, td_lambda=0.5)
        targets = critic_targets(rollout.rewards, rollout, critic, gamma=0.5)
        torch.testing.assert_close(targets, torch.tensor([numbers], dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_value_of_the_state_is_taken_off() -> None:
    """No expected gradient shows it: advantages are TD errors, or n-step returns less the value, step by step."""
    rollout = make_rollout(TabularPolicy(4, 3), rows=6, steps=4)
    errors = rollout.rewards + 0.8 * rollout.next_values - rollout.values
    following = torch.cat([rollout.rewards[:, 1:] + 0.8 * rollout.next_values[:, 1:], errors[:, :1]], dim=1)
    longer = torch.where(rollout.dones, rollout.next_values, following)
    two_steps = rollout.rewards + 0.8 * longer - rollout.values
    for method, expected in (
        (replace(TD, gamma=0.8), errors),
        (A2C(gamma=0.8, advantage="n_step", num_steps=1), errors),
        (A2C(gamma=0.8, advantage="n_step", num_steps=2), two_steps),
    ):
        ours = method.estimate(rollout, STATE)[0].advantages
        torch.testing.assert_close(ours, expected.masked_fill(~rollout.mask, 0.0), rtol=0, atol=1e-12)


@METHODS
def test_the_loss_is_policy_less_entropy_plus_value(method: Method) -> None:
    """-log p A - 0.1 H + 0.5 (V - R)^2 / 2 with log p = -1, A = 2, H = 0.7, V = 1, R = 4."""
    cell = torch.zeros(1, 1, dtype=torch.float64)
    batch = make_batch(TabularPolicy(1, 1), rows=1, steps=1)
    batch = batch._replace(logprobs=cell - 1.0, advantages=cell + 2.0, returns=cell + 4.0)
    output = PolicyOutput(cell - 1.0, cell + 1.0, cell + 0.7)
    for critic, value_part in ((Critic(), 2.25), (Critic(epochs=1), 0.0)):
        objective = replace(method, entropy_coef=0.1, critic=critic).objective(STATE)
        terms, metrics = objective(output, batch)
        assert float(terms) == pytest.approx(2.0 - 0.07 + value_part, abs=1e-12)
        assert float(metrics["value_loss"]) == pytest.approx(4.5, abs=1e-12)
        assert float(metrics["policy_loss"]) == pytest.approx(2.0, abs=1e-12)
        assert float(metrics["ratio_error_max"]) == 0.0


def test_a_critic_of_states_cannot_weigh_actions() -> None:
    policy = TabularPolicy(4, 3)
    with pytest.raises(InputError, match="needs one of actions"):
        updated(policy, make_rollout(policy, rows=2, steps=2), QActorCritic())


def test_q_actor_critic_fits_first_too() -> None:
    """The advantages that the policy steps by are those of the fitted Q, less its own expectation."""
    world, policy = three_steps(), QPolicy(NUM_STATES, NUM_ACTIONS)
    all_: Enumerated = enumerated(world, policy)
    method = QActorCritic(critic=Critic(target="td0", epochs=2))
    before = policy.logits.detach().clone()
    updated(policy, all_.rollout, method)
    states, actions = all_.rollout.inputs["states"], all_.rollout.inputs["actions"]
    table, fitted = before.softmax(-1), policy.critic.detach()
    advantages = (fitted - (table * fitted).sum(-1, keepdim=True))[states, actions]
    scores = torch.eye(NUM_ACTIONS, dtype=torch.float64)[actions] - table[states]
    expected = torch.zeros_like(before).index_put(
        (states,), scores * advantages.unsqueeze(-1) / states.numel(), accumulate=True
    )
    close(policy.logits.detach() - before, expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: A2C(gamma=1.1), "gamma is 1.1; it must lie in"),
        (lambda: A2C(gae_lambda=-0.1), "gae_lambda is -0.1"),
        (lambda: A2C(num_steps=0), "num_steps is 0; it must be at least 1"),
        (lambda: A2C(entropy_coef=-1.0), "entropy_coef is -1.0; it must not be negative"),
        (lambda: QActorCritic(kl_coef=float("nan")), "kl_coef is nan"),
        (lambda: Critic(td_lambda=2.0), "td_lambda is 2.0; it must lie in"),
        (lambda: Critic(num_steps=0), "num_steps is 0; it must be at least 1"),
        (lambda: Critic(epochs=-1), "epochs is -1; it must not be negative"),
    ],
)
def test_values_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
