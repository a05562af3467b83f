"""A trained model used: a message in, an answer out."""

from __future__ import annotations

from typing import Any

import torch

from rlhf.core.random import uniforms
from rlhf.lm.data import load_data, prompt_rows
from rlhf.lm.engine import Sampling
from rlhf.lm.generate import Decoder
from rlhf.lm.policy import CausalLM
from rlhf.lm.prompts import require_tokenizer
from rlhf.lm.texts import response_texts
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
    require_tokenizer(policy)
    tokenizer = policy.tokenizer
    prompt: Any = message
    if isinstance(message, str) and tokenizer.chat_template:
        prompt = [{"role": "user", "content": message}]
    rows = prompt_rows(
        load_data([{"prompt": prompt}]), tokenizer, max_new_tokens=max_new_tokens, context=policy.context, today=True
    )
    draws = None if seed is None else uniforms(seed, "answer", 0, torch.arange(1), max_new_tokens)
    sampling = Sampling(max_new_tokens=max_new_tokens, stop_tokens=policy.stop_tokens)
    given = Decoder(tokenizer).generate(policy, [rows[0].tokens], sampling=sampling, uniforms=draws)
    tokens = given.tokens[0, : int(given.lengths[0])].tolist()
    return response_texts(tokenizer, [tokens], [prompt])[0]
