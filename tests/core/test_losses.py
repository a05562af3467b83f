"""Losses per action, against arithmetic, enumeration and gradients written out by hand."""

import math

import pytest
import torch

from rlhf.core.losses import (
    categorical_entropy,
    clipped_surrogate_loss,
    clipped_value_loss,
    gaussian_entropy,
    negative_log_likelihood,
    policy_gradient_loss,
    value_loss,
)


def tensor(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-9)


def surrogate_gradient(ratios: list[float], advantages: list[float]) -> torch.Tensor:
    """Of the loss with respect to the log-probabilities, at old log-probabilities of -1 and clip 0.2."""
    logprobs = (tensor(*ratios).log() - 1.0).requires_grad_()
    loss = clipped_surrogate_loss(logprobs, torch.full_like(logprobs, -1.0), tensor(*advantages), clip=0.2)
    return torch.autograd.grad(loss.sum(), logprobs)[0]


def test_policy_gradient_loss_is_minus_logprob_times_advantage():
    check(policy_gradient_loss(tensor(-1, -2), tensor(3, -0.5)), tensor(3, -1))


def test_policy_gradient_loss_has_the_gradient_of_the_expected_advantage():
    # Over all actions, weighted by their probability: grad sum_a p_a A_a = sum_a p_a A_a grad log p_a.
    logits, advantages = normal(5).requires_grad_(), normal(5, seed=1)
    logprobs = logits.log_softmax(-1)
    loss = (logprobs.detach().exp() * policy_gradient_loss(logprobs, advantages)).sum()
    expected = -(logits.softmax(-1) * advantages).sum()
    check(torch.autograd.grad(loss, logits)[0], torch.autograd.grad(expected, logits)[0])


def test_clipped_surrogate_loss_matches_published_numbers():
    losses = clipped_surrogate_loss(tensor(0.5, 1, 1.5).log(), tensor(0, 0, 0), tensor(1, -1, 2), clip=0.2)
    check(losses, tensor(-0.5, 1, -2.4))
    assert float(losses.mean()) == pytest.approx(-1.9 / 3)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.5, 2.0, -1.2 * 2.0),
        (0.5, 2.0, -0.5 * 2.0),
        (1.5, -2.0, 1.5 * 2.0),
        (0.5, -2.0, 0.8 * 2.0),
        (1.1, 2.0, -1.1 * 2.0),
        (0.9, -2.0, 0.9 * 2.0),
    ],
)
def test_clipped_surrogate_loss_is_the_pessimistic_one(ratio, advantage, expected):
    logprobs = tensor(ratio).log() - 3.0
    check(clipped_surrogate_loss(logprobs, tensor(-3.0), tensor(advantage), clip=0.2), tensor(expected))


def test_clipped_surrogate_loss_has_no_gradient_where_the_clip_holds():
    check(surrogate_gradient([1.5, 0.5], [2.0, -2.0]), tensor(0, 0))


def test_clipped_surrogate_loss_keeps_the_gradient_that_leads_back():
    check(surrogate_gradient([0.5, 1.5], [2.0, -2.0]), tensor(-0.5 * 2, 1.5 * 2))


def test_clipped_surrogate_loss_starts_as_the_policy_gradient():
    # At ratio 1 both sides of the minimum are equal; neither may be lost or counted twice.
    check(surrogate_gradient([1.0, 1.0], [2.0, -3.0]), tensor(-2, 3))


def test_clipped_surrogate_loss_accepts_a_clip_that_is_a_tensor():
    arguments = normal(3, 4), normal(3, 4, seed=1), normal(3, 4, seed=2)
    check(
        clipped_surrogate_loss(*arguments, clip=torch.tensor(0.3, dtype=torch.float64)),
        clipped_surrogate_loss(*arguments, clip=0.3),
    )


def test_value_loss_is_half_the_squared_error():
    check(value_loss(tensor(1, 5), tensor(4, 5)), tensor(4.5, 0))


def test_value_loss_has_the_gradient_of_the_error():
    values = tensor(1, 7).requires_grad_()
    check(torch.autograd.grad(value_loss(values, tensor(4, 5)).sum(), values)[0], tensor(-3, 2))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.1, 0.5 * (1.1 - 3.0) ** 2),
        (2.0, 0.5 * (1.2 - 3.0) ** 2),
        (0.0, 0.5 * (0.0 - 3.0) ** 2),
        (9.0, 0.5 * (9.0 - 3.0) ** 2),
    ],
)
def test_clipped_value_loss_is_the_larger_one(value, expected):
    # Old value 1, return 3, clip 0.2: moving towards the return pays only up to 1.2.
    check(clipped_value_loss(tensor(value), tensor(1.0), tensor(3.0), clip=0.2), tensor(expected))


