"""Run by test_sharded.py, alone, under torchrun, and there with FSDP2: trains, and leaves a run behind.

sharded.py output one|plain|sharded kind updates
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from peft import LoraConfig, get_peft_model

import rlhf
from rlhf.algorithms.actor_critic import Critic
from rlhf.algorithms.impala import Impala
from rlhf.lm.four_bits import hold_in_four_bits
from rlhf.lm.policy import CausalLM
from rlhf.runs.launch import leave
from rlhf.sharded import is_sharded, local
from tests.lm.tiny import disturb
from tests.lm.words import EOS, D, word_tokenizer
from tests.lm.worlds import word_policy

# What the policy is, what learns, and whether in half precision.
KINDS: dict[str, tuple[dict[str, Any], rlhf.Method, str]] = {
    "all weights": ({}, rlhf.PPO(kl_coef=0.1), "no"),
    "separate critic": ({"critic": "separate"}, rlhf.PPO(kl_coef=0.1), "no"),
    "adapter": ({"lora": True}, rlhf.PPO(kl_coef=0.1), "no"),
    "groups": ({"critic": "none"}, rlhf.GRPO(kl_coef=0.1), "no"),
    "fitted critic": ({}, rlhf.A2C(kl_coef=0.1, critic=Critic(epochs=2)), "no"),
    "second phase": ({}, rlhf.PPO(kl_coef=0.1), "no"),
    "actors that lag": ({}, Impala(kl_coef=0.1), "no"),
    "half precision": ({"lora": True, "dtype": torch.float32}, rlhf.PPO(kl_coef=0.1), "bf16"),
    "4 bits": ({"lora": True, "dtype": torch.float32, "packed": True}, rlhf.PPO(kl_coef=0.1), "bf16"),
}


def policy_of(
    *, lora: bool = False, packed: bool = False, critic: str = "shared", dtype: torch.dtype = torch.float64
) -> CausalLM:
    model: Any = word_policy(dtype=dtype).model
    if packed:
        hold_in_four_bits(model)
    if lora:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = get_peft_model(model, LoraConfig(r=2, target_modules=["c_attn", "c_fc"]))
        disturb([weight for name, weight in model.named_parameters() if "lora_B" in name], 0.1)
    policy = CausalLM(model, temperature=1.0, critic=critic)
    policy.tokenizer, policy.end_tokens = word_tokenizer(), (EOS, D)
    return policy


def lengths(responses: list[str]) -> list[float]:
    return [float(len(response)) for response in responses]


def as_sharded() -> None:
    """What an FSDP2 config of Accelerate sets on GPUs, on a CPU."""
    state = PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    PartialState._shared_state["device"] = torch.device("cpu")
    assert state.num_processes > 1
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def train(kind: str, out: Path, updates: int) -> CausalLM:
    """As far as so many updates; goes on if some of them were done already."""
    options, method, precision = KINDS[kind]
    policy = policy_of(**options)
    rows = [{"prompt": text} for text in ("a b", "c", "b a d", "d", "a", "b c", "c c", "d a")]
    task = rlhf.Prompts(
        rows[:7], lengths, max_new_tokens=6, held_out=rows[7:], prompts_per_rollout=4, responses_per_prompt=2,
        lag=1 if method.corrects_lag else 0,
    )  # fmt: skip
    if kind == "second phase":
        texts = rlhf.Demonstrations([{"prompt": "a", "completion": " b c d"}] * 4, rows_per_update=4)
        settings = rlhf.Optimize(learning_rate=0.01, adam_eps=1e-4)
        rlhf.train(policy, texts, rlhf.BehaviourCloning(), settings, updates=2)
    steps = {"epochs": 1} if method.single_step else {"epochs": 2, "minibatches": 2}
    # A factor that was missing would show: the epsilon is of the gradient's size, and the norm is cut.
    settings = rlhf.Optimize(learning_rate=0.01, micro_batch_cost=20, adam_eps=1e-2, max_gradient_norm=0.1, **steps)
    rlhf.train(
        policy, task, method, settings, updates=updates, checkpoints=updates, evaluations=updates,
        out=out, resume=out.exists(), mixed_precision=precision,
    )  # fmt: skip
    return policy


def held(policy: CausalLM) -> dict[str, list[int]]:
    """Numbers that this process holds of the policy and of its reference, and those that there are."""
    found = {}
    for name, module in {"policy": policy, "reference": policy.shardable[-1][-1]}.items():
        sizes = [(local(parameter).numel(), parameter.numel()) for parameter in module.parameters()]
        found[name] = [sum(each) for each in zip(*sizes, strict=True)]
    return found


def main() -> None:
    out, how, kinds, updates = sys.argv[1:5]
    facts: dict[str, Any] = {}
    for kind in kinds.split(","):
        # Which has one precision, and was made first when the worlds were imported.
        AcceleratorState._reset_state()
        if how == "sharded":
            as_sharded()
        policy = train(kind, Path(out) / kind, int(updates))
        facts[kind] = {"sharded": is_sharded(policy), **held(policy)}
    state = PartialState()
    if state.is_main_process:
        (Path(out) / "facts.json").write_text(json.dumps({"processes": state.num_processes, **facts}))
    leave(0)


if __name__ == "__main__":
    main()
