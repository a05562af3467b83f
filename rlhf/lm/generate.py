"""The default engine: a decode loop of our own with a cache, every draw a given uniform."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import DynamicCache

from rlhf.errors import InputError
from rlhf.lm.engine import Generation, Sampling
from rlhf.lm.model import forget_casts
from rlhf.lm.policy import CausalLM, Step
from rlhf.lm.texts import decoded


def require_context(config: Any, longest_prompt: int, max_new_tokens: int) -> None:
    """Refuses prompts and responses that do not fit the positions of a model with this transformers config."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is not None and longest_prompt + max_new_tokens > context:
        raise InputError(
            f"The longest prompt has {longest_prompt} tokens and max_new_tokens is {max_new_tokens}: together "
            f"{longest_prompt + max_new_tokens}, but the model's context is {context}. Shorten one of them."
        )


class _Room(NamedTuple):
    """A Generation that is being filled, for responses as long as they may get."""

    tokens: Tensor
    lengths: Tensor
    finished: Tensor
    logprobs: Tensor
    values: Tensor


class Decoder:
    """The default engine: a decode loop of our own, every draw a given uniform.

    Args:
        tokenizer: Reads stop strings; needed with them only.
    """

    exact = True
    rounding = 1e-3

    def __init__(self, tokenizer: Any = None) -> None:
        self.tokenizer = tokenizer

    def generate(
        self, policy: CausalLM, prompts: Sequence[Sequence[int]], *, sampling: Sampling, uniforms: Tensor | None
    ) -> Generation:
        """One response to each prompt, as `Engine.generate` says; each token by inverse CDF of its uniform."""
        shape = (len(prompts), sampling.max_new_tokens)
        if not all(len(prompt) > 0 for prompt in prompts):
            raise InputError("A prompt has no tokens; give it at least one (such as the model's BOS token).")
        if uniforms is not None and uniforms.shape != shape:
            raise InputError(f"uniforms is {tuple(uniforms.shape)}; it must be {shape}: one draw a prompt and token.")
        if sampling.stop_strings and self.tokenizer is None:
            raise InputError("stop_strings need a tokenizer; pass the model's.")
        sizes = [len(prompt) for prompt in prompts]
        require_context(policy.config, max(sizes), sampling.max_new_tokens)
        whole = _empty(policy, *shape)
        forget_casts()
        with policy.sampling_mode():
            for rows in _chunks(sizes, sampling):
                index = torch.tensor(rows, device=whole.tokens.device)
                draws = None if uniforms is None else uniforms.to(index.device)[index]
                part = _decode(policy, [prompts[row] for row in rows], draws, sampling, self.tokenizer)
                for all_rows, some in zip(whole, part, strict=True):
                    all_rows[index] = some
        longest = int(whole.lengths.max())
        return Generation(
            whole.tokens[:, :longest],
            whole.lengths,
            whole.finished,
            whole.logprobs[:, :longest],
            # A separate critic is none of its business: it reads whole responses, under a budget of its own.
            whole.values[:, :longest] if policy.critic_trunk is None else None,
        )


def _decode(
    policy: CausalLM, prompts: Sequence[Sequence[int]], uniforms: Tensor | None, sampling: Sampling, tokenizer: Any
) -> _Room:
    out = _empty(policy, len(prompts), sampling.max_new_tokens)
    state, mask, positions, cache = _read(policy, prompts)
    stops = torch.tensor(sampling.stop_tokens, dtype=torch.int64, device=positions.device)
    rows = torch.arange(len(prompts), device=positions.device)
    alive = torch.ones_like(rows, dtype=torch.bool)
    for step in range(sampling.max_new_tokens):
        draws = None if uniforms is None else uniforms[rows, step]
        chosen, logprobs = choose(state.logits, draws, temperature=policy.temperature, sampling=sampling)
        out.tokens[rows, step] = chosen * alive
        out.logprobs[rows, step] = logprobs * alive
        out.values[rows, step] = state.values * alive
        out.lengths[rows] += alive
        ended = (chosen.unsqueeze(1) == stops).any(dim=1)
        if sampling.stop_strings:
            ended |= _holds_stop(out.tokens[rows, : step + 1], alive, sampling.stop_strings, tokenizer)
        out.finished[rows] |= ended  # rows that are no longer alive were finished before
        alive = alive & ~ended
        living = int(alive.sum())
        if living == 0 or step + 1 == sampling.max_new_tokens:
            break
        tokens, positions = chosen.unsqueeze(1), positions[:, -1:] + 1
        mask = None if mask is None else torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        # Dropping rows copies the cache, as each step does too: not for every row that ends. (batch_select_indices
        # would say it better, but layers without attention have only this.)
        if len(rows) - living > len(rows) // 8:
            kept = alive.nonzero().squeeze(1)
            cache.reorder_cache(cast(torch.LongTensor, kept))
            rows, alive, tokens, positions = rows[kept], alive[kept], tokens[kept], positions[kept]
            mask = None if mask is None else mask[kept]
        state = policy.step(tokens, mask, positions, cache)
    return out


