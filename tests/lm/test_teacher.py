"""Another model as the reference: its own log-probabilities, and a policy that becomes like it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import rlhf
from rlhf.errors import InputError
from rlhf.runs.log import read_lines
from tests.lm.tiny import save_tiny
from tests.lm.words import TEMPLATE, WORDS, word_tokenizer
from tests.lm.worlds import ROWS


def folder_of(folder: Path, architecture: str, **changes: Any) -> str:
    save_tiny(architecture, folder, vocab_size=len(WORDS), eos_token_id=0, pad_token_id=0, **changes)
    word_tokenizer(template=TEMPLATE).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def student(tmp_path: Path) -> str:
    return folder_of(tmp_path / "student", "llama")


def inputs_of() -> dict[str, torch.Tensor]:
    return {
        "tokens": torch.tensor([[5, 6, 7, 8, 9], [6, 5, 9, 0, 0]]),
        "lengths": torch.tensor([5, 3]),
        "actions": torch.tensor([[1, 2, 3, 4], [1, 2, 0, 0]]),
    }


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "opt"])
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_the_reference_says_what_the_teacher_says(
    architecture: str, lora_rank: int, student: str, tmp_path: Path
) -> None:
    """At the policy's temperature, beside an adapter too, and where the policy is asked to make a reference."""
    teacher = folder_of(tmp_path / "teacher", architecture)
    policy = rlhf.load_policy(student, reference=teacher, lora_rank=lora_rank, temperature=0.7)
    policy.make_reference()
    alone = rlhf.load_policy(teacher, temperature=0.7)
    with torch.no_grad():
        expected = alone(inputs_of()).logprobs
    torch.testing.assert_close(policy.reference_logprobs(inputs_of()), expected, rtol=0, atol=1e-6)
    assert not policy.at_reference()
    assert not any("teacher" in name for name in policy.state_dict())


def test_a_teacher_in_half_precision_is_near_itself(student: str, tmp_path: Path) -> None:
    teacher = folder_of(tmp_path / "teacher", "gpt2")
    policy = rlhf.load_policy(student, reference=teacher, reference_dtype="bfloat16")
    with torch.no_grad():
        expected = rlhf.load_policy(teacher)(inputs_of()).logprobs
    found = policy.reference_logprobs(inputs_of())
    assert float((found - expected).abs().max()) < 0.1
    assert not torch.equal(found, expected)


@pytest.mark.parametrize("method", [rlhf.PPO(kl_coef=1.0, gamma=0.0), rlhf.GRPO(kl_coef=1.0)], ids=lambda m: m.name)
def test_a_policy_becomes_like_its_teacher(method: Any, student: str, tmp_path: Path) -> None:
    """Without any reward, from the KL alone, and measured as KL."""
    teacher = folder_of(tmp_path / "teacher", "llama", initializer_range=0.35)
    policy = rlhf.load_policy(student, reference=teacher)

    def nothing(responses: list[str]) -> list[float]:
        return [0.0] * len(responses)

    task = rlhf.Prompts(ROWS * 8, nothing, max_new_tokens=6, held_out=8, prompts_per_rollout=16, responses_per_prompt=2)
    settings = rlhf.Optimize(learning_rate=3e-3, epochs=2)
    rlhf.train(policy, task, method, settings, updates=15, evaluations=1, out=tmp_path / "run")
    rows = read_lines(tmp_path / "run" / method.name / "metrics.jsonl")
    assert rows[1]["scores_alike"] == 0.0
    assert rows[-1]["eval_kl_ref_per_episode"] < 0.6 * rows[0]["eval_kl_ref_per_episode"]


def test_another_tokenizer_is_refused(student: str, tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "other", vocab_size=len(WORDS) + 20, eos_token_id=0, pad_token_id=0)
    other = word_tokenizer()
    other.add_tokens(["new"])
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=r"the reference .* has another tokenizer than"):
        rlhf.load_policy(student, reference=str(tmp_path / "other"))


def test_a_resumed_run_must_find_the_same_teacher(student: str, tmp_path: Path) -> None:
    teacher = folder_of(tmp_path / "teacher", "gpt2")
    policy = rlhf.load_policy(student, reference=teacher)
    assert any(name.startswith("reference: model.safetensors") for name in policy.inputs())
