"""Figures 13 to 17."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from recipes.settings.control import preset
from rlhf.algorithms import reinforce
from tests.learning import table
from theory.figures import (
    fig13_lag,
    fig14_chain,
    fig15_stochastic_policies,
    fig16_imitation,
    fig17_every_method,
)
from theory.figures.episodes import alone, expected_sum, play, step
from theory.mdp import Mdp, policy_gradient
from theory.worlds.chain import Chain

FIGURES = [fig13_lag, fig14_chain, fig15_stochastic_policies, fig16_imitation]
SMALL = {"seeds": 2, "effort": 0.005}


@cache
def computed(figure) -> dict[str, np.ndarray]:
    return figure.compute(**SMALL)


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: f"figure-{figure.NUMBER}")
def test_figure_is_deterministic_and_drawn(figure):
    data = computed(figure)
    again = figure.compute(**SMALL)
    assert data.keys() == again.keys()
    for name in data:
        np.testing.assert_array_equal(data[name], again[name], err_msg=name)
    assert isinstance(figure.plot(data), Figure)
    assert figure.SEES


def coin() -> tuple[Mdp, torch.Tensor]:
    """Two states that look alike; action 0 pays 1 in the first and leads on, all else ends."""
    transitions = torch.zeros(2, 2, 2, dtype=torch.float64)
    transitions[0, 0, 1] = 1.0
    rewards = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    return Mdp(transitions, rewards, torch.tensor([1.0, 0.0], dtype=torch.float64)), torch.tensor([0, 0])


def test_episodes_end_where_the_world_does_and_earn_what_it_pays():
    world, observed = coin()
    logits = torch.tensor([[[0.0, 0.0]], [[50.0, -50.0]]], dtype=torch.float64)
    rollout = play(alone(world), logits, observed=observed, num_episodes=64, num_steps=5, seed=0)
    lengths = rollout.mask.sum(1)
    # Action 0 of the first state leads on to the second, in which everything ends.
    torch.testing.assert_close(lengths, 1 + (rollout.inputs["actions"][:, 0] == 0).long())
    assert set(lengths[:64].tolist()) == {1, 2}
    assert (lengths[64:] == 2).all()
    assert (rollout.dones.sum(1) == 1).all()
    # p (1 + 2 (1 - p)) of the coin with p = 1/2, and of the one that always comes up 0.
    torch.testing.assert_close(
        expected_sum(world, logits, observed, num_steps=5), torch.tensor([1.0, 1.0], dtype=torch.float64)
    )


def test_episodes_step_follows_the_gradient_of_the_expected_return():
    """Of a chain of one state: the mean over 4,000 episodes is within four standard errors of p (1 - p), -p p, -p p."""
    world, logits = Chain(horizon=1).mdp, torch.zeros(1, 1, 3, dtype=torch.float64)
    rollout = play(alone(world), logits, num_episodes=4_000, num_steps=1, seed=0)
    moved = step(reinforce.Reinforce(baseline="none"), logits, rollout, step_size=1.0)
    exact = policy_gradient(world, logits[0], gamma=1.0)
    assert (moved[0] - exact).abs().max() < 4 * 0.5 / 4_000**0.5


def test_figure_13_without_lag_v_trace_is_the_actor_critic():
    """The ratios are 1, so both learn the same, and the lag makes them differ."""
    data = computed(fig13_lag)
    for part in ("return", "critic"):
        plain, corrected = data[f"{part} uncorrected"], data[f"{part} V-trace"]
        np.testing.assert_allclose(plain[0], corrected[0], atol=1e-9)
        assert np.abs(plain[1] - corrected[1]).max() > 1e-6


def test_figure_13_draws_a3c_by_its_seconds():
    data = dict(computed(fig13_lag)) | {"machine": np.array([2, 0.5])}
    for workers in (1, 2):
        data[f"a3c {workers} 0"] = np.array([[0.0, 2.0 / workers], [0, 1_000], [20.0, 200.0]])
    panel = fig13_lag.plot(data).axes[3]
    assert [text.get_text() for text in panel.get_legend().get_texts()] == [
        "1 worker, 500 steps/s, 1 seeds",
        "2 workers, 1,000 steps/s, 1 seeds",
    ]


@pytest.mark.slow
def test_figure_13_a3c_runs_to_its_last_step():
    seconds, steps, returns = fig13_lag.asynchronous(2, seed=0, steps=2_000)
    assert steps[0] == 0
    assert steps[-1] >= 2_000
    assert (np.diff(seconds) > 0).all()
    assert (returns > 0).all()


def test_figure_14_shares_are_those_of_the_formula():
    """Within four standard errors of 400 batches."""
    for horizon, size in ((2, 16), (4, 16), (4, 64)):
        exact = (1.0 - 3.0**-horizon) ** size
        share = fig14_chain.share_of_zero_gradients(horizon, size, 400)
        assert abs(share - exact) < 4 * (exact * (1 - exact) / 400) ** 0.5


def test_figure_14_starts_at_chance_and_clones_near_the_demonstrator():
    data = computed(fig14_chain)
    for horizon in (10, 20):
        first = data[str(horizon)][:, :, 0]
        np.testing.assert_allclose(first[[0, 2, 3]], 3.0**-horizon, rtol=1e-9)
        assert 0.25 < first[1].mean() / 0.9**horizon < 2.5


def test_figure_15_deterministic_policies_lose_what_the_text_books_say():
    data = computed(fig15_stochastic_policies)
    # From three of five cells the treasure, from the other side never.
    np.testing.assert_allclose(data["grid"][[0, -1]], 0.6, atol=1e-9)
    np.testing.assert_allclose(data["grid_deterministic"].max(), 0.6, atol=1e-9)
    assert data["grid"].max() > 0.99
    # What an adaptive opponent takes: sum_n n / (n + 3) (1 - 3 |p|^2) / 2, with p = (0, 1, 0).
    rounds = np.arange(fig15_stochastic_policies.ROUNDS)
    np.testing.assert_allclose(data["adapts"][-1], -np.mean(rounds / (rounds + 3.0)), atol=1e-9)
    # Paper always, against half rock and a quarter scissors.
    np.testing.assert_allclose(data["fixed"][-1], 0.25, atol=1e-9)


def test_figure_16_loses_on_the_road_what_its_errors_say():
    """The chance of being on the road after t steps is that of a chain of two states with turns e and u."""
    for with_dagger in (False, True):
        lost = fig16_imitation.lost_on_the_road(0, with_dagger=with_dagger)
        (e, u), t = lost[:2], np.arange(1, fig16_imitation.HORIZON + 1)
        on_the_road = u / (e + u) + e / (e + u) * (1.0 - e - u) ** t
        np.testing.assert_allclose(lost[2:], np.cumsum(1.0 - on_the_road), rtol=1e-9)
        assert (u > 0.5) == with_dagger


def test_figure_16_scale_has_the_uniform_policy_at_0():
    data = computed(fig16_imitation)
    np.testing.assert_allclose(data["scratch"][0], 0.0, atol=1e-9)
    assert (data["demonstrator"] > 0.3).all()
    assert (data["demonstrator_greedy"] <= 1.0 + 1e-9).all()


def write_run(folder, steps, returns, *, finished=True):
    folder.mkdir(parents=True)
    rows = [
        {"update": i, "steps": a, "eval_return_mean": b} for i, (a, b) in enumerate(zip(steps, returns, strict=True))
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        (folder / "final").mkdir()


def test_figure_17_curves_are_those_of_finished_runs(tmp_path):
    # Without a method in its name a run is PPO's, and seed 0 stands but once.
    write_run(tmp_path / "cartpole-0" / "ppo", [0, 100, 200], [0.0, 10.0, 20.0])
    write_run(tmp_path / "cartpole-ppo-0" / "ppo", [0, 100, 200], [0.0, 10.0, 20.0])
    write_run(tmp_path / "cartpole-ppo-1" / "ppo", [0, 150], [0.0, 30.0])
    write_run(tmp_path / "cartpole-ppo-2" / "ppo", [0, 10], [0.0, 1.0], finished=False)
    write_run(tmp_path / "arithmetic-ppo-0" / "ppo", [0, 100], [0.5, 1.0])
    write_run(tmp_path / "pendulum-sac-0" / "sac", [0, 100], [-1500.0, -150.0])
    assert table.CURVES == fig17_every_method.CURVES
    runs = table.finished_runs(tmp_path)
    assert set(runs) == {"CartPole-v1/ppo", "Pendulum-v1/sac"}
    # Up to where both have come, step 150, straight between evaluations.
    steps, first, second = table.on_one_grid(list(runs["CartPole-v1/ppo"].values()))
    assert steps[-1] == 150
    np.testing.assert_allclose(first, steps / 10, atol=1e-12)
    np.testing.assert_allclose(second, steps / 5, atol=1e-12)


def test_figure_17_tries_settings_and_is_drawn(monkeypatch):
    monkeypatch.setattr(fig17_every_method, "METHODS", ("a2c", "replay_actor_critic"))
    data, again = (fig17_every_method.compute(seeds=2, effort=0.001) for _ in range(2))
    for name in data:
        np.testing.assert_array_equal(data[name], again[name], err_msg=name)
    assert isinstance(fig17_every_method.plot(data), Figure)


def test_figure_17_interval_of_a_share_is_wilsons():
    """5 of 10: 0.237 to 0.763."""
    assert fig17_every_method.interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_figure_17_trust_region_is_searched_like_a_step_size():
    given = {"learning_rate": 2e-3, "gamma": 0.95, "batch": 2.0, "steps": 1000}
    searched = fig17_every_method.changed("trpo", **given)
    assert (searched.method.max_kl, searched.optimize.learning_rate) == (pytest.approx(0.02), 2e-3)
    usual = preset("replay_actor_critic", "CartPole-v1")
    searched = fig17_every_method.changed("replay_actor_critic", **given)
    assert searched.method.batch_size == 2 * usual.method.batch_size
    assert searched.optimize.minibatches == usual.optimize.minibatches


def test_figure_17_settings_are_within_what_it_says():
    for setting in fig17_every_method.random_settings(200):
        assert 1e-4 <= setting["learning_rate"] <= 1e-2
        assert 0.9 <= setting["gamma"] <= 0.997
        assert setting["batch"] in (0.5, 1.0, 2.0)
