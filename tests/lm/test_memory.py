"""A run that memory ends for before it has read a token is refused, with the settings to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import rlhf
from rlhf.errors import InputError
from rlhf.lm import memory
from rlhf.lm.policy import CausalLM
from rlhf.optimize import make_optimizer
from rlhf.training import make_accelerator, require
from tests.lm.tiny import random_inputs, save_tiny, tiny_policy
from tests.lm.words import word_tokenizer
from tests.lm.worlds import CPU, ROWS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("memory") / "model")


def held(policy: CausalLM) -> dict[str, float]:
    """By parts, of a policy that has taken a step."""
    policy.make_reference()
    optimizer = make_optimizer(policy, rlhf.Optimize())
    output = policy(random_inputs())
    (output.logprobs.sum() + output.values.sum()).backward()
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    reference = [*policy._kept.values(), *(weight for model in policy._frozen for weight in model.parameters())]
    return {
        "reference": memory.size(reference),
        "gradients": memory.size(each.grad for each in policy.parameters() if each.grad is not None),
        "optimizer": memory.size(moments),
    }


@pytest.mark.parametrize(
    "model",
    [{}, {"reference_dtype": "bfloat16"}, {"lora_rank": 4}, {"critic": "separate"}, {"critic": "none"}],
    ids=str,
)
def test_what_is_certain_is_what_a_step_leaves_behind(folder: Path, model: dict[str, Any]) -> None:
    certain = memory.certain_memory(tiny_policy(folder, **model), needs_reference=True, accelerator=CPU)
    assert certain == {"weights": 0.0, **held(tiny_policy(folder, **model))}


def test_without_a_charge_for_the_kl_there_is_no_reference(folder: Path) -> None:
    assert memory.certain_memory(tiny_policy(folder), needs_reference=False, accelerator=CPU)["reference"] == 0.0


def short(responses: list[str], **_: Any) -> list[float]:
    return [-float(len(response)) for response in responses]


@pytest.mark.parametrize("task", ["prompts", "demonstrations"])
def test_a_run_that_cannot_fit_is_refused_by_its_parts(
    folder: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tiny_policy(folder)
    policy.tokenizer = word_tokenizer()
    given: Any = rlhf.Demonstrations([{"text": "a b"}] * 4, rows_per_update=2)
    method: Any = rlhf.BehaviourCloning()
    if task == "prompts":
        given = rlhf.Prompts(ROWS, short, max_new_tokens=2, held_out=ROWS[:1], prompts_per_rollout=4)
        method = rlhf.PPO(kl_coef=0.1)
    accelerator = make_accelerator(policy, mixed_precision="no")
    needs = memory.certain_memory(policy, needs_reference=method.needs_reference, accelerator=accelerator)
    monkeypatch.setattr(memory, "free_memory", lambda device: sum(needs.values()))
    require(policy, given, method, rlhf.Optimize(), accelerator)
    monkeypatch.setattr(memory, "free_memory", lambda device: sum(needs.values()) - 1)
    with pytest.raises(InputError, match=r"at least 0\.00 GiB more \(.*optimizer 0\.00\).*lora_rank.*rlhf plan"):
        require(policy, given, method, rlhf.Optimize(), accelerator)
