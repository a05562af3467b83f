"""A random GPT-2 over the word tokenizer's vocabulary, and what it takes to collect with it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf.algorithms.base import Method
from rlhf.lm.collect import CollectResponses, PromptCollector
from rlhf.lm.data import Prompt, load_data, prompt_rows
from rlhf.lm.engine import Engine, Sampling
from rlhf.lm.policy import CausalLM
from rlhf.lm.prompts import Prompts
from rlhf.lm.rewards import Rewards
from rlhf.optimize import Optimize
from rlhf.runs.run import Phase, Unsaved
from rlhf.training import Duration, train_phase
from tests.lm.words import EOS, WORDS, D, word_tokenizer

CPU = Accelerator(cpu=True)
# Prompts of several lengths; one holds the end-of-sequence token.
ROWS = [{"prompt": text, "bonus": number} for number, text in enumerate(["a", "a b", "c <eos> d", "b", "e f g a"])]


def word_policy(*, temperature: float = 1.0, dtype: torch.dtype = torch.float64) -> CausalLM:
    config = GPT2Config(
        vocab_size=len(WORDS),
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=EOS,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = CausalLM(GPT2LMHeadModel(config).to(dtype), temperature=temperature, critic="shared")
        torch.nn.init.normal_(policy.value_head.weight)
    return policy


def word_prompts(**changes: Any) -> list[Prompt]:
    return prompt_rows(load_data(ROWS), word_tokenizer(), max_new_tokens=6, context=16, **changes)


def length_and_bonus(completion_ids: list[list[int]], bonus: list[int]) -> list[float]:
    return [len(ids) + 10.0 * number for ids, number in zip(completion_ids, bonus, strict=True)]


def all_but_one(completion_ids: list[list[int]], bonus: list[int]) -> list[float | None]:
    """The same, with no say on one prompt."""
    scores = length_and_bonus(completion_ids, bonus)
    return [None if number == 2 else score for score, number in zip(scores, bonus, strict=True)]


def none_for_one_prompt(bonus: list[int]) -> list[float | None]:
    """Of two ranks, the one with this prompt has nothing to learn from."""
    return [None if number == 2 else 0.0 for number in bonus]


def improve(
    policy: CausalLM,
    method: Method,
    settings: Optimize,
    *,
    duration: Duration,
    phase: Phase | Unsaved,
    engine: Engine | None = None,
    token_budget: int = 0,
    **collecting: Any,
) -> None:
    """Trains on the prompts of this world, one of which has no scores, and evaluates on the same ones."""
    policy.tokenizer, policy.end_tokens = word_tokenizer(), (EOS, D)
    task = Prompts(
        ROWS,
        [all_but_one, none_for_one_prompt],
        allow_none=True,
        max_new_tokens=6,
        held_out=ROWS,
        engine=engine,
        **collecting,
    )
    task.sampling = replace(task.sampling, token_budget=token_budget)
    train_phase(policy, task, method, settings, duration=duration, phase=phase, seed=0)


def word_collector(
    *functions: Any,
    allow_none: bool = False,
    stop_tokens: tuple[int, ...] = (EOS, D),
    accelerator: Any = CPU,
    use_reference: bool = False,
    seed: int = 0,
    prompts: list[Prompt] | None = None,
    engine: Engine | None = None,
    **config: Any,
) -> PromptCollector:
    return PromptCollector(
        prompts or word_prompts(),
        word_tokenizer(),
        Rewards(functions or [length_and_bonus], allow_none=allow_none),
        sampling=Sampling(max_new_tokens=6, stop_tokens=stop_tokens),
        config=CollectResponses(**{"prompts_per_rollout": 4, "responses_per_prompt": 3, **config}),
        seed=seed,
        accelerator=accelerator,
        micro_batch_cost=20,
        use_reference=use_reference,
        engine=engine,
    )


def half_precision() -> SimpleNamespace:
    """What accelerate is with mixed_precision bf16, which one process can be only once."""
    return SimpleNamespace(
        num_processes=1,
        process_index=0,
        device=torch.device("cpu"),
        mixed_precision="bf16",
        autocast=lambda: torch.autocast("cpu", torch.bfloat16),
        gather=lambda tensor: tensor,
    )
