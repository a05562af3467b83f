"""Laws 2 and 3: what was sampled is scored the same, and no row's scores depend on its company."""

from __future__ import annotations

import pytest
import torch

from rlhf.lm.engine import Sampling
from rlhf.lm.generate import Decoder
from rlhf.lm.scoring import response_inputs
from tests.lm.tiny import (
    ARCHITECTURES,
    EOS,
    ODD_ARCHITECTURES,
    random_inputs,
    random_prompts,
    random_uniforms,
    tiny_policy,
)

SAMPLING = Sampling(max_new_tokens=16, stop_tokens=tuple(range(EOS, 12)))


def require_identity(policy, tolerance):
    prompts = random_prompts() * 3
    sampled = Decoder().generate(policy, prompts, uniforms=random_uniforms(len(prompts), 16), sampling=SAMPLING)
    assert len(set(sampled.lengths.tolist())) > 3
    with torch.no_grad():
        scored = policy(response_inputs(prompts, sampled.tokens, sampled.lengths))
    ratio = (scored.logprobs - sampled.logprobs).exp()
    assert (ratio - 1).abs().max() <= tolerance
    torch.testing.assert_close(scored.values, sampled.values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("temperature", "tolerance"), [(1.0, 1e-5), (0.7, 1e-4)])
@pytest.mark.parametrize("architecture", ARCHITECTURES + ODD_ARCHITECTURES)
def test_sampled_and_scored_logprobs_agree(tiny_folder, architecture, temperature, tolerance):
    require_identity(tiny_policy(tiny_folder(architecture), temperature=temperature), tolerance)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_sampled_and_scored_logprobs_agree_with_an_adapter_and_checkpointing(tiny_folder, architecture, critic):
    policy = tiny_policy(tiny_folder(architecture), lora_rank=4, critic=critic, gradient_checkpointing=True)
    require_identity(policy, 1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES + ODD_ARCHITECTURES)
def test_scores_do_not_depend_on_company(tiny_folder, architecture):
    policy, inputs = tiny_policy(tiny_folder(architecture)), random_inputs()
    with torch.no_grad():
        together = policy(inputs)
        policy.abilities = policy.abilities._replace(packs=False)
        padded = policy(inputs)
        alone = [policy({name: tensor[row : row + 1] for name, tensor in inputs.items()}) for row in range(5)]
    torch.testing.assert_close(together, padded, rtol=0, atol=1e-5)
    torch.testing.assert_close(together, type(together)(*map(torch.cat, zip(*alone, strict=True))), rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_do_not_depend_on_the_padding_token(tiny_folder, architecture):
    policy, inputs = tiny_policy(tiny_folder(architecture)), random_inputs()
    padding = torch.arange(12) >= inputs["lengths"].unsqueeze(1)
    with torch.no_grad():
        expected = policy(inputs)
        torch.testing.assert_close(
            policy({**inputs, "tokens": inputs["tokens"].masked_fill(padding, EOS)}), expected, rtol=0, atol=0
        )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_samples_do_not_depend_on_left_padding(tiny_folder, architecture):
    policy, prompts, uniforms = tiny_policy(tiny_folder(architecture)), random_prompts(), random_uniforms(6, 16)
    together = Decoder().generate(policy, prompts, uniforms=uniforms, sampling=SAMPLING)
    for row, prompt in enumerate(prompts):
        alone = Decoder().generate(policy, [prompt], uniforms=uniforms[row : row + 1], sampling=SAMPLING)
        length = alone.lengths.item()
        assert torch.equal(alone.tokens[0], together.tokens[row, :length])
        torch.testing.assert_close(alone.logprobs[0], together.logprobs[row, :length], rtol=0, atol=1e-5)
        torch.testing.assert_close(alone.values[0], together.values[row, :length], rtol=0, atol=1e-5)
