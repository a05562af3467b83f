"""Small language models in training, and whether anything but their critic has moved."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

import rlhf
from rlhf.algorithms.base import Method
from rlhf.lm.policy import CausalLM
from rlhf.optimize import Optimize
from rlhf.runs.run import Unsaved
from rlhf.training import Duration, make_accelerator, train_phase
from tests.lm.tiny import disturb
from tests.lm.words import EOS, D, word_tokenizer
from tests.lm.worlds import ROWS, word_policy


def policy_of(*, critic: str = "shared", adapter: str = "none") -> CausalLM:
    """In float32, whose rounding differs between a response's decoding and its scoring; its critic is not 0.

    Args:
        adapter: "none"; "fresh": one that adds nothing yet; "trained"; "whole head": one that trains the LM head too.
    """
    model = word_policy(dtype=torch.float32).model
    if adapter != "none":
        kept = ["lm_head"] if adapter == "whole head" else None
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["c_attn"], modules_to_save=kept))
    if adapter == "trained":
        disturb([weight for name, weight in model.named_parameters() if "lora_B" in name], 0.1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = CausalLM(model, temperature=1.0, critic=critic)
        torch.nn.init.normal_(policy.value_head.weight)
    policy.tokenizer, policy.end_tokens = word_tokenizer(), (EOS, D)
    return policy


def train(policy: CausalLM, method: Method, settings: Optimize, reward: Any, **changes: Any) -> list[dict[str, float]]:
    """The metrics of each update; three unless told otherwise."""
    updates, precision = changes.pop("updates", 3), changes.pop("mixed_precision", "no")
    task = rlhf.Prompts(
        ROWS, reward, max_new_tokens=6, held_out=ROWS[:1], prompts_per_rollout=4, responses_per_prompt=2, **changes
    )
    phase = Unsaved(method.name, make_accelerator(policy, mixed_precision=precision))
    duration = Duration(updates=updates, eval_every=0)
    train_phase(policy, task, method, settings, duration=duration, phase=phase, seed=0)
    return [row for row in phase.rows() if "scores_alike" in row]


def weights_of(policy: CausalLM) -> dict[str, Tensor]:
    """All but the critic's own."""
    own = {id(parameter) for parameter in policy.critic_parameters()}
    return {name: x.detach().clone() for name, x in policy.named_parameters() if id(x) not in own}


def unmoved(policy: CausalLM, before: dict[str, Tensor]) -> bool:
    now = weights_of(policy)
    # What is frozen may be held in half precision by now.
    return all(torch.equal(now[name], x.to(now[name].dtype)) for name, x in before.items())
