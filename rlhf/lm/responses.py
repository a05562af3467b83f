"""What is made of sampled responses: texts, scores, records for people."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlhf.lm.answering import Responses, of_one_turn, sampled_ids
from rlhf.lm.data import Prompt
from rlhf.lm.engine import Generation
from rlhf.lm.rewards import Rewards, Samples, Scores


def score_responses(
    rewards: Rewards, prompts: Sequence[Prompt], responses: Responses, sample_ids: list[int], *, evaluating: bool
) -> Scores:
    """What the reward functions pay for responses."""
    generation = responses.generation
    samples = Samples(
        prompts=[prompt.prompt for prompt in prompts],
        # An empty text stays a sample: a rank that dropped it would have fewer than the others wait for.
        responses=responses.texts,
        completions=responses.completions,
        completion_ids=sampled_ids(generation),
        finished=generation.finished.tolist(),
        columns={
            **{name: [prompt.columns[name] for prompt in prompts] for name in prompts[0].columns},
            **responses.columns,
        },
        sample_ids=sample_ids,
    )
    # Models inside reward functions keep their own precision. Where none is on, that of a reward that learns has to be
    # the outermost, with which autocast forgets its casts of weights.
    device = generation.tokens.device.type
    with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
        return rewards(samples, evaluating=evaluating)


def try_rewards(rewards: Rewards, prompts: Sequence[Prompt], tokenizer: Any) -> None:
    """Has some prompts paid with their own words for responses, so that a mistake shows before anything is loaded."""
    lengths = torch.tensor([len(prompt.tokens) for prompt in prompts])
    tokens = pad_sequence([torch.tensor(prompt.tokens) for prompt in prompts], batch_first=True)
    finished, logprobs = torch.ones(len(prompts), dtype=torch.bool), torch.zeros(tokens.shape)
    parroted = Generation(tokens=tokens, lengths=lengths, finished=finished, logprobs=logprobs, values=None)
    responses = of_one_turn(prompts, parroted, tokenizer)
    score_responses(rewards, prompts, responses, [prompt.row for prompt in prompts], evaluating=True)


def response_records(
    prompts: Sequence[Prompt], responses: Responses, scores: Scores, kl: Tensor | None
) -> list[dict[str, Any]]:
    """One record a response for people to read.

    Args:
        kl: `(B,)` log-probability of each response over the reference's, nats.
    """
    valid, totals = scores.valid.tolist(), scores.scores.tolist()
    generation, texts = responses.generation, responses.texts
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
            **{name: values[i] for name, values in responses.counts.items()},
            **({"messages": responses.completions[i]} if responses.counts else {}),
            **({"extra": {name: values[i] for name, values in scores.extra.items()}} if scores.extra else {}),
        }
        for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
    ]
