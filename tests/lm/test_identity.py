"""Laws 2 and 3: what was sampled is scored the same, and no row's scores depend on its company."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig

from rlhf.core import kl
from rlhf.errors import InputError
from rlhf.lm.engine import Sampling
from rlhf.lm.generate import Decoder
from rlhf.lm.load import build_policy
from rlhf.lm.packing import Layouts
from rlhf.lm.scoring import response_inputs
from rlhf.optimize import check_identity
from rlhf.reduce import MetricSums
from tests.lm.tiny import (
    ARCHITECTURES,
    EOS,
    ODD_ARCHITECTURES,
    VOCABULARY,
    disturb,
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
    if policy.critic_trunk is None:
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
        policy.abilities = policy.abilities._replace(layouts=Layouts(packs=False, most_shared=0))
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


MISREAD = {
    # Its padding token is embedded as 0, so that padding alone does not show it.
    "recurrent_gemma": (
        {"intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "lru_width": 32},
        "RecurrentGemmaModel keeps what it has read in itself and not in the cache",
    ),
    "xlstm": ({"num_blocks": 2, "num_heads": 2}, "xLSTMModel cannot be read with the cache of transformers"),
    "rwkv": ({"num_hidden_layers": 2, "attention_hidden_size": 32}, "RwkvModel.forward takes no cache"),
    "mamba": ({"num_hidden_layers": 1, "state_size": 4}, "MambaModel says something else of left-padded tokens"),
}


@pytest.mark.parametrize("architecture", MISREAD)
def test_a_model_whose_state_is_not_in_the_cache_is_refused_by_name(architecture: str) -> None:
    sizes, said = MISREAD[architecture]
    config = AutoConfig.for_model(architecture, vocab_size=VOCABULARY, hidden_size=32, **sizes)
    with pytest.raises(InputError, match=said):
        build_policy(config, temperature=1.0, critic="none", seed=0)


def judged(policy, inputs, logprobs, precision: str) -> None:
    """As the first minibatch after acting is."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        output = policy(inputs)
    sums = MetricSums()
    sums.add(kl.movement(output.logprobs, logprobs), inputs["actions"] > 0)
    accelerator = SimpleNamespace(num_processes=1, device=torch.device("cpu"), mixed_precision=precision)
    check_identity(sums.reduce(accelerator), accelerator)


def drop_out(policy, inputs) -> None:
    for layer in [module for module in policy.modules() if type(module).__name__.endswith(("MLP", "DecoderLayer"))]:
        layer.register_forward_hook(
            lambda _, __, out: torch.dropout(out, 0.1, True) if isinstance(out, torch.Tensor) else out
        )


def lag_behind(policy, inputs) -> None:
    disturb(policy.parameters(), 0.05)


def heat(policy, inputs) -> None:
    policy.temperature = 1.5


def take_another_prompt(policy, inputs) -> None:
    inputs["tokens"][:, 0] = (inputs["tokens"][:, 0] + 1) % VOCABULARY


@pytest.mark.parametrize("wrong", [None, drop_out, lag_behind, heat, take_another_prompt])
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2", "opt"])
def test_what_is_wrong_with_the_training_forward_is_found_in_either_precision(
    tiny_folder, architecture, precision, wrong
):
    """Rounding, also that between decoding and scoring, passes."""
    policy, prompts = tiny_policy(tiny_folder(architecture)), random_prompts((7, 4, 6, 3, 9) * 3)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        uniforms = random_uniforms(len(prompts), 16)
        drawn = Decoder().generate(policy, prompts, uniforms=uniforms, sampling=Sampling(max_new_tokens=16))
    inputs = response_inputs(prompts, drawn.tokens, drawn.lengths)
    if wrong is None:
        judged(policy, inputs, drawn.logprobs, precision)
        return
    wrong(policy, inputs)
    with pytest.raises(RuntimeError, match="another probability"):
        judged(policy, inputs, drawn.logprobs, precision)
