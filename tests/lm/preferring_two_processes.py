"""Run by test_preferences_distributed.py, alone and under torchrun: learns from preferences and conversations."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import rlhf
from rlhf.runs.launch import leave
from rlhf.runs.log import read_lines
from tests.lm.test_conversations import ROWS as TALKS
from tests.lm.test_conversations import Echo
from tests.lm.test_preferences import CHATS, LABELS, PAIRS
from tests.lm.words import EOS, TEMPLATE, word_tokenizer
from tests.lm.worlds import word_policy

TASKS: dict[str, tuple[rlhf.Method, Any]] = {
    "dpo": (rlhf.DPO(), lambda: rlhf.Preferences(PAIRS, rows_per_update=6, held_out=5)),
    "ipo": (rlhf.DPO(loss_type="ipo"), lambda: rlhf.Preferences(CHATS, rows_per_update=6, held_out=PAIRS[:3])),
    "kto": (rlhf.KTO(), lambda: rlhf.Preferences(LABELS, rows_per_update=6, held_out=5)),
    "reward model": (
        rlhf.BradleyTerry(centring_coef=0.1), lambda: rlhf.Preferences(PAIRS, rows_per_update=6, held_out=5),
    ),
    "talks": (
        rlhf.PPO(kl_coef=0.1),
        lambda: rlhf.Conversations(
            TALKS, Echo, max_new_tokens=3, max_turns=2, held_out=TALKS[:3], prompts_per_rollout=4,
            responses_per_prompt=2, draw_again=1,
        ),
    ),
    "talks in groups": (
        rlhf.GRPO(kl_coef=0.1, scale="batch"),
        lambda: rlhf.Conversations(
            TALKS, Echo, max_new_tokens=3, max_turns=2, held_out=TALKS[:1], prompts_per_rollout=4,
            responses_per_prompt=2, draw_again=2, reward=[logged, turn_rewards],
        ),
    ),
}  # fmt: skip


def logged(responses: list[str], log_metric: Any, log_extra: Any) -> list[float]:
    lengths = [float(len(text.split())) for text in responses]
    log_metric("words", sum(lengths) / len(lengths))
    log_extra("words", lengths)
    return lengths


def turn_rewards(turn_rewards: list[list[float]]) -> list[list[float]]:
    return turn_rewards


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    weights: dict[str, Any] = {}
    for name, (method, make) in TASKS.items():
        policy = word_policy()
        policy.tokenizer, policy.end_tokens = word_tokenizer(template=TEMPLATE), (EOS,)
        settings = rlhf.Optimize(learning_rate=0.1, adam_eps=1.0, epochs=1, micro_batch_cost=30)
        out = folder / name.replace(" ", "_")
        rlhf.train(policy, make(), method, settings, updates=2, evaluations=2, checkpoints=1, out=out)
        weights |= {f"{name}: {key}": x.detach().contiguous() for key, x in policy.named_parameters()}
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        found[name] = read_lines(out / method.name / "metrics.jsonl")
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        (folder / "result.json").write_text(json.dumps(found))
        save_file({name: tensor.clone() for name, tensor in weights.items()}, folder / "weights.safetensors")
    leave(0)


if __name__ == "__main__":
    main()
