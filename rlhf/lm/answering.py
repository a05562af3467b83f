"""How prompts are answered, and all that is known of an answer before it is paid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from rlhf.lm.data import Prompt
from rlhf.lm.engine import Engine, Generation, Sampling, respond
from rlhf.lm.policy import CausalLM
from rlhf.lm.scoring import response_inputs
from rlhf.lm.texts import response_texts

COUNTS = ("turns", "tool_calls", "tool_errors")
"""What is counted of conversations."""


class Responses(NamedTuple):
    """Answers to N prompts.

    Args:
        generation: Of the sampled tokens alone, whatever stands between them.
        inputs: What the policy reads to score them.
        texts: What reward functions call responses.
        completions: The same as the data have prompts: strings, or lists of messages.
        columns: More that reward functions may ask for, by name.
        counts: Numbers of each answer whose means are logged, by the names in COUNTS; none of a single turn.
    """

    generation: Generation
    inputs: dict[str, Tensor]
    texts: list[str]
    completions: list[Any]
    columns: dict[str, list[Any]] = {}  # noqa: RUF012
    counts: dict[str, list[float]] = {}  # noqa: RUF012


class Answering(Protocol):
    """Answers prompts by the policy as it is at this call.

    Args:
        num_draws: Uniforms that an answer takes at most.
        exact: As of Engine.
        columns: What more reward functions may ask for.
    """

    num_draws: int
    exact: bool
    columns: tuple[str, ...]
    sampling: Sampling

    def __call__(
        self, policy: CausalLM, prompts: Sequence[Prompt], *, uniforms: Tensor | None, sample_ids: Tensor
    ) -> Responses:
        """One answer to each prompt; None: the likeliest tokens."""
        ...


class OneTurn:
    """An engine's response to each prompt."""

    columns: tuple[str, ...] = ()

    def __init__(self, engine: Engine, tokenizer: Any, sampling: Sampling) -> None:
        self.engine, self.tokenizer, self.sampling = engine, tokenizer, sampling
        self.num_draws, self.exact = sampling.max_new_tokens, engine.exact

    def __call__(
        self, policy: CausalLM, prompts: Sequence[Prompt], *, uniforms: Tensor | None, sample_ids: Tensor
    ) -> Responses:
        tokens = [prompt.tokens for prompt in prompts]
        given = respond(self.engine, policy, tokens, sampling=self.sampling, uniforms=uniforms, sample_ids=sample_ids)
        return of_one_turn(prompts, given, self.tokenizer)


def of_one_turn(prompts: Sequence[Prompt], generation: Generation, tokenizer: Any) -> Responses:
    """What an engine has generated, as responses."""
    texts = response_texts(tokenizer, sampled_ids(generation), [prompt.prompt for prompt in prompts])
    completions = [
        text if isinstance(prompt.prompt, str) else [{"role": "assistant", "content": text}]
        for text, prompt in zip(texts, prompts, strict=True)
    ]
    inputs = response_inputs([prompt.tokens for prompt in prompts], generation.tokens, generation.lengths)
    return Responses(generation, inputs, texts, completions)


def sampled_ids(generation: Generation) -> list[list[int]]:
    """The tokens of each response, without what fills the row."""
    lengths = generation.lengths.tolist()
    return [row[:length] for row, length in zip(generation.tokens.tolist(), lengths, strict=True)]
