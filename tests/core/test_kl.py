"""KL divergences: exact ones against enumeration and integrals, estimators against exact ones."""

import math

import pytest
import torch

from rlhf.core.kl import categorical_kl, gaussian_kl, k1, k3


def tensor(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-9)


def enumerated_kl(probs: list[float], ref_probs: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(probs, ref_probs, strict=True))


def test_k1_matches_published_numbers():
    check(k1(tensor(-1, -1, -1), tensor(0, -15, -30)), tensor(-1, 14, 29))


def test_k3_matches_published_numbers():
    expected = tensor(math.e - 2, 13 + math.exp(-14), 28 + math.exp(-29))
    check(k3(tensor(-1, -1, -1), tensor(0, -15, -30)), expected)


@pytest.mark.parametrize("estimator", [k1, k3])
def test_estimator_expects_the_kl(estimator):
    logits, ref_logits = normal(6), normal(6, seed=1)
    probs = logits.softmax(-1)
    expected = tensor(enumerated_kl(probs.tolist(), ref_logits.softmax(-1).tolist()))[0]
    check((probs * estimator(logits.log_softmax(-1), ref_logits.log_softmax(-1))).sum(), expected)


@pytest.mark.parametrize("estimator", [k1, k3])
def test_estimator_is_0_for_equal_policies(estimator):
    logprobs = -normal(10).abs()
    assert torch.equal(estimator(logprobs, logprobs.clone()), torch.zeros_like(logprobs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_k3_is_never_negative_by_rounding(dtype):
    logprobs = -normal(100_000).abs().to(dtype)
    for distance in (1e-7, 1e-5, 1e-3, 0.1):
        assert k3(logprobs, logprobs + distance * normal(100_000, seed=1).to(dtype)).min() >= 0.0


def test_k3_keeps_its_digits_for_nearby_policies():
    # exp(d) - 1 - d is d^2 / 2 + d^3 / 6 + d^4 / 24; plain exp would leave no digit of 5e-13 in float64 but three.
    difference = 1e-6
    expected = difference**2 / 2 + difference**3 / 6 + difference**4 / 24
    assert k3(tensor(0.0), tensor(difference)).item() == pytest.approx(expected, rel=1e-8)


def test_k3_over_old_samples_has_the_gradient_of_the_kl_to_the_new_policy():
    # d/dnew of E_old[k3(old, new)] is that of KL(old || new): so PPO with a KL penalty needs no distribution.
    old_logits, logits = normal(6), normal(6, seed=1).requires_grad_()
    old_probs = old_logits.softmax(-1)
    estimate = (old_probs * k3(old_logits.log_softmax(-1), logits.log_softmax(-1))).sum()
    exact = (old_probs * (old_probs.log() - logits.log_softmax(-1))).sum()
    check(torch.autograd.grad(estimate, logits)[0], torch.autograd.grad(exact, logits)[0])


def test_categorical_kl_matches_published_numbers():
    kl = categorical_kl(tensor(1, 1, 0), tensor(1, 2, 0))
    torch.testing.assert_close(kl, tensor(0.12329236)[0], rtol=0.0, atol=5e-9)


def test_categorical_kl_is_the_expected_log_ratio():
    logits, ref_logits = normal(2, 3, 5), normal(2, 3, 5, seed=1)
    probs, ref_probs = logits.softmax(-1).tolist(), ref_logits.softmax(-1).tolist()
    expected = [[enumerated_kl(probs[b][t], ref_probs[b][t]) for t in range(3)] for b in range(2)]
    check(categorical_kl(logits, ref_logits), torch.tensor(expected, dtype=torch.float64))


def test_categorical_kl_has_the_gradient_of_differences():
    assert torch.autograd.gradcheck(
        categorical_kl, (normal(2, 5).requires_grad_(), normal(2, 5, seed=1).requires_grad_())
    )


def test_categorical_kl_ignores_actions_that_the_policy_cannot_take():
    logits = tensor(1, -torch.inf, 0).requires_grad_()
    kl = categorical_kl(logits, tensor(0, 2, 1))
    probs = [math.e / (math.e + 1), 1 / (math.e + 1)]
    total = 1 + math.exp(2) + math.e
    check(kl, tensor(enumerated_kl(probs, [1 / total, math.e / total]))[0])
    assert torch.isfinite(torch.autograd.grad(kl, logits)[0]).all()


def test_categorical_kl_is_finite_where_neither_can_take_an_action():
    kl = categorical_kl(tensor(1, -torch.inf, 1, 0), tensor(1, -torch.inf, 2, 0))
    check(kl, categorical_kl(tensor(1, 1, 0), tensor(1, 2, 0)))


def test_categorical_kl_is_infinite_where_only_the_reference_cannot():
    assert categorical_kl(tensor(0, 0), tensor(0, -torch.inf)) == torch.inf


def test_gaussian_kl_is_the_integral_of_the_log_ratio():
    means, log_stds = tensor(0.3, -1.0), tensor(-0.2, 0.5)
    ref_means, ref_log_stds = tensor(-0.4, 0.1), tensor(0.3, -0.1)
    grid = torch.linspace(-40.0, 40.0, 400_001, dtype=torch.float64)
    expected = tensor(0.0)[0]
    for i in range(2):
        policy, ref = (
            -0.5 * ((grid - mean[i]) / log_std[i].exp()).square() - log_std[i] - 0.5 * math.log(2 * math.pi)
            for mean, log_std in ((means, log_stds), (ref_means, ref_log_stds))
        )
        expected = expected + torch.trapezoid(policy.exp() * (policy - ref), grid)
    check(gaussian_kl(means, log_stds, ref_means, ref_log_stds), expected)


def test_gaussian_kl_is_0_for_equal_policies():
    mean, log_std = normal(4, 2), normal(4, 2, seed=1)
    assert torch.equal(gaussian_kl(mean, log_std, mean, log_std), torch.zeros(4, dtype=torch.float64))


def test_gaussian_kl_accepts_a_standard_deviation_for_all_states():
    mean, ref_mean, log_std, ref_log_std = normal(4, 3, 2), normal(4, 3, 2, seed=1), tensor(0.1, -0.3), tensor(0, 0.2)
    expected = gaussian_kl(mean, log_std.expand(4, 3, 2), ref_mean, ref_log_std.expand(4, 3, 2))
    check(gaussian_kl(mean, log_std, ref_mean, ref_log_std), expected)


@pytest.mark.parametrize("divergence", [k1, k3, categorical_kl])
def test_divergences_under_vmap_equal_a_loop(divergence):
    first, second = normal(3, 4, 5), normal(3, 4, 5, seed=1)
    check(torch.func.vmap(divergence)(first, second), torch.stack([divergence(first[i], second[i]) for i in range(3)]))


def test_gaussian_kl_under_vmap_equals_a_loop():
    arguments = [normal(3, 4, 2, seed=seed) for seed in range(4)]
    expected = torch.stack([gaussian_kl(*(argument[i] for argument in arguments)) for i in range(3)])
    check(torch.func.vmap(gaussian_kl)(*arguments), expected)
