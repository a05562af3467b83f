"""Frozen layers in 4 bits: the numbers are those of a model of the unpacked weights, acting and learning."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import rlhf
from rlhf.errors import InputError
from rlhf.lm.engine import Sampling
from rlhf.lm.four_bits import FourBitLinear
from rlhf.lm.generate import Decoder
from rlhf.lm.load import load_policy
from rlhf.lm.policy import CausalLM
from tests.lm.tiny import (
    ARCHITECTURES,
    disturb,
    load_tiny,
    random_inputs,
    random_prompts,
    random_uniforms,
    save_tiny,
    tiny_policy,
)
from tests.lm.words import word_tokenizer
from tests.lm.worlds import word_policy
from tests.unmoved import train

# Dettmers et al. (2023), appendix E; those above 0 first.
_UP = "0.07958029955625534 0.16093020141124725 0.24611230194568634 0.33791524171829224 0.44070982933044434"
_UP += " 0.5626170039176941 0.7229568362236023 1"
_DOWN = "0 0.09105003625154495 0.18477343022823334 0.28444138169288635 0.39491748809814453 0.5250730514526367"
_DOWN += " 0.6961928009986877 1"
NF4 = torch.tensor([*map(float, _UP.split()), *(-float(level) for level in _DOWN.split())])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_weight_is_the_nearest_level_times_the_largest_of_its_block(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    # Rows of half a block more than one, which blocks do not heed.
    layer = nn.Linear(96, 40)
    weights = layer.weight.detach().view(-1, 64)
    largest = weights.abs().amax(1, keepdim=True)
    unpacked = FourBitLinear(layer).unpacked(dtype).float().view(-1, 64)
    scale = unpacked.abs().amax(1, keepdim=True)
    # In 8 bits, as differences from their mean.
    step = float((largest - largest.mean()).abs().max()) / 64
    tolerance = 1e-5 if dtype == torch.float32 else 0.005
    assert float((scale - largest).abs().max()) < step + tolerance * float(largest.max())
    apart, of_levels = ((x.unsqueeze(-1) - NF4).abs().amin(-1) for x in (weights / largest, unpacked / scale))
    assert float(of_levels.max()) < tolerance
    assert bool(((unpacked / scale - weights / largest).abs() <= apart + tolerance).all())


def packed_and_whole(folder: Path, **options: Any) -> tuple[CausalLM, CausalLM]:
    """A policy in 4 bits, and one whose weights are all as those unpack to."""
    packed = tiny_policy(folder, lora_rank=4, quantize="nf4", **options)
    whole = tiny_policy(folder, lora_rank=4, **options)
    whole.load_state_dict({name: x for name, x in packed.state_dict().items() if x.dtype != torch.uint8}, strict=False)
    layers = dict(whole.named_modules())
    for name, layer in packed.named_modules():
        if isinstance(layer, FourBitLinear):
            weight = layer.unpacked(torch.float32)
            layers[name].weight.data.copy_(weight if isinstance(layers[name], nn.Linear) else weight.T)
    return packed, whole


def said(policy: CausalLM, *, half: bool) -> list[Tensor]:
    """What it generates, then the scores of other actions, those of the reference that it leaves, and the gradient."""
    prompts = random_prompts()
    policy.make_reference()
    disturb([parameter for parameter in policy.parameters() if parameter.requires_grad], 0.1)
    with torch.autocast("cpu", torch.bfloat16, enabled=half), policy.sampling_mode():
        drawn = Decoder().generate(
            policy, prompts, sampling=Sampling(max_new_tokens=4), uniforms=random_uniforms(len(prompts), 4)
        )
        reference = policy.reference_logprobs(random_inputs())
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        output = policy(random_inputs())
    (output.logprobs.sum() + output.values.sum()).backward()
    gradient = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
    return [*(x.detach() for x in output), drawn.tokens, drawn.logprobs, reference, *gradient]


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_number_is_that_of_the_unpacked_weights(tiny_folder: Any, architecture: str, checkpointed: bool) -> None:
    packed, whole = packed_and_whole(tiny_folder(architecture), gradient_checkpointing=checkpointed)
    assert any(isinstance(module, FourBitLinear) for module in packed.modules())
    for mine, expected in zip(said(packed, half=False), said(whole, half=False), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_under_bf16_too(tiny_folder: Any) -> None:
    packed, whole = packed_and_whole(tiny_folder("llama"))
    for mine, expected in zip(said(packed, half=True), said(whole, half=True), strict=True):
        torch.testing.assert_close(mine, expected, rtol=0.02, atol=0.01)


def test_products_of_the_hessian_are_those_of_the_unpacked_weights() -> None:
    torch.manual_seed(0)
    packed = FourBitLinear(nn.Linear(8, 6))
    weight, bias = packed.unpacked(torch.float32), packed.bias

    def product(layer: Any) -> Tensor:
        x = torch.linspace(-1, 1, 8).requires_grad_()
        (gradient,) = torch.autograd.grad(layer(x).tanh().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), x)[0]

    torch.testing.assert_close(product(packed), product(lambda x: x @ weight.T + bias))


def test_head_and_embeddings_stay_whole_and_the_rest_takes_an_eighth(tmp_path: Path) -> None:
    """Wide enough that scales do not show."""
    folder = save_tiny("qwen2", tmp_path, hidden_size=256, intermediate_size=512)
    packed, whole = (tiny_policy(folder, lora_rank=2, critic="none", quantize=how) for how in ("nf4", "none"))
    layers = [module for module in packed.modules() if isinstance(module, FourBitLinear)]
    assert len(layers) == 2 * 7
    assert {parameter.dtype for parameter in packed.parameters()} == {torch.float32, torch.uint8}
    assert packed.model.get_output_embeddings().weight is packed.model.get_input_embeddings().weight

    def size(policy: CausalLM) -> int:
        return sum(parameter.numel() * parameter.element_size() for parameter in policy.model.parameters())

    of_layers = sum(4 * layer.in_features * layer.out_features for layer in layers)
    assert size(whole) - size(packed) == of_layers - of_layers // 8


def test_a_copy_and_another_device_are_the_same_layer() -> None:
    torch.manual_seed(0)
    layer = FourBitLinear(nn.Linear(64, 32))
    x = torch.randn(3, 64)
    for other in (copy.deepcopy(layer), copy.deepcopy(layer).to("cpu"), copy.deepcopy(layer).double().float()):
        assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_a_run_starts_at_its_reference_and_moves_nothing_that_is_packed(tmp_path: Path, mixed_precision: str) -> None:
    word_policy(dtype=torch.float32).model.save_pretrained(tmp_path)
    policy = tiny_policy(tmp_path, lora_rank=2, quantize="nf4")
    policy.tokenizer = word_tokenizer()
    layers = [module for module in policy.modules() if isinstance(module, FourBitLinear)]
    before = [layer.weight.clone() for layer in layers]

    def count(responses: list[str]) -> list[float]:
        return [float(len(response)) for response in responses]

    rows = train(
        policy, rlhf.PPO(kl_coef=0.1), rlhf.Optimize(learning_rate=0.01), count, mixed_precision=mixed_precision
    )
    assert rows[0]["kl_ref_per_episode"] == 0.0
    assert rows[-1]["kl_ref_per_episode"] != 0.0
    assert rows[0]["ratio_error_max"] < (1e-5 if mixed_precision == "no" else 0.1)
    assert all(map(torch.equal, before, (layer.weight for layer in layers)))


def test_weights_that_have_to_learn_are_refused(tiny_folder: Any) -> None:
    with pytest.raises(InputError, match=r"no adapter.*lora_rank"):
        tiny_policy(tiny_folder("llama"), quantize="nf4")


def test_an_adapter_that_computes_with_the_weights_is_refused(tiny_folder: Any, tmp_path: Path) -> None:
    config = LoraConfig(r=2, use_dora=True, task_type="CAUSAL_LM")
    get_peft_model(load_tiny(tiny_folder("llama")), config).save_pretrained(str(tmp_path))
    with pytest.raises(InputError, match=r"in 4 bits.*plain LoRA"):
        tiny_policy(tmp_path, quantize="nf4")


def test_a_saved_adapter_goes_on_beside_the_same_weights(tiny_folder: Any, tmp_path: Path) -> None:
    policy = tiny_policy(tiny_folder("llama"), lora_rank=2, quantize="nf4")
    policy.save(tmp_path)
    again = tiny_policy(tmp_path, quantize="nf4")
    again.load_state_dict(policy.state_dict())
    assert all(map(torch.equal, policy(random_inputs()), again(random_inputs())))


def test_without_the_package_it_says_what_to_install(tiny_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match=r"bitsandbytes.*rlhf\[qlora\]"):
        tiny_policy(tiny_folder("llama"), lora_rank=2, quantize="nf4")


def test_a_run_does_not_go_on_beside_other_weights(tmp_path: Path) -> None:
    word_policy(dtype=torch.float32).model.save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")

    def go_on(quantize: str, updates: int, *, resume: bool) -> None:
        policy = load_policy(str(tmp_path / "model"), lora_rank=2, quantize=quantize)
        rows = [{"prompt": text} for text in ("a b", "c", "b a d")]
        task = rlhf.Prompts(
            rows, lambda responses: [1.0] * len(responses), max_new_tokens=4, held_out=1, prompts_per_rollout=2
        )
        rlhf.train(policy, task, rlhf.PPO(kl_coef=0.1), updates=updates, out=tmp_path / "run", resume=resume)

    go_on("nf4", 1, resume=False)
    with pytest.raises(InputError, match=r"frozen layers"):
        go_on("none", 2, resume=True)
    go_on("nf4", 2, resume=True)
