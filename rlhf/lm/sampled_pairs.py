"""Pairs of a policy's own answers, compared by a reward: where people have compared nothing yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlhf.core.random import uniforms
from rlhf.errors import InputError
from rlhf.lm.answering import OneTurn
from rlhf.lm.data import Prompt, prompt_rows
from rlhf.lm.engine import Engine, Sampling
from rlhf.lm.generate import Decoder
from rlhf.lm.policy import CausalLM
from rlhf.lm.prompts import Reward, Source, loaded, require_tokenizer
from rlhf.lm.responses import score_responses
from rlhf.lm.reward_model import named_reward
from rlhf.lm.rewards import Rewards
from rlhf.settings import Count, Seed, Total, checked


@checked
def sample_pairs(
    policy: CausalLM,
    data: Source,
    reward: Reward,
    *,
    max_new_tokens: Count,
    responses_per_prompt: Count = 4,
    seed: Seed = 0,
    token_budget: Total = 16384,
    engine: Engine | None = None,
) -> list[dict[str, Any]]:
    """Rows for `Preferences`: of so many sampled answers to each prompt, the best and the worst by the reward.

    Answers that were cut are left out, since a pair teaches where to end; so are prompts whose answers all score alike.
    Each row has prompt, chosen, rejected, score_chosen, score_rejected, and the other columns of the data.

    Args:
        data: As for Prompts.
        reward: As for Prompts: a function, or path/to/file.py:function.
        token_budget: Most tokens, prompts included, that are decoded side by side.
        engine: What answers; None is our decoder.

    Raises:
        InputError: A prompt or the reward cannot be used; or there is no pair at all.
    """
    require_tokenizer(policy)
    rewards = Rewards([named_reward(reward) if isinstance(reward, str) else reward], None)
    prompts = prompt_rows(loaded(data), policy.tokenizer, max_new_tokens=max_new_tokens, context=policy.context)
    sampling = Sampling(max_new_tokens=max_new_tokens, stop_tokens=policy.stop_tokens, token_budget=token_budget)
    asked = [prompt for prompt in prompts for _ in range(responses_per_prompt)]
    ids = torch.arange(len(asked))
    draws = uniforms(seed, "pairs", 0, ids, max_new_tokens)
    answering = OneTurn(engine or Decoder(policy.tokenizer), policy.tokenizer, sampling)
    responses = answering(policy, asked, uniforms=draws, sample_ids=ids)
    scores = score_responses(rewards, asked, responses, ids.tolist(), evaluating=False)
    texts = responses.texts
    usable = (responses.generation.finished.cpu() & scores.valid.cpu()).view(-1, responses_per_prompt)
    found = []
    for number, prompt in enumerate(prompts):
        first = number * responses_per_prompt
        rows = [first + i for i in range(responses_per_prompt) if usable[number, i] and texts[first + i].strip()]
        found += _pair(prompt, [texts[row] for row in rows], [float(scores.scores[row]) for row in rows])
    if not found:
        raise InputError(
            f"no prompt of {len(prompts)} has two answers that end by themselves and score differently, so there are "
            "no pairs; raise responses_per_prompt, max_new_tokens or the temperature, or look at the reward."
        )
    return found


def _pair(prompt: Prompt, texts: Sequence[str], scores: Sequence[float]) -> list[dict[str, Any]]:
    """The best answer and the worst; none where all score alike."""
    if not scores or max(scores) == min(scores):
        return []
    best, worst = scores.index(max(scores)), scores.index(min(scores))
    if texts[best] == texts[worst]:
        return []
    compared = {
        "prompt": prompt.prompt,
        "chosen": texts[best],
        "rejected": texts[worst],
        "score_chosen": scores[best],
        "score_rejected": scores[worst],
    }
    return [{**prompt.columns, **compared}]
