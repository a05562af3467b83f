"""What the figures on tabular problems share, against the library's own loops."""

from __future__ import annotations

import pytest
import torch

from rlhf import optimize
from rlhf.algorithms import ppo_kl, trpo
from tests.learners import learner_of
from tests.tabular import TabularPolicy
from theory import mdp
from theory.figures import episodes, tabular

SAMPLES = {"num_episodes": 4, "num_steps": 6, "seed": 3}
ACTOR = {"gamma": tabular.GAMMA, "gae_lambda": 1.0}


@pytest.fixture
def worlds():
    return tabular.random_worlds(3, num_states=5, num_actions=3, seed=1)


def policies(logits):
    """One policy of the tests for each run; its critic is the exact one of `sample`, which no loss here fits."""
    made = [TabularPolicy(*logits.shape[1:]) for _ in logits]
    for policy, table in zip(made, logits, strict=True):
        policy.logits.data.copy_(table)
    return made


def of_run(batch, run, num_runs):
    """Its rows, as a policy of its own takes them."""
    rows = torch.arange(len(batch.mask)).chunk(num_runs)[run]
    return batch.rows(rows)


def test_updates_of_many_runs_are_those_of_optimize(worlds):
    """PPO-KL with Adam of two step sizes, three updates of four epochs, coefficients included."""
    logits = torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    many, sizes = tabular.repeat(worlds, 2), [0.05, 0.5]
    method = ppo_kl.PPOKL(**ACTOR, value_coef=0.0)
    collect = tabular.sampler(method, many, **SAMPLES)
    steps = {"optimizer": torch.optim.Adam, "step_sizes": sizes, "epochs": 4, "num_updates": 3}
    history = list(tabular.updates(method, logits.repeat(2, 1, 1), collect, **steps))
    for run, policy in enumerate(policies(logits.repeat(2, 1, 1))):
        plain = optimize.Optimize(learning_rate=sizes[run // 3], epochs=4, whiten="none", max_gradient_norm=0.0)
        optimizer, state = optimize.make_optimizer(policy, plain), method.initial_state()
        for index, update in enumerate(history):
            loss = method.objective(state)
            learner = learner_of(policy, plain, optimizer=optimizer, update_index=index)
            metrics = optimize.update(learner, of_run(update.batch, run, 6), loss)
            state = method.adapt(state, metrics)
            torch.testing.assert_close(update.new[run], policy.logits.data, rtol=0, atol=1e-9)
            assert float(update.state["penalty"][run]) == float(state["penalty"])
    assert len({float(x) for x in history[-1].state["penalty"]}) > 1


def test_trust_region_updates_of_many_runs_are_those_of_trpo(worlds):
    method = trpo.TRPO(**ACTOR, max_kl=3.0, damping=1e-3)
    # Of sure policies some cannot take the full step.
    logits = 4.0 * torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    collect = tabular.sampler(method, worlds, **SAMPLES)
    (update,) = tabular.trust_region_updates(method, logits, collect, num_updates=1)
    plain, shares = optimize.Optimize(whiten="none", epochs=1), set()
    for run, policy in enumerate(policies(logits)):
        policy.critic_parameters = list
        batch = of_run(update.batch, run, 3)
        learner = learner_of(policy, plain, optimizer=torch.optim.SGD(policy.parameters()))
        metrics, _ = method.update(learner, None, batch, {})
        shares.add(metrics["step_share"])
        # Conjugate gradient stops at a residual of 1e-6.
        torch.testing.assert_close(update.new[run], policy.logits.data, rtol=0, atol=1e-5)
    assert len(shares) > 1


def test_expected_batch_has_the_gradient_of_the_return(worlds):
    """d_pi is 1 - gamma times the visits, so the objective's gradient is 1 - gamma times that of J."""
    logits = torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch, x = tabular.expectation(worlds)(logits, 0), logits.clone().requires_grad_()
    terms = trpo.TRPO(**ACTOR).loss(episodes.score(x, batch.inputs), batch, {})[0]
    tabular.run_means(-terms, batch, 3).sum().backward()
    expected = (1.0 - tabular.GAMMA) * tabular.exact_gradient(worlds, logits)
    torch.testing.assert_close(x.grad, expected, rtol=0, atol=1e-9)


def test_samples_come_with_the_frequencies_and_values_of_their_world(worlds):
    rollout = tabular.sample(worlds, torch.zeros_like(worlds.rewards), num_episodes=4000, num_steps=4, seed=0, update=0)
    one = mdp.Mdp(*(table[1] for table in worlds))
    uniform = torch.full((5, 3), 1 / 3, dtype=torch.float64)
    marginals = mdp.step_marginals(one, uniform, num_steps=4)
    mine = rollout.inputs["runs"][:, 0] == 1
    counts = torch.nn.functional.one_hot(rollout.inputs["states"][mine], 5).double().mean(0)
    # Six standard deviations of a frequency among 4000.
    assert float((counts - marginals).abs().max()) < 6 * 0.5 / 4000**0.5
    states = rollout.inputs["states"][mine]
    torch.testing.assert_close(rollout.values[mine], mdp.state_values(one, uniform, gamma=tabular.GAMMA)[states])
    rewards = one.rewards[states, rollout.inputs["actions"][mine]]
    torch.testing.assert_close(rollout.rewards[mine], rewards)


def test_success_is_zero_for_uniform_and_one_for_the_best(worlds):
    assert tabular.success(worlds, torch.zeros(3, 5, 3, dtype=torch.float64)).abs().max() < 1e-9
    values = torch.stack(
        [mdp.optimal_values(mdp.Mdp(*(t[i] for t in worlds)), gamma=0.95, num_iterations=900) for i in range(3)]
    )
    greedy = torch.stack(
        [mdp.backup(mdp.Mdp(*(t[i] for t in worlds)), values[i], gamma=0.95).argmax(-1) for i in range(3)]
    )
    best = 40.0 * torch.nn.functional.one_hot(greedy, 3).double()
    torch.testing.assert_close(tabular.success(worlds, best), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-6)
