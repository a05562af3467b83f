from __future__ import annotations

import torch
from torch import nn

from rlhf.control.ensemble import Ensemble


def ensemble() -> Ensemble:
    return Ensemble(2, (3, 5, 4), last_gain=0.1, generator=torch.Generator().manual_seed(0)).double()


def test_ensemble_is_its_members_side_by_side() -> None:
    """Each member is a plain network of linear layers and ReLU with the same numbers."""
    whole, x = ensemble(), torch.randn(6, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for bias in whole.biases:
            bias.copy_(torch.randn(bias.shape, generator=torch.Generator().manual_seed(2)))
    for member in range(2):
        hidden = x
        for i, (weight, bias) in enumerate(zip(whole.weights, whole.biases, strict=True)):
            hidden = nn.functional.linear(
                hidden if i == 0 else hidden.clamp(min=0.0), weight[member].T, bias[member, 0]
            )
        torch.testing.assert_close(whole(x)[:, :, member], hidden, rtol=0, atol=1e-12)


def test_ensemble_members_start_apart_and_orthogonal() -> None:
    whole = ensemble()
    assert not torch.equal(whole.weights[0][0], whole.weights[0][1])
    for weight, gain in zip(whole.weights, (2.0**0.5, 0.1), strict=True):
        for member in weight.detach():
            gram = member @ member.T if member.shape[0] <= member.shape[1] else member.T @ member
            torch.testing.assert_close(gram, gain**2 * torch.eye(len(gram), dtype=gram.dtype), rtol=0, atol=1e-5)


def test_frozen_ensemble_passes_the_gradient_to_its_input_alone() -> None:
    whole = ensemble()
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    free = torch.autograd.grad(whole(x).sum(), x)[0]
    frozen = whole(x, frozen=True)
    frozen.sum().backward()
    torch.testing.assert_close(x.grad, free, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in whole.parameters())
