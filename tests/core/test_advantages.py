"""Advantages and returns, against sums written out from their definitions, published numbers, and each other."""

import pytest
import torch
from torch import Tensor

from rlhf.core.advantages import gae, lambda_returns, monte_carlo_returns, n_step_returns, td0_returns

GAMMA, LAMBDA = 0.9, 0.7


def steps(num_rows: int = 4, num_steps: int = 9, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rewards, values, next values and dones of fragments of several episodes; some ends are terminal, some cut."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, num_rows, num_steps, generator=generator, dtype=torch.float64)
    dones = torch.rand(num_rows, num_steps, generator=generator) < 0.25
    terminal = dones & (torch.rand(num_rows, num_steps, generator=generator) < 0.5)
    finals = torch.randn(num_rows, num_steps, generator=generator, dtype=torch.float64)
    following = torch.cat([values[:, 1:], finals[:, -1:]], dim=1)
    next_values = torch.where(dones, finals, following).masked_fill(terminal, 0.0)
    return rewards, values, next_values, dones


def last_steps(dones: Tensor) -> list[list[int]]:
    """For each step, the last step of its episode within the fragment."""
    num_rows, num_steps = dones.shape
    return [
        [next((k for k in range(t, num_steps) if dones[b, k]), num_steps - 1) for t in range(num_steps)]
        for b in range(num_rows)
    ]


def n_step_sums(rewards: Tensor, next_values: Tensor, dones: Tensor, gamma: Tensor, num_steps: int) -> Tensor:
    """The definition: discounted rewards of up to `num_steps` steps, then the discounted value after the last."""
    ends, result = last_steps(dones), torch.zeros_like(rewards)
    for b, t in torch.cartesian_prod(*(torch.arange(size) for size in rewards.shape)).tolist():
        stop, discount = min(t + num_steps - 1, ends[b][t]), 1.0
        for k in range(t, stop + 1):
            result[b, t] += discount * rewards[b, k]
            discount *= gamma[b, k]
        result[b, t] += discount * next_values[b, stop]
    return result


def mixed_sums(rewards: Tensor, next_values: Tensor, dones: Tensor, gamma: Tensor, lambda_: float) -> Tensor:
    """The definition of lambda returns: (1 - lambda) sum_n lambda^(n-1) G^(n), the longest G with the weight left."""
    ends, result = last_steps(dones), torch.zeros_like(rewards)
    n_steps = [n_step_sums(rewards, next_values, dones, gamma, n) for n in range(1, rewards.shape[1] + 1)]
    for b, t in torch.cartesian_prod(*(torch.arange(size) for size in rewards.shape)).tolist():
        longest = ends[b][t] - t + 1
        for n in range(1, longest):
            result[b, t] += (1.0 - lambda_) * lambda_ ** (n - 1) * n_steps[n - 1][b, t]
        result[b, t] += lambda_ ** (longest - 1) * n_steps[longest - 1][b, t]
    return result


def check(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-9)


def row(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def test_gae_at_lambda_0_is_the_td_error():
    advantages = gae(
        row(0, 0, 5), row(1, 2, 3), row(2, 3, 0), torch.tensor([[False, False, True]]), gamma=1.0, gae_lambda=0.0
    )
    check(advantages, row(1, 1, 2))


def test_gae_matches_published_numbers():
    advantages = gae(
        row(0, 0, 1, 0, -0.5),
        row(1, 4, -3, -2, -1),
        row(4, -3, -2, -1, -1),
        torch.zeros(1, 5, dtype=torch.bool),
        gamma=0.99,
        gae_lambda=0.7,
    )
    torch.testing.assert_close(
        advantages, row(-0.67697950, -5.24816666, 2.48460799, 0.67043, -0.49), rtol=0.0, atol=5e-9
    )


def test_gae_is_the_discounted_sum_of_td_errors():
    rewards, values, next_values, dones = steps()
    ends, expected = last_steps(dones), torch.zeros_like(rewards)
    for b, t in torch.cartesian_prod(torch.arange(4), torch.arange(9)).tolist():
        for k in range(t, ends[b][t] + 1):
            delta = rewards[b, k] + GAMMA * next_values[b, k] - values[b, k]
            expected[b, t] += (GAMMA * LAMBDA) ** (k - t) * delta
    check(gae(rewards, values, next_values, dones, gamma=GAMMA, gae_lambda=LAMBDA), expected)


def test_gae_plus_values_is_the_lambda_return():
    rewards, values, next_values, dones = steps()
    returns = lambda_returns(rewards, next_values, dones, gamma=GAMMA, lambda_=LAMBDA)
    check(gae(rewards, values, next_values, dones, gamma=GAMMA, gae_lambda=LAMBDA) + values, returns)


def test_gae_at_lambda_1_is_monte_carlo_minus_values():
    rewards, values, next_values, dones = steps()
    returns = monte_carlo_returns(rewards, next_values, dones, gamma=GAMMA)
    check(gae(rewards, values, next_values, dones, gamma=GAMMA, gae_lambda=1.0), returns - values)


def test_gae_of_two_episodes_in_a_row_is_that_of_two_batches():
    rewards, values, next_values, dones = steps(num_steps=10)
    dones[:, 3] = True
    whole = gae(rewards, values, next_values, dones, gamma=GAMMA, gae_lambda=LAMBDA)
    parts = [
        gae(rewards[:, part], values[:, part], next_values[:, part], dones[:, part], gamma=GAMMA, gae_lambda=LAMBDA)
        for part in (slice(0, 4), slice(4, 10))
    ]
    check(whole, torch.cat(parts, dim=1))


@pytest.mark.parametrize("garbage", [1e6, float("nan"), float("inf")])
def test_gae_ignores_padding(garbage):
    rewards, values, next_values, dones = steps()
    dones[:, -1] = True
    padding = torch.full((4, 3), garbage, dtype=torch.float64)
    padded = [torch.cat([tensor, padding], dim=1) for tensor in (rewards, values, next_values)]
    advantages = gae(*padded, torch.cat([dones, padding != padding], dim=1), gamma=GAMMA, gae_lambda=LAMBDA)
    check(advantages[:, :9], gae(rewards, values, next_values, dones, gamma=GAMMA, gae_lambda=LAMBDA))


def test_gae_tells_a_terminal_state_from_a_cut_one():
    dones = torch.tensor([[False, True]])
    terminal = gae(row(1, 1), row(5, 5), row(5, 0), dones, gamma=GAMMA, gae_lambda=LAMBDA)
    cut = gae(row(1, 1), row(5, 5), row(5, 5), dones, gamma=GAMMA, gae_lambda=LAMBDA)
    # The value beyond the cut, 5, arrives discounted once at the last step and once more, times lambda, before it.
    check(cut - terminal, row(GAMMA * LAMBDA * GAMMA * 5, GAMMA * 5))


def test_gae_of_a_perfect_critic_is_0():
    # Reward 1 a step for ever is worth 1 / (1 - gamma); so it is beyond the cut.
    worth = torch.full((1, 6), 1.0 / (1.0 - GAMMA), dtype=torch.float64)
    advantages = gae(
        torch.ones_like(worth), worth, worth, torch.zeros(1, 6, dtype=torch.bool), gamma=GAMMA, gae_lambda=LAMBDA
    )
    check(advantages, torch.zeros_like(worth))


def test_gae_accepts_a_discount_for_each_step():
    rewards, values, next_values, dones = steps()
    gamma = torch.rand(4, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = mixed_sums(rewards, next_values, dones, gamma, LAMBDA) - values
    check(gae(rewards, values, next_values, dones, gamma=gamma, gae_lambda=LAMBDA), expected)


def test_gae_in_float32_stays_in_float32():
    arguments = steps()
    single = [tensor.float() if tensor.is_floating_point() else tensor for tensor in arguments]
    advantages = gae(*single, gamma=GAMMA, gae_lambda=LAMBDA)
    expected = gae(*arguments, gamma=GAMMA, gae_lambda=LAMBDA)
    torch.testing.assert_close(advantages, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("lambda_", "expected"),
    [
        (0.75, [1.64605469, 0.7228125, 0.7375, 0.65, 3.4]),
        (0.0, [2.5, 0.9, 4, -2.5, 3.4]),
        (1.0, [1.315, 0.63, 0.7, 1.7, 3.4]),
    ],
)
def test_lambda_returns_match_published_numbers(lambda_, expected):
    gamma = row(0.5, 0.9, 1, 0.5, 0.8)
    dones = torch.zeros(1, 5, dtype=torch.bool)
    returns = lambda_returns(row(1, 0, -1, 0, 1), row(3, 1, 5, -5, 3), dones, gamma=gamma, lambda_=lambda_)
    torch.testing.assert_close(returns, row(*expected), rtol=0.0, atol=5e-9)


@pytest.mark.parametrize("lambda_", [0.0, 0.3, 0.95, 1.0])
def test_lambda_returns_mix_the_n_step_returns(lambda_):
    rewards, _, next_values, dones = steps()
    expected = mixed_sums(rewards, next_values, dones, torch.full_like(rewards, GAMMA), lambda_)
    check(lambda_returns(rewards, next_values, dones, gamma=GAMMA, lambda_=lambda_), expected)


def test_lambda_returns_at_lambda_0_are_td0():
    rewards, _, next_values, dones = steps()
    returns = lambda_returns(rewards, next_values, dones, gamma=GAMMA, lambda_=0.0)
    check(returns, td0_returns(rewards, next_values, gamma=GAMMA))


def test_td0_returns_are_a_reward_and_a_discounted_value():
    check(td0_returns(row(1, -2), row(10, 0), gamma=0.5), row(1 + 0.5 * 10, -2))


def test_monte_carlo_returns_of_a_finished_episode_use_no_values():
    dones = torch.tensor([[False, False, True]])
    check(monte_carlo_returns(row(1, 2, 4), row(77, -5, 0), dones, gamma=0.5), row(1 + 1 + 1, 2 + 2, 4))


def test_monte_carlo_returns_of_a_cut_episode_are_bootstrapped():
    dones = torch.tensor([[False, False, True]])
    returns = monte_carlo_returns(row(1, 2, 4), row(77, -5, 8), dones, gamma=0.5)
    check(returns, row(1 + 1 + 1 + 1, 2 + 2 + 2, 4 + 4))


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 9, 20])
def test_n_step_returns_are_sums_of_n_rewards_and_a_value(num_steps):
    rewards, _, next_values, dones = steps()
    expected = n_step_sums(rewards, next_values, dones, torch.full_like(rewards, GAMMA), num_steps)
    check(n_step_returns(rewards, next_values, dones, gamma=GAMMA, num_steps=num_steps), expected)


def test_n_step_returns_accept_a_discount_for_each_step():
    rewards, _, next_values, dones = steps()
    gamma = torch.rand(4, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = n_step_sums(rewards, next_values, dones, gamma, 3)
    check(n_step_returns(rewards, next_values, dones, gamma=gamma, num_steps=3), expected)


def test_n_step_returns_of_one_step_are_td0():
    rewards, _, next_values, dones = steps()
    returns = n_step_returns(rewards, next_values, dones, gamma=GAMMA, num_steps=1)
    check(returns, td0_returns(rewards, next_values, gamma=GAMMA))


def test_n_step_returns_of_all_steps_are_monte_carlo():
    rewards, _, next_values, dones = steps()
    returns = n_step_returns(rewards, next_values, dones, gamma=GAMMA, num_steps=9)
    check(returns, monte_carlo_returns(rewards, next_values, dones, gamma=GAMMA))


def test_returns_ignore_nan_beyond_an_end():
    rewards, next_values, dones = row(1, 2, torch.nan), row(3, 0, torch.nan), torch.tensor([[False, True, False]])
    expected = row(1 + GAMMA * 2, 2)
    check(monte_carlo_returns(rewards, next_values, dones, gamma=GAMMA)[:, :2], expected)
    check(n_step_returns(rewards, next_values, dones, gamma=GAMMA, num_steps=3)[:, :2], expected)


@pytest.mark.parametrize(
    "estimator",
    [
        lambda r, v, n, d: gae(r, v, n, d, gamma=GAMMA, gae_lambda=LAMBDA),
        lambda r, v, n, d: lambda_returns(r, n, d, gamma=GAMMA, lambda_=LAMBDA),
        lambda r, v, n, d: td0_returns(r, n, gamma=GAMMA),
        lambda r, v, n, d: monte_carlo_returns(r, n, d, gamma=GAMMA),
        lambda r, v, n, d: n_step_returns(r, n, d, gamma=GAMMA, num_steps=3),
    ],
    ids=["gae", "lambda", "td0", "monte_carlo", "n_step"],
)
def test_estimators_under_vmap_equal_a_loop(estimator):
    batches = [steps(seed=seed) for seed in range(3)]
    stacked = [torch.stack(tensors) for tensors in zip(*batches, strict=True)]
    check(torch.func.vmap(estimator)(*stacked), torch.stack([estimator(*batch) for batch in batches]))


def test_estimators_do_not_change_their_inputs():
    arguments = steps()
    copies = [tensor.clone() for tensor in arguments]
    rewards, _, next_values, dones = arguments
    gae(*arguments, gamma=GAMMA, gae_lambda=LAMBDA)
    lambda_returns(rewards, next_values, dones, gamma=GAMMA, lambda_=LAMBDA)
    n_step_returns(rewards, next_values, dones, gamma=GAMMA, num_steps=3)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(arguments, copies, strict=True))
