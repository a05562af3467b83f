"""The frozen copy in a lower precision: its parameters are rounded, and nothing else."""

from __future__ import annotations

import pytest
import torch

from rlhf.lm.load import ModelConfig, build_policy, policy_of
from rlhf.lm.reference import freeze_copy
from tests.lm.tiny import load_tiny, random_inputs


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "gpt_neox", "falcon", "lfm2"])
def test_parameters_are_cast_and_buffers_are_not(tiny_folder, architecture):
    model = load_tiny(tiny_folder(architecture))
    frozen = freeze_copy(model, torch.bfloat16)
    assert {parameter.dtype for parameter in frozen.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert len(list(frozen.parameters())) == len(list(model.parameters()))  # what is tied stays tied
    for (name, ours), (_, theirs) in zip(frozen.named_buffers(), model.named_buffers(), strict=True):
        assert ours.dtype == theirs.dtype, name
        assert torch.equal(ours, theirs), name


def test_a_reference_in_bfloat16_turns_late_positions_by_the_true_angles():
    """As far from the policy as float32 computing with rounded weights is, and not further."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=61, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1
    )
    policy = build_policy(config, temperature=1.0, critic="none", seed=0)
    policy.reference_dtype = torch.bfloat16
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if weight.dim() > 1:
                weight.mul_(8.0 if "q_proj" in name or "k_proj" in name else 3.0)
            weight.copy_(weight.to(torch.bfloat16))
    tokens = torch.randint(61, (1, 1500), generator=torch.Generator().manual_seed(0))
    inputs = {"tokens": tokens, "lengths": torch.tensor([1500]), "actions": torch.arange(1400, 1500).unsqueeze(0)}
    policy.make_reference()
    (frozen,) = policy._frozen
    with torch.no_grad():
        near = (policy.reference_logprobs(inputs) - policy(inputs).logprobs).abs().mean()
        frozen.to(torch.bfloat16)
        with_all_cast = (policy.reference_logprobs(inputs) - policy(inputs).logprobs).abs().mean()
    assert near < 0.5 * with_all_cast


def test_a_reference_of_loaded_weights_says_what_the_policy_says_to_rounding(tiny_folder):
    config = ModelConfig(model=str(tiny_folder("llama")), reference_dtype="bfloat16")
    policy, inputs = policy_of(config, temperature=1.0, seed=0), random_inputs()
    policy.make_reference()
    assert 0 < (policy.reference_logprobs(inputs) - policy(inputs).logprobs).abs().mean() < 0.1