def _read(policy: CausalLM, prompts: Sequence[Sequence[int]]) -> tuple[Step, Tensor | None, Tensor, DynamicCache]:
    """What the policy says after each prompt, its mask, positions and cache; a prompt that comes several times is read
    once."""
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    tokens, mask, positions = _left_padded(list(numbers), policy.device)
    cache = policy.new_cache()
    state = policy.step(tokens, mask, positions, cache)
    if len(numbers) < len(prompts):
        rows = torch.tensor([numbers[tuple(prompt)] for prompt in prompts], device=policy.device)
        cache.reorder_cache(cast(torch.LongTensor, rows))
        state, positions = Step(*(part[rows] for part in state)), positions[rows]
        mask = None if mask is None else mask[rows]
    return state, mask, positions, cache


def choose(logits: Tensor, uniforms: Tensor | None, *, temperature: float, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """A token from each row of `logits` (B, V), and its log-probability; the likeliest if `uniforms` (B,) is None."""
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    if sampling.truncates:
        scaled = _truncated(scaled, sampling)
    logprobs = scaled.log_softmax(dim=-1)
    tokens = logits.argmax(dim=-1) if uniforms is None else inverse_cdf(logprobs.exp(), uniforms)
    return tokens, logprobs.gather(1, tokens.unsqueeze(1)).squeeze(1)


def inverse_cdf(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """`(B,)` draws from the rows of `probabilities` (B, V): the first token whose cumulated probability exceeds
    uniform * total, so never one of probability 0."""
    cdf = probabilities.cumsum(dim=-1, dtype=torch.float64)
    total = cdf[:, -1:]
    # A uniform next to 1 may round up to the total, which nothing exceeds.
    target = torch.minimum(uniforms.unsqueeze(1) * total, torch.nextafter(total, torch.zeros_like(total)))
    # Nothing exceeds NaN either: the last token, whose log-probability is NaN, carries it to where it is reported.
    return torch.searchsorted(cdf, target, right=True).squeeze(1).clamp(max=cdf.shape[1] - 1)


def _truncated(logits: Tensor, sampling: Sampling) -> Tensor:
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    out = probabilities.cumsum(dim=-1) - probabilities >= sampling.top_p
    if sampling.top_k:
        out[:, sampling.top_k :] = True
    return logits.masked_fill(torch.zeros_like(out).scatter_(1, order, out), -torch.inf)


def _holds_stop(tokens: Tensor, alive: Tensor, stop_strings: Sequence[str], tokenizer: Any) -> Tensor:
    """Whether the latest token of each living row has completed a stop string."""
    # The end of the response is enough. A token is at least one byte of text, unless it is none at all, as those are by
    # which a vocabulary is padded; and the first may be the rest of a character, which is shown as up to nine bytes.
    longest = max(len(text.encode()) for text in stop_strings)
    window = longest + 10
    while window < tokens.shape[1] and not all(
        len(text.encode()) >= longest + 8
        for text in decoded(tokenizer, tokens[alive, -window:-1].tolist(), follows=True)
    ):
        window *= 2
    texts = decoded(tokenizer, tokens[alive, -window:].tolist(), follows=True)
    holds = torch.zeros_like(alive)
    holds[alive] = torch.tensor([any(stop in text for stop in stop_strings) for text in texts], device=alive.device)
    return holds


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None, Tensor]:
    """Tokens, attention mask (None if nothing is padded) and position ids, each `(B, P)`."""
    width = max(len(prompt) for prompt in prompts)
    tokens = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    padding = torch.tensor([width - len(prompt) for prompt in prompts], device=device).unsqueeze(1)
    positions = torch.arange(width, device=device) - padding
    mask = positions >= 0 if min(len(prompt) for prompt in prompts) < width else None
    return tokens, mask, positions.clamp(min=0)


def _chunks(sizes: Sequence[int], sampling: Sampling) -> list[list[int]]:
    """Prompts decoded together: all, or as many of like length as the token budget allows, at least one."""
    if sampling.token_budget == 0:
        return [list(range(len(sizes)))]
    chunks: list[list[int]] = []
    for row in sorted(range(len(sizes)), key=lambda row: -sizes[row]):
        # The first of a chunk is its longest.
        if chunks and (len(chunks[-1]) + 1) * (sizes[chunks[-1][0]] + sampling.max_new_tokens) <= sampling.token_budget:
            chunks[-1].append(row)
        else:
            chunks.append([row])
    return chunks


def _empty(policy: CausalLM, rows: int, steps: int) -> _Room:
    device, dtype = policy.device, torch.promote_types(policy.dtype, torch.float32)
    return _Room(
        tokens=torch.zeros(rows, steps, dtype=torch.int64, device=device),
        lengths=torch.zeros(rows, dtype=torch.int64, device=device),
        finished=torch.zeros(rows, dtype=torch.bool, device=device),
        logprobs=torch.zeros(rows, steps, dtype=dtype, device=device),
        values=torch.zeros(rows, steps, dtype=dtype, device=device),
    )
