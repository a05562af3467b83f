"""A trained model used: a message in, an answer out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlhf.core.random import uniforms
from rlhf.lm.data import load_data, prompt_rows
from rlhf.lm.engine import Sampling
from rlhf.lm.generate import Decoder
from rlhf.lm.policy import CausalLM
from rlhf.lm.prompts import require_tokenizer
from rlhf.lm.responses import response_texts
from rlhf.settings import Count, Seed, checked


@checked
def answer(
    policy: CausalLM, message: str | list[dict[str, Any]], *, max_new_tokens: Count = 256, seed: Seed | None = None
) -> str:
    """The policy's answer as text.

    Args:
        message: What a user says to a model with a chat template; to one without, a text to continue; or a whole
            conversation, a list of messages.
        seed: Of the draws, at the policy's temperature; None: the likeliest token each time.
    """
    return answers(policy, [message], max_new_tokens=max_new_tokens, seed=seed)[0]


def answers(
    policy: CausalLM,
    messages: Sequence[str | list[dict[str, Any]]],
    *,
    max_new_tokens: int,
    seed: int | None = None,
    token_budget: int = 0,
) -> list[str]:
    """The policy's answers to many, side by side.

    Args:
        token_budget: Most tokens, of messages and room for answers, that are decoded at a time; 0 is no limit.
    """
    require_tokenizer(policy)
    tokenizer = policy.tokenizer
    if not messages:
        return []
    prompts: list[Any] = [
        [{"role": "user", "content": message}] if isinstance(message, str) and tokenizer.chat_template else message
        for message in messages
    ]
    data = load_data([{"prompt": prompt} for prompt in prompts])
    rows = prompt_rows(data, tokenizer, max_new_tokens=max_new_tokens, context=policy.context, today=True)
    draws = None if seed is None else uniforms(seed, "answer", 0, torch.arange(len(rows)), max_new_tokens)
    sampling = Sampling(max_new_tokens=max_new_tokens, stop_tokens=policy.stop_tokens, token_budget=token_budget)
    given = Decoder(tokenizer).generate(policy, [row.tokens for row in rows], sampling=sampling, uniforms=draws)
    ids = [tokens[:length] for tokens, length in zip(given.tokens.tolist(), given.lengths.tolist(), strict=True)]
    return response_texts(tokenizer, ids, prompts)
