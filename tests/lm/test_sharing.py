"""Rows of a group share their prompt, which is computed once: no score and no gradient changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.lm import packing, scoring
from rlhf.lm.packing import Layouts
from rlhf.lm.policy import CausalLM
from rlhf.lm.scoring import read_sequences, response_inputs
from tests.lm.tiny import ARCHITECTURES, ODD_ARCHITECTURES, VOCABULARY, disturb, tiny_policy

APART = Layouts(packs=False, most_shared=0)
# gemma2's tiny window is 6; the others of these read a mask of ours at any length.
READ_IT = [*ARCHITECTURES, "gemma2"]


def group_inputs(prompts: tuple[int, ...] = (3, 2), responses: int = 3, longest: int = 3) -> dict[str, Tensor]:
    """Some responses to each of the prompts, in turn, so that rows of a group do not stand side by side."""
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(VOCABULARY, (size,), generator=generator).tolist() for size in prompts] * responses
    lengths = torch.randint(1, longest + 1, (len(texts),), generator=generator)
    answers = torch.randint(VOCABULARY, (len(texts), longest), generator=generator)
    return response_inputs(texts, answers, lengths)


def scores_and_gradient(policy: CausalLM, inputs: dict[str, Tensor]) -> tuple[list[Tensor], Tensor]:
    policy.zero_grad()
    output = policy(inputs)
    weights = torch.linspace(-1.0, 1.0, output.logprobs.numel()).view_as(output.logprobs)
    (weights * (output.logprobs + output.values + 0.1 * output.entropy)).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    return [x.detach() for x in output], gradient


def with_values(policy: CausalLM) -> CausalLM:
    disturb(policy.value_head.parameters(), 1.0)
    return policy


@pytest.mark.parametrize("critic", ["shared", "separate"])
@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("architecture", READ_IT)
def test_scores_and_gradient_are_those_of_prompts_computed_for_each(
    tiny_folder: Any, architecture: str, lora_rank: int, critic: str
) -> None:
    policy = with_values(tiny_policy(tiny_folder(architecture), lora_rank=lora_rank, critic=critic))
    disturb([parameter for parameter in policy.model.parameters() if parameter.requires_grad], 0.02)
    policy, inputs = policy.double(), group_inputs()
    assert packing.worthwhile(read_sequences(inputs), policy.abilities.layouts)
    shared = scores_and_gradient(policy, inputs)
    policy.abilities = policy.abilities._replace(layouts=APART)
    if critic == "separate":
        policy._critic_layouts = APART
    apart = scores_and_gradient(policy, inputs)
    # Norms and rotations stay in float32, whatever the model is in.
    torch.testing.assert_close(shared[0], apart[0], rtol=0, atol=1e-5)
    assert float((shared[1] - apart[1]).norm() / apart[1].norm()) < 1e-6


@pytest.mark.parametrize("architecture", sorted(set(ODD_ARCHITECTURES) - set(READ_IT)))
def test_models_that_cannot_read_it_compute_each_prompt_by_itself(tiny_folder: Any, architecture: str) -> None:
    policy, inputs = tiny_policy(tiny_folder(architecture)), group_inputs()
    if policy.abilities.layouts.most_shared == 0:
        assert scoring.lay_out(inputs, policy.abilities.layouts).mask is None
    shared = policy(inputs)
    policy.abilities = policy.abilities._replace(layouts=APART)
    torch.testing.assert_close(shared, policy(inputs), rtol=0, atol=1e-5)


def test_beyond_the_window_of_its_attention_no_prompt_is_shared(tiny_folder: Any) -> None:
    """A mask of ours says nothing of the window."""
    policy = tiny_policy(tiny_folder("gemma2"))
    inside, beyond = group_inputs(), group_inputs(prompts=(6, 5))
    assert scoring.lay_out(inside, policy.abilities.layouts).mask is not None
    assert scoring.lay_out(beyond, policy.abilities.layouts).mask is None


def test_a_pass_reads_each_prompt_once(tiny_folder: Any) -> None:
    policy, inputs = tiny_policy(tiny_folder("llama")), group_inputs(prompts=(20, 12), responses=4, longest=3)
    read: list[int] = []
    policy.model.model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    policy(inputs)
    sizes = scoring.read_lengths(inputs)
    own = int((sizes - inputs["actions"].masked_fill(inputs["actions"] == 0, 99).amin(1)).sum())
    assert sum(read) == policy.passed(inputs)(0, len(sizes)) < int(sizes.sum())
    # Two rows, the shorter one padded.
    assert 32 + own <= sum(read) <= 2 * (20 + own)


def test_the_prompt_of_a_row_is_what_it_has_before_its_first_action() -> None:
    inputs = {
        "tokens": torch.tensor([[5, 6, 7, 8], [5, 6, 1, 0], [5, 9, 7, 8], [5, 6, 7, 8], [4, 0, 0, 0]]),
        "actions": torch.tensor([[2, 3], [2, 0], [2, 3], [0, 3], [0, 0]]),
    }
    sequences = read_sequences(inputs)
    assert sequences.sizes == [3, 2, 3, 3, 1]
    assert sequences.prompt_sizes == [2, 2, 2, 3, 1]
    first, second, third, fourth, fifth = sequences.prompts
    assert first == second
    assert len({first, third, fourth, fifth}) == 4
