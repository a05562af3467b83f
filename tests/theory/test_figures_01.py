"""Figures 1, 2, 3, 4, 6 and 11."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from rlhf.algorithms import a2c, reinforce
from rlhf.algorithms.actor_critic import Critic
from theory import mdp
from theory.figures import (
    episodes,
    fig01_variance_and_horizon,
    fig02_baselines,
    fig03_reward_scale,
    fig04_bias_and_variance,
    fig06_natural_steps,
    fig11_batches_and_rewards,
    sampling,
)
from theory.figures.tabular import random_worlds
from theory.worlds.chain import Chain

FIGURES = [
    fig01_variance_and_horizon,
    fig02_baselines,
    fig03_reward_scale,
    fig04_bias_and_variance,
    fig06_natural_steps,
    fig11_batches_and_rewards,
]
SMALL = {"seeds": 2, "effort": 0.02}


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: f"figure-{figure.NUMBER}")
def test_figure_is_deterministic_and_drawn(figure):
    data = figure.compute(**SMALL)
    again = figure.compute(**SMALL)
    assert data.keys() == again.keys()
    for name in data:
        np.testing.assert_array_equal(data[name], again[name], err_msg=name)
    assert isinstance(figure.plot(data), Figure)
    assert figure.SEES


def test_figure_1_slopes_are_three_three_two_and_one():
    slopes = fig01_variance_and_horizon.compute(seeds=4, effort=0.1)["slopes"]
    np.testing.assert_allclose(np.median(slopes, axis=0), [3.0, 3.0, 2.0, 1.0], atol=0.25)


def test_figure_2_variances_of_the_bandit():
    """(.1^2 .9) - .09^2 without a baseline; 64 times that with the mean reward; none with b* = .1."""
    variances = fig02_baselines.bandit(torch.tensor([0.0, 0.9, 0.1], dtype=torch.float64))
    np.testing.assert_allclose(variances, [0.0009, 0.0576, 0.0], atol=1e-12)


def test_figure_3_factors_leave_whitening_and_offsets_leave_step_means_unmoved():
    success = dict(zip(fig03_reward_scale.ADVANTAGES, fig03_reward_scale.compute(**SMALL)["success"], strict=True))
    scaled, (one, offset) = success["whitened"][:3], success["less the mean of each step"][[1, 3]]
    np.testing.assert_allclose(scaled, np.broadcast_to(scaled[1], scaled.shape), atol=1e-9)
    np.testing.assert_allclose(offset, one, atol=1e-9)
    assert np.abs(success["no baseline"][3] - success["no baseline"][1]).max() > 0.01


def test_figure_4_ends_of_lambda_are_ends_of_n():
    data = fig04_bias_and_variance.compute(**SMALL)
    np.testing.assert_allclose(data["by_lambda"][:, :, [0, -1]], data["by_n"][:, :, [0, -1]], atol=1e-9)


def test_figure_4_exact_critic_has_no_bias_and_one_step_only_the_noise_of_the_next_state():
    world = random_worlds(3, num_states=5, num_actions=2, seed=0)
    logits = torch.zeros(3, 5, 2, dtype=torch.float64)
    by_n, by_lambda = fig04_bias_and_variance.errors(world, logits, torch.zeros(3, 5).double(), num_episodes=100_000)
    np.testing.assert_allclose(by_n[:, 0], 0.0, atol=1e-12)
    np.testing.assert_allclose(by_lambda[:, 0], 0.0, atol=1e-12)
    values = torch.func.vmap(lambda w, p: mdp.state_values(w, p, gamma=0.95))(world, logits.softmax(-1))
    ahead = torch.einsum("rsaz,rz->rsa", world.transitions, values)
    spread = torch.einsum("rsaz,rz->rsa", world.transitions, values.square()) - ahead.square()
    noise = 0.95**2 * (world.start * spread.mean(-1)).sum(-1)
    np.testing.assert_allclose(by_n[:, 1, 0], noise, rtol=0.05)


def test_figure_4_error_of_a_mean_is_least_strictly_inside():
    data = fig04_bias_and_variance.compute(seeds=4, effort=0.05)
    for name in ("by_n", "by_lambda"):
        bias, variance = np.median(data[name], axis=0)
        best = (bias + variance / fig04_bias_and_variance.AVERAGED).argmin()
        assert 0 < best < len(bias) - 1


def test_figure_11_both_rewards_of_a_crossing_add_up_to_one():
    logits = torch.zeros(1, 4, 2, dtype=torch.float64)
    paid = {}
    for pay in fig11_batches_and_rewards.REWARDS:
        world = fig11_batches_and_rewards.corridor(4, pay, 1)
        rollout = episodes.play(world, logits, num_episodes=200, num_steps=10, seed=0)
        paid[pay] = rollout.rewards.sum(1)
    crossed = rollout.terminals.any(1)
    assert 0 < crossed.sum() < 200
    np.testing.assert_array_equal(paid["sparse"], crossed.double())
    np.testing.assert_allclose(paid["dense"][crossed], 1.0, atol=1e-12)
    assert (paid["dense"][~crossed] < 1.0 - 1e-9).all()


def test_figure_11_signal_to_noise_grows_as_the_root_of_the_batch():
    ratios = fig11_batches_and_rewards.signal_to_noise(
        fig11_batches_and_rewards.corridor(4, "dense", 2),
        (1, 4, 16),
        reinforce.Reinforce(),
        num_episodes=4000,
    )
    np.testing.assert_allclose(ratios[1:] / ratios[:-1], 2.0, rtol=0.1)


def test_figure_11_actor_critic_learns_as_two_updates_by_hand_say(monkeypatch):
    """A corridor of one state and one step is a bandit: with logits -x / 2 and x / 2 a crossing moves x by
    2 rate A (1 - p), and a failure by -2 rate A p. A is the reward less the critic's value, which is 0 at first.
    """
    monkeypatch.setattr(fig11_batches_and_rewards, "NUM_STEPS", 1)
    world, num_episodes, rate = fig11_batches_and_rewards.corridor(1, "sparse", 1), 50, 0.4

    def crossed(x: float, update: int) -> float:
        logits = torch.tensor([[[-x / 2, x / 2]]], dtype=torch.float64)
        rollout = episodes.play(world, logits, num_episodes=num_episodes, num_steps=1, seed=1, update=update)
        return float(rollout.rewards.mean())

    method = a2c.A2C(gae_lambda=1.0, critic=Critic(td_lambda=1.0, coef=0.5))
    sizes = {"num_episodes": num_episodes, "num_updates": 2, "rate": rate}
    curve = fig11_batches_and_rewards.success(world, method, **sizes)[0]
    share = crossed(0.0, 0)
    x = 2 * rate * share * 0.5
    first = 1 / (1 + np.exp(-x))
    # Half its squared error, with weight 0.5 and rate 0.5.
    value = 0.5 * 0.5 * share
    share = crossed(x, 1)
    x += 2 * rate * (share * (1 - value) * (1 - first) + (1 - share) * value * first)
    np.testing.assert_allclose(curve, [0.5, first, 1 / (1 + np.exp(-x))], rtol=0, atol=1e-12)


def test_sampling_gradients_average_to_that_of_the_return():
    """Every credit's mean gradient is that of J over two steps, here by differentiating the enumerated return."""
    world = random_worlds(1, num_states=5, num_actions=3, seed=0)
    logits = torch.zeros(1, 5, 3, dtype=torch.float64)

    def total(x):
        return (world.start[0] * sampling.horizon_values(world, x, num_steps=2)[0, 0]).sum()

    exact = torch.func.grad(total)(logits)[0]
    rollout = episodes.play(world, logits, num_episodes=20_000, num_steps=2, seed=0)
    for method in fig01_variance_and_horizon.CREDITS.values():
        batch, _ = method.estimate(rollout, {})
        each = fig01_variance_and_horizon.gradients(logits, batch, method)[0]
        deviation = (each.mean(0) - exact) / (each.std(0) / len(each) ** 0.5).clamp(min=1e-12)
        assert deviation.abs().amax() < 4.0


