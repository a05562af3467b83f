"""What the parts of a run on a language model take, measured on a model of random weights for some seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import psutil
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import PretrainedConfig

from rlhf.algorithms.base import Method
from rlhf.budget import micro_batches
from rlhf.lm.collect import require_shared
from rlhf.lm.engine import Sampling
from rlhf.lm.generate import Decoder, require_context
from rlhf.lm.load import ModelConfig, random_policy
from rlhf.lm.memory import size, size_of_reference
from rlhf.lm.policy import CausalLM
from rlhf.lm.scoring import response_inputs
from rlhf.lm.settings import CollectResponses
from rlhf.optimize import Optimize
from rlhf.runs.memory import peak_memory
from rlhf.settings import Count, Settings

# Tokens of the larger of the two passes that are timed: as many as make a matrix product efficient.
_TIMED = {"cpu": 1024, "cuda": 8192}
# And of the two gradients whose memory is looked at: of few tokens the logits are all kept, of more they are not.
_HELD = 4096
# Tokens of the longer of the two responses that are timed; the other has one.
_STEPS = 9

Pass = Callable[[dict[str, Tensor]], None]


@dataclass(frozen=True, kw_only=True)
class Planned(Settings):
    """A run that has not begun."""

    model: ModelConfig
    method: Method
    collect: CollectResponses
    optimize: Optimize
    mixed_precision: Literal["no", "bf16"]
    prompt_tokens: Count
    """Of a prompt, with what its chat template adds."""
    max_new_tokens: Count
    response_tokens: Count
    """Of a response, on average: time follows it, memory follows the longest."""
    processes: Count

    def __post_init__(self) -> None:
        require_shared(self.collect, self.processes)


class _Rows(NamedTuple):
    """Responses of a rollout of this process, in the order in which they are collected and of its first minibatch."""

    collected: dict[str, Tensor]
    minibatch: dict[str, Tensor]
    blocks: Tensor | None
    """Of the minibatch: which rows stay together."""


def _rows(planned: Planned, response_tokens: int, vocabulary: int, device: torch.device) -> _Rows:
    generator = torch.Generator().manual_seed(0)
    prompts, group = planned.collect.prompts_per_rollout // planned.processes, planned.collect.responses_per_prompt
    texts = torch.randint(vocabulary, (prompts, planned.prompt_tokens), generator=generator)
    texts = texts.repeat_interleave(group, dim=0)
    responses = torch.randint(vocabulary, (prompts * group, response_tokens), generator=generator)
    lengths = torch.full((len(texts),), response_tokens)
    collected = response_inputs(texts.tolist(), responses.to(device), lengths.to(device))
    numbers = torch.arange(len(texts))
    if planned.method.rows == "groups":
        kept = numbers[: -(-prompts // planned.optimize.minibatches) * group]
        blocks = (kept // group).to(device)
    else:
        shuffled = torch.randperm(len(texts), generator=generator)
        kept, blocks = shuffled[: -(-len(texts) // planned.optimize.minibatches)], None
    minibatch = {name: tensor[kept.to(device)] for name, tensor in collected.items()}
    return _Rows(collected, minibatch, blocks)


def _cells(policy: CausalLM, inputs: dict[str, Tensor], blocks: Tensor | None, budget: int) -> list[int]:
    """Tokens, padding included, of each pass over these rows."""
    passed = policy.passed(inputs)
    parts = micro_batches(inputs["lengths"], budget, blocks, passed=passed)
    return [passed(int(part[0]), int(part[-1]) + 1) for part in parts]


def measured(planned: Planned, config: PretrainedConfig, device: torch.device) -> dict[str, float]:
    """Of a model of this config, which may have fewer layers: bytes, seconds, and what each pass takes of both."""
    require_context(config, planned.prompt_tokens, planned.max_new_tokens)
    policy = random_policy(planned.model, config).to(device)
    policy.compute_in(planned.mixed_precision)
    if planned.method.needs_reference:
        policy.make_reference()
    vocabulary = config.get_text_config().vocab_size
    rows, longest = (
        _rows(planned, tokens, vocabulary, device) for tokens in (planned.response_tokens, planned.max_new_tokens)
    )
    budget = planned.optimize.micro_batch_cost
    learned, scored = (
        _cells(policy, *what, budget) for what in ((rows.minibatch, rows.blocks), (rows.collected, None))
    )
    found: dict[str, float] = {
        "weights": size([*policy.model.parameters(), *policy.model.buffers()]),
        "critic": size(policy.critic_parameters()),
        "reference": size_of_reference(policy) if planned.method.needs_reference else 0.0,
        "trained": size([each for each in policy.parameters() if each.requires_grad]),
        "cache of a token": _cache_of_a_token(policy),
        "learned": sum(learned),
        "learned passes": len(learned),
        "scored": sum(scored),
        "scored passes": len(scored),
        "largest": max(_cells(policy, longest.minibatch, longest.blocks, budget)),
    }
    half = torch.autocast(device.type, torch.bfloat16, enabled=planned.mixed_precision == "bf16")
    passes = _passes(planned, policy, half)
    # First of all: of a process only the most that it ever held is known.
    largest = _samples(policy, rows.minibatch, min(_HELD, int(found["largest"])))
    found |= _line("learn bytes", _held(passes["learn"], largest, found["trained"], device))
    timed = _samples(policy, rows.minibatch, _TIMED[device.type])
    for name, run in passes.items():
        found |= _line(f"{name} seconds", [(cells, _seconds(partial(run, inputs))) for cells, inputs in timed])
    with half:
        found |= _of_acting(planned, policy, rows.collected)
    return found


def _passes(planned: Planned, policy: CausalLM, half: torch.autocast) -> dict[str, Pass]:
    """What scores rows by the policy and by its reference, as far as a run does that, and what takes a gradient."""

    def score(inputs: dict[str, Tensor]) -> None:
        with torch.no_grad(), half:
            # The decoder's probabilities are those of training, unless these are computed in half precision.
            if planned.mixed_precision != "no":
                policy(inputs)
            elif policy.critic_trunk is not None:
                policy.critic_values(inputs)

    def refer(inputs: dict[str, Tensor]) -> None:
        if planned.method.needs_reference:
            with half:
                policy.reference_logprobs(inputs)

    def learn(inputs: dict[str, Tensor]) -> None:
        with half:
            output = policy(inputs)
        (output.logprobs + output.values + output.entropy).sum().backward()

    return {"score": score, "refer": refer, "learn": learn}


def _samples(policy: CausalLM, inputs: dict[str, Tensor], tokens: int) -> list[tuple[int, dict[str, Tensor]]]:
    """About so many tokens of the rows, or all of them, and before that half as many rows; each with the tokens of a
    pass over it, padding included."""
    passed, size = policy.passed(inputs), len(inputs["tokens"])
    most = max((number for number in range(1, size + 1) if passed(0, number) <= tokens), default=1)
    numbers = dict.fromkeys([max(most // 2, 1), most])
    return [(passed(0, number), {name: part[:number] for name, part in inputs.items()}) for number in numbers]


def _held(
    learn: Pass, samples: list[tuple[int, dict[str, Tensor]]], gradients: float, device: torch.device
) -> list[tuple[int, float]]:
    """Most bytes of each gradient beyond what there was before and the gradients themselves, in rising order. Of the
    CPU what the process holds of the system, which is more than it uses."""
    if device.type == "cuda":
        # The first call makes the gradients.
        learn(samples[0][1])
        return [(cells, _peak(device, partial(learn, inputs))) for cells, inputs in samples]
    before, found = psutil.Process().memory_info().rss, []
    for cells, inputs in samples:
        learn(inputs)
        found.append((cells, float(peak_memory() - before - gradients)))
    return found


def _line(name: str, points: list[tuple[int, float]]) -> dict[str, float]:
    """What a pass takes at no token, and of each: through two points, or through one and nothing at no token."""
    (cells, value), (more_cells, more) = points[0], points[-1]
    slope = (more - value) / (more_cells - cells) if more_cells > cells else value / cells
    return {f"{name} of a pass": max(value - slope * cells, 0.0), f"{name} of a token": slope}


def _of_acting(planned: Planned, policy: CausalLM, inputs: dict[str, Tensor]) -> dict[str, float]:
    """Bytes and seconds of reading prompts and of a step, half way through the responses."""
    steps = min(_STEPS, planned.max_new_tokens)
    length = planned.prompt_tokens + min(planned.response_tokens // 2, planned.max_new_tokens - steps)
    # One of each prompt is read, whose responses share it.
    group = planned.collect.responses_per_prompt
    rows = inputs["tokens"][:, :length].tolist()
    prompts = [rows[number - number % group] for number in range(len(rows))]
    draws = torch.rand(len(rows), _STEPS, generator=torch.Generator().manual_seed(0)).to(policy.device)

    def generate(prompts: list[list[int]], steps: int) -> None:
        Decoder().generate(policy, prompts, sampling=Sampling(max_new_tokens=steps), uniforms=draws[:, :steps])

    first, all_steps = (_seconds(partial(generate, prompts, number)) for number in (1, steps))
    share = planned.prompt_tokens / length
    return {
        "reading bytes": share * _peak(policy.device, partial(generate, prompts, 1)),
        "step bytes": _peak(policy.device, partial(generate, [row[:1] for row in prompts], 1)),
        "reading seconds": share * first,
        "step seconds": (all_steps - first) / max(steps - 1, 1),
    }


@torch.no_grad()
def _cache_of_a_token(policy: CausalLM) -> float:
    tokens = torch.ones(1, 8, dtype=torch.int64, device=policy.device)
    cache = policy.new_cache()
    policy.eval()
    policy.step(tokens, None, torch.arange(8, device=policy.device).unsqueeze(0), cache)
    policy.train()
    held = [part for layer in cache.layers for part in vars(layer).values() if isinstance(part, Tensor)]
    return size(held) / 8


def _seconds(run: Callable[[], object]) -> float:
    """The faster of two calls."""
    times = []
    for _ in range(2):
        _wait()
        start = time.perf_counter()
        run()
        _wait()
        times.append(time.perf_counter() - start)
    return min(times)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak(device: torch.device, run: Callable[[], object]) -> float:
    """Most bytes that were held at once beyond those held before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return float(torch.cuda.max_memory_allocated(device) - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    results: Any = profiled.profiler and profiled.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    held, most = 0, 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return float(most)