def test_clipped_value_loss_has_no_gradient_beyond_the_clip():
    values = tensor(2.0, 1.1).requires_grad_()
    loss = clipped_value_loss(values, tensor(1.0, 1.0), tensor(3.0, 3.0), clip=0.2)
    check(torch.autograd.grad(loss.sum(), values)[0], tensor(0, 1.1 - 3.0))


def test_clipped_value_loss_with_a_wide_clip_is_the_value_loss():
    values, old_values, returns = normal(3, 4), normal(3, 4, seed=1), normal(3, 4, seed=2)
    check(clipped_value_loss(values, old_values, returns, clip=100.0), value_loss(values, returns))


def test_negative_log_likelihood_changes_the_sign():
    check(negative_log_likelihood(tensor(-2, 0)), tensor(2, 0))


def test_negative_log_likelihood_over_all_actions_is_the_cross_entropy():
    demonstrator, logits = normal(6).softmax(-1), normal(6, seed=1)
    expected = torch.nn.functional.cross_entropy(logits, demonstrator)
    check((demonstrator * negative_log_likelihood(logits.log_softmax(-1))).sum(), expected)


def test_categorical_entropy_is_the_expected_surprise():
    logits = normal(2, 3, 5)
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for b in range(2):
        for t in range(3):
            weights = [math.exp(logit) for logit in logits[b, t].tolist()]
            expected[b, t] = sum(-w / sum(weights) * math.log(w / sum(weights)) for w in weights)
    check(categorical_entropy(logits), expected)


def test_categorical_entropy_of_equal_logits_is_the_largest():
    check(categorical_entropy(torch.full((2, 8), 3.0, dtype=torch.float64)), tensor(math.log(8), math.log(8)))


def test_categorical_entropy_does_not_depend_on_an_offset():
    check(categorical_entropy(normal(4, 5) + 3000.0), categorical_entropy(normal(4, 5)))


def test_categorical_entropy_has_the_gradient_of_differences():
    assert torch.autograd.gradcheck(categorical_entropy, (normal(2, 5).requires_grad_(),))


def test_categorical_entropy_ignores_impossible_actions():
    logits = tensor(1, 2, -torch.inf, 0).requires_grad_()
    possible = tensor(1, 2, 0).requires_grad_()
    entropy, expected = categorical_entropy(logits), categorical_entropy(possible)
    check(entropy, expected)
    gradient, part = torch.autograd.grad(entropy, logits)[0], torch.autograd.grad(expected, possible)[0]
    check(gradient, torch.cat([part[:2], tensor(0), part[2:]]))


def test_gaussian_entropy_is_the_integral_of_the_surprise():
    log_std = tensor(-0.7, 0.4)
    grid = torch.linspace(-40.0, 40.0, 400_001, dtype=torch.float64)
    expected = tensor(0.0)[0]
    for std in log_std.exp():
        log_density = -0.5 * (grid / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
        expected = expected - torch.trapezoid(log_density.exp() * log_density, grid)
    check(gaussian_entropy(log_std), expected)


def test_gaussian_entropy_sums_over_the_last_axis():
    log_std = normal(2, 3, 4)
    check(gaussian_entropy(log_std), torch.stack([gaussian_entropy(log_std[..., i : i + 1]) for i in range(4)]).sum(0))


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y, z: policy_gradient_loss(x, y),
        lambda x, y, z: clipped_surrogate_loss(x, y, z, clip=0.2),
        lambda x, y, z: value_loss(x, y),
        lambda x, y, z: clipped_value_loss(x, y, z, clip=0.2),
        lambda x, y, z: negative_log_likelihood(x),
        lambda x, y, z: categorical_entropy(x),
        lambda x, y, z: gaussian_entropy(x),
    ],
    ids=["policy_gradient", "clipped_surrogate", "value", "clipped_value", "likelihood", "categorical", "gaussian"],
)
def test_losses_under_vmap_equal_a_loop(loss):
    arguments = [normal(3, 4, 5, seed=seed) for seed in range(3)]
    expected = torch.stack([loss(*(argument[i] for argument in arguments)) for i in range(3)])
    check(torch.func.vmap(loss)(*arguments), expected)


def test_losses_keep_float32():
    logprobs, old_logprobs, advantages = (normal(3, 4, seed=seed).float() for seed in range(3))
    losses = clipped_surrogate_loss(logprobs, old_logprobs, advantages, clip=0.2)
    expected = clipped_surrogate_loss(logprobs.double(), old_logprobs.double(), advantages.double(), clip=0.2)
    torch.testing.assert_close(losses, expected.float(), rtol=1e-5, atol=1e-5)
