"""Under bf16 the frozen layers beside an adapter are held in it, and no number changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import rlhf
from rlhf.algorithms.clone import BehaviourCloning
from rlhf.errors import InputError
from rlhf.lm.engine import Sampling
from rlhf.lm.generate import Decoder
from rlhf.lm.model import head_of
from rlhf.lm.policy import CausalLM
from rlhf.lm.precision import holds_frozen
from rlhf.training import make_accelerator, require
from tests.lm.tiny import (
    ARCHITECTURES,
    ODD_ARCHITECTURES,
    disturb,
    load_tiny,
    random_inputs,
    random_prompts,
    random_uniforms,
    tiny_policy,
)
from tests.lm.words import word_tokenizer
from tests.lm.worlds import ROWS
from tests.unmoved import policy_of, train


def adapted(folder: Path) -> CausalLM:
    policy = tiny_policy(folder, lora_rank=4)
    disturb([parameter for parameter in policy.parameters() if parameter.requires_grad], 0.1)
    return policy


def said(policy: CausalLM) -> list[torch.Tensor]:
    """Of actions taken, of its own, by the reference that it leaves, and the gradient."""
    prompts = random_prompts()
    policy.make_reference()
    disturb([parameter for parameter in policy.parameters() if parameter.requires_grad], 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        output = policy(random_inputs())
        drawn = Decoder().generate(
            policy, prompts, sampling=Sampling(max_new_tokens=4), uniforms=random_uniforms(len(prompts), 4)
        )
        reference = policy.reference_logprobs(random_inputs())
    (output.logprobs.sum() + output.entropy.sum()).backward()
    gradient = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
    return [*(x.detach() for x in output), drawn.tokens, drawn.logprobs, reference, *gradient]


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *ODD_ARCHITECTURES])
def test_held_in_half_precision_every_number_is_as_under_autocast(tiny_folder: Any, architecture: str) -> None:
    plain, held = adapted(tiny_folder(architecture)), adapted(tiny_folder(architecture))
    held.compute_in("bf16")
    assert all(map(torch.equal, said(plain), said(held)))


def test_what_is_held_is_the_frozen_layers_but_the_head_and_nothing_that_learns(tiny_folder: Any) -> None:
    policy = adapted(tiny_folder("llama"))
    policy.compute_in("bf16")
    layers = [module for module in policy.model.modules() if type(module) is nn.Linear]
    frozen = {m.weight for m in layers if not m.weight.requires_grad} - {head_of(policy.model).weight}
    half = {parameter for parameter in policy.parameters() if parameter.dtype == torch.bfloat16}
    assert len(half) == 2 * 7
    assert half == frozen


def test_a_weight_that_the_embedding_shares_is_held_as_it_was(tiny_folder: Any) -> None:
    """A head of another module's weight, named as a layer beside it."""
    policy = adapted(tiny_folder("qwen2"))
    policy.compute_in("bf16")
    assert policy.model.get_input_embeddings().weight.dtype == torch.float32


def test_called_outside_of_autocast_it_computes_as_inside(tiny_folder: Any) -> None:
    policy, inputs = adapted(tiny_folder("llama")), random_inputs()
    policy.compute_in("bf16")
    with torch.autocast("cpu", torch.bfloat16):
        inside = policy(inputs)
    assert all(map(torch.equal, inside, policy(inputs)))


def test_other_adapters_and_whole_models_stay_as_they_are(tiny_folder: Any) -> None:
    """A DoRA adapter takes the norm of the weights themselves, which half precision would round."""
    whole = tiny_policy(tiny_folder("llama"))
    dora = CausalLM(
        get_peft_model(load_tiny(tiny_folder("llama")), LoraConfig(r=2, use_dora=True)), temperature=1.0, critic="none"
    )
    for policy in (whole, dora):
        assert not holds_frozen(policy.model)
        policy.compute_in("bf16")
        assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}


def test_a_run_has_the_numbers_of_one_that_casts_at_every_pass(monkeypatch: Any) -> None:
    def lengths(responses: list[str], **_: Any) -> list[float]:
        return [float(len(response)) for response in responses]

    def run() -> list[dict[str, float]]:
        torch.manual_seed(0)
        rows = train(
            policy_of(adapter="trained"), rlhf.PPO(kl_coef=0.1), rlhf.Optimize(), lengths, mixed_precision="bf16"
        )
        return [{name: x for name, x in row.items() if "second" not in name and "memory" not in name} for row in rows]

    held = run()
    monkeypatch.setattr(CausalLM, "compute_in", lambda *_: None)
    assert held == run()


@pytest.mark.parametrize("task", ["prompts", "demonstrations"])
def test_weights_that_were_rounded_are_refused_in_full_precision(task: str) -> None:
    policy = policy_of(adapter="fresh")
    policy.tokenizer = word_tokenizer()
    policy.compute_in("bf16")
    accelerator = make_accelerator(policy, mixed_precision="no")
    if task == "prompts":
        given = rlhf.Prompts(ROWS, lambda responses, **_: [0.0] * len(responses), max_new_tokens=2, held_out=ROWS[:1])
        method: Any = rlhf.PPO()
    else:
        given, method = rlhf.Demonstrations([{"text": "a b"}] * 4, rows_per_update=2), BehaviourCloning()
    with pytest.raises(InputError, match="rounded to bfloat16 by an earlier run"):
        require(policy, given, method, rlhf.Optimize(), accelerator)
