"""What is made of sampled responses: texts, scores, records for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf.lm.data import Prompt
from rlhf.lm.engine import Generation
from rlhf.lm.rewards import Rewards, Samples, Scores


def score_responses(
    rewards: Rewards, prompts: Sequence[Prompt], generation: Generation, tokenizer: Any, sample_ids: list[int]
) -> tuple[list[str], Scores]:
    """The responses as text, and what the reward functions pay for them."""
    lengths = generation.lengths.tolist()
    ids = [row[:length] for row, length in zip(generation.tokens.tolist(), lengths, strict=True)]
    # An empty text stays a sample: a rank that dropped it would have fewer than the others wait for.
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    samples = Samples(
        prompts=[prompt.prompt for prompt in prompts],
        responses=texts,
        completions=[
            text if isinstance(prompt.prompt, str) else [{"role": "assistant", "content": text}]
            for text, prompt in zip(texts, prompts, strict=True)
        ],
        completion_ids=ids,
        finished=generation.finished.tolist(),
        columns={name: [prompt.columns[name] for prompt in prompts] for name in prompts[0].columns},
        sample_ids=sample_ids,
    )
    # Models inside reward functions keep their own precision.
    with torch.autocast(generation.tokens.device.type, enabled=False):
        return texts, rewards(samples)


def response_records(
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    generation: Generation,
    scores: Scores,
    kl: Tensor | None,
) -> list[dict[str, Any]]:
    """One record a response for people to read.

    Args:
        kl: `(B,)` log-probability of each response over the reference's, nats.
    """
    valid, totals = scores.valid.tolist(), scores.scores.tolist()
    finished, lengths = generation.finished.tolist(), generation.lengths.tolist()
    charges = [None] * len(texts) if kl is None else kl.tolist()
    return [
        {
            "row": prompt.row,
            "prompt": prompt.text,
            "response": text,
            "score": totals[i] if valid[i] else None,
            "parts": {name: part[i] for name, part in scores.parts.items()},
            "finished": finished[i],
            "length": lengths[i],
            "kl": charges[i] if valid[i] else None,
        }
        for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
    ]
