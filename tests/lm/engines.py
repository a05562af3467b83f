"""Engines other than our decoder: what a user might write, and what goes wrong in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf.lm.engine import Generation, Sampling
from rlhf.lm.generate import Decoder, choose
from rlhf.lm.policy import CausalLM
from rlhf.lm.scoring import response_inputs


class Cacheless:
    """Reads the whole text anew for each token, by the forward that trains; knows no critic and no stop strings."""

    exact, rounding = False, 1e-3

    def __init__(self) -> None:
        self.answered = 0

    def generate(
        self, policy: CausalLM, prompts: Sequence[Sequence[int]], *, sampling: Sampling, uniforms: Tensor | None
    ) -> Generation:
        rows, most = len(prompts), sampling.max_new_tokens
        self.answered += rows
        tokens, logprobs = torch.zeros(rows, most, dtype=torch.int64), torch.zeros(rows, most, dtype=policy.dtype)
        for step in range(most):
            # The token at this step stands in for the one to be chosen: nothing before it depends on it.
            inputs = response_inputs(prompts, tokens[:, : step + 1], torch.full((rows,), step + 1))
            with torch.no_grad():
                logits = policy(inputs, distribution=True)[1].logits[:, step]
            draws = None if uniforms is None else uniforms[:, step]
            # The forward has divided by the temperature.
            tokens[:, step], logprobs[:, step] = choose(logits, draws, temperature=1.0, sampling=sampling)
        stops = (tokens.unsqueeze(2) == torch.tensor(sampling.stop_tokens)).any(dim=2)
        finished = stops.any(dim=1)
        lengths = torch.where(finished, stops.long().argmax(dim=1) + 1, most)
        longest = int(lengths.max())
        return Generation(tokens[:, :longest], lengths, finished, logprobs[:, :longest], None)


class Altered:
    """Our decoder, whose answer is changed before anyone sees it, as another engine might differ."""

    def __init__(self, change: Callable[[Generation], Any], *, exact: bool = False) -> None:
        self.change, self.exact, self.rounding = change, exact, 0.1

    def generate(
        self, policy: CausalLM, prompts: Sequence[Sequence[int]], *, sampling: Sampling, uniforms: Tensor | None
    ) -> Any:
        return self.change(Decoder().generate(policy, prompts, sampling=sampling, uniforms=uniforms))


def coarse(generation: Generation) -> Generation:
    """Log-probs and values as an engine in half precision would give them."""
    logprobs, values = generation.logprobs, generation.values
    return generation._replace(logprobs=logprobs.bfloat16().float(), values=values.bfloat16().float() + 1.0)
