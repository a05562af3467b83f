"""What is made of sampled responses: texts, scores, records for people."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlhf.lm.data import Prompt
from rlhf.lm.engine import Generation
from rlhf.lm.rewards import Rewards, Samples, Scores
from rlhf.lm.texts import decoded


def score_responses(
    rewards: Rewards,
    prompts: Sequence[Prompt],
    generation: Generation,
    tokenizer: Any,
    sample_ids: list[int],
    *,
    evaluating: bool,
) -> tuple[list[str], Scores]:
    """The responses as text, and what the reward functions pay for them."""
    lengths = generation.lengths.tolist()
    ids = [row[:length] for row, length in zip(generation.tokens.tolist(), lengths, strict=True)]
    # An empty text stays a sample: a rank that dropped it would have fewer than the others wait for.
    texts = response_texts(tokenizer, ids, [prompt.prompt for prompt in prompts])
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
    # Models inside reward functions keep their own precision. Where none is on, that of a reward that learns has to be
    # the outermost, with which autocast forgets its casts of weights.
    device = generation.tokens.device.type
    with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
        return texts, rewards(samples, evaluating=evaluating)


def try_rewards(rewards: Rewards, prompts: Sequence[Prompt], tokenizer: Any) -> None:
    """Has some prompts paid with their own words for responses, so that a mistake shows before anything is loaded."""
    lengths = torch.tensor([len(prompt.tokens) for prompt in prompts])
    tokens = pad_sequence([torch.tensor(prompt.tokens) for prompt in prompts], batch_first=True)
    finished, logprobs = torch.ones(len(prompts), dtype=torch.bool), torch.zeros(tokens.shape)
    parroted = Generation(tokens=tokens, lengths=lengths, finished=finished, logprobs=logprobs, values=None)
    score_responses(rewards, prompts, parroted, tokenizer, [prompt.row for prompt in prompts], evaluating=True)


def response_texts(tokenizer: Any, ids: Sequence[Sequence[int]], prompts: Sequence[Any]) -> list[str]:
    """What was sampled as text: a string goes on, so that string plus response is the whole; an answer to messages
    stands for itself."""
    alone, following = (decoded(tokenizer, ids, follows=follows, skip_special_tokens=True) for follows in (False, True))
    return [
        after if isinstance(prompt, str) else text
        for text, after, prompt in zip(alone, following, prompts, strict=True)
    ]


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
            **({"extra": {name: values[i] for name, values in scores.extra.items()}} if scores.extra else {}),
        }
        for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
    ]
