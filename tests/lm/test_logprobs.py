"""The chunked head against its definition: log_softmax of the whole logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rlhf.lm import logprobs as module
from rlhf.lm.logprobs import head_logprobs, logits_logprobs


def example(num_tokens=7, width=5, vocabulary=11, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()
        for shape in ((num_tokens, width), (vocabulary, width), (vocabulary,))
    )
    targets = torch.randint(vocabulary, (num_tokens,), generator=generator)
    return hidden, weight, bias, targets


def definition(hidden, weight, bias, targets, temperature):
    distribution = torch.distributions.Categorical(logits=F.linear(hidden, weight, bias) / temperature)
    return distribution.log_prob(targets), distribution.entropy()


@pytest.fixture(params=[2**24, 22], ids=["one chunk", "several chunks"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", request.param)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("has_bias", [True, False])
def test_head_logprobs_are_those_of_the_whole_logits(temperature, has_bias):
    hidden, weight, bias, targets = example()
    bias = bias if has_bias else None
    inputs = [hidden, weight, *([bias] if has_bias else [])]
    ours = head_logprobs(hidden, weight, bias, targets, temperature=temperature)
    theirs = definition(hidden, weight, bias, targets, temperature)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    tilt = torch.linspace(-1, 2, len(targets), dtype=torch.float64)
    gradients = torch.autograd.grad((ours[0] * tilt + ours[1] * tilt.flip(0)).sum(), inputs)
    expected = torch.autograd.grad((theirs[0] * tilt + theirs[1] * tilt.flip(0)).sum(), inputs)
    torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("chunk")
def test_head_logprobs_gradients_are_those_of_finite_differences():
    hidden, weight, bias, targets = example(num_tokens=7, width=2, vocabulary=4)
    assert torch.autograd.gradcheck(lambda *x: head_logprobs(*x, targets, temperature=0.7), (hidden, weight, bias))


def test_logits_logprobs_are_those_of_the_head():
    hidden, weight, bias, targets = example()
    ours = logits_logprobs(F.linear(hidden, weight, bias), targets, temperature=0.7)
    torch.testing.assert_close(ours, head_logprobs(hidden, weight, bias, targets, temperature=0.7), rtol=0, atol=1e-12)


def test_head_logprobs_leave_a_frozen_head_without_gradient():
    hidden, weight, _, targets = example()
    weight.requires_grad_(False)
    head_logprobs(hidden, weight, None, targets, temperature=1.0)[0].sum().backward()
    assert weight.grad is None
    expected = F.one_hot(targets, 11).double() @ weight - (hidden @ weight.T).softmax(-1) @ weight
    torch.testing.assert_close(hidden.grad, expected, rtol=0, atol=1e-12)


def test_head_logprobs_under_autocast_are_float32():
    hidden, weight, bias, targets = example(dtype=torch.float32)
    plain = head_logprobs(hidden, weight, bias, targets, temperature=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = head_logprobs(hidden, weight, bias, targets, temperature=1.0)
    torch.testing.assert_close(ours, plain, rtol=0, atol=0)
    gradients = [torch.autograd.grad(x[0].sum() + x[1].sum(), (hidden, weight, bias)) for x in (ours, plain)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_head_logprobs_take_bfloat16_hidden_states_to_float32():
    hidden, weight, bias, targets = example(dtype=torch.float32)
    rounded = hidden.detach().bfloat16().requires_grad_()
    ours = head_logprobs(rounded, weight, bias, targets, temperature=1.0)
    theirs = head_logprobs(rounded.detach().float(), weight, bias, targets, temperature=1.0)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    ours[0].sum().backward()
    assert rounded.grad.dtype == torch.bfloat16


def test_head_logprobs_of_nothing_have_zero_gradients():
    hidden, weight, bias, targets = example()
    logprobs, entropy = head_logprobs(hidden[:0], weight, bias, targets[:0], temperature=1.0)
    (logprobs.sum() + entropy.sum()).backward()
    assert hidden.grad.abs().sum() == weight.grad.abs().sum() == bias.grad.abs().sum() == 0
