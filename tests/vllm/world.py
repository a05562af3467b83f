"""A random Llama over the word tokenizer's vocabulary that vLLM can hold, and a short run of it; as a program, under
torchrun too, it trains with vLLM and leaves the run in the folder given."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from accelerate import Accelerator

import rlhf
from rlhf.lm.policy import CausalLM
from rlhf.runs.launch import leave
from tests.lm.tiny import disturb, save_tiny, tiny_policy
from tests.lm.words import WORDS, word_tokenizer


def vocabulary_policy(folder: Path, seed: int = 0) -> CausalLM:
    policy = tiny_policy(save_tiny("llama", folder, hidden_size=128, vocab_size=len(WORDS), eos_token_id=0))
    disturb([weight for name, weight in policy.named_parameters() if "value_head" not in name], 0.02 * (seed + 1))
    policy.tokenizer = word_tokenizer()
    return policy


ROWS = [{"prompt": text} for text in ("a", "a b", "c d", "b", "e f g a", "g", "d d", "f e")]


def evens(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [sum(token % 2 == 0 for token in ids) / 2.0 for ids in completion_ids]


def trained(
    policy: CausalLM,
    engine: Any,
    folder: Path | None,
    updates: int = 2,
    held_out: int = 2,
    learning_rate: float = 1e-3,
    **how: Any,
) -> Any:
    task = rlhf.Prompts(
        ROWS, evens, max_new_tokens=6, held_out=held_out, prompts_per_rollout=4, responses_per_prompt=2, engine=engine
    )
    method, settings = rlhf.PPO(kl_coef=0.05), rlhf.Optimize(learning_rate=learning_rate, epochs=2)
    return rlhf.train(policy, task, method, settings, updates=updates, out=folder, seed=3, **how)


def main() -> None:
    folder = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as model:
        policy = vocabulary_policy(Path(model))
        trained(policy, rlhf.VLLM(), folder / "run", held_out=1)
    (folder / "processes.json").write_text(json.dumps(Accelerator().num_processes))
    leave(0)


if __name__ == "__main__":
    main()