def test_sampling_end_where_the_chain_ends():
    """On the chain every wrong action ends the episode: the lengths of 2,000 are geometric, and all ends are marked."""
    chain = Chain(4)
    world = episodes.alone(chain.mdp)
    logits = torch.zeros(1, 4, 3, dtype=torch.float64)
    rollout = episodes.play(world, logits, num_episodes=2000, num_steps=6, seed=0)
    lengths = rollout.mask.sum(1)
    assert rollout.dones.sum(1).eq(1).all()
    assert rollout.dones[torch.arange(2000), lengths - 1].all()
    assert ((lengths == 1).double().mean() - 2 / 3).abs() < 0.05
    np.testing.assert_array_equal((rollout.rewards.sum(1) == 1), (rollout.rewards[:, 3] == 1))
    assert (rollout.next_inputs["states"][~rollout.mask] == 3).all()


def test_figure_6_kl_and_gradient_are_those_of_a_coin():
    data = fig06_natural_steps.compute(**SMALL)
    p = 1 / (1 + np.exp(-data["thetas"]))
    np.testing.assert_allclose(data["gradient"], p * (1 - p), atol=1e-12)
    np.testing.assert_allclose(data["natural_gradient"], 1.0, atol=1e-9)
    old = 1 / (1 + np.exp(-2.0))
    new = 1 / (1 + np.exp(-2.0 - data["steps"]))
    kl = old * np.log(old / new) + (1 - old) * np.log((1 - old) / (1 - new))
    np.testing.assert_allclose(data["kl_of_steps"][1], kl, atol=1e-12)
    # F = p (1 - p), so the step of quadratic KL 0.01 is sqrt(0.02 / F).
    after = 1 / (1 + np.exp(-data["thetas"] - np.sqrt(0.02 / (p * (1 - p)))))
    np.testing.assert_allclose(data["change_natural"], after - p, atol=1e-9)
