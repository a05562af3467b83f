"""Measures a language model on held-out prompts: the same prompts and draws every time, sampled and greedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from rlhf import acting
from rlhf.core.random import uniforms
from rlhf.errors import InputError
from rlhf.lm.answering import COUNTS, Answering, OneTurn, Responses
from rlhf.lm.data import Prompt
from rlhf.lm.engine import Engine, Sampling
from rlhf.lm.generate import Decoder
from rlhf.lm.policy import CausalLM
from rlhf.lm.responses import response_records, score_responses
from rlhf.lm.reward_logs import Weighed, mean_metrics
from rlhf.lm.rewards import Rewards
from rlhf.runs.evaluate import Evaluation


class ResponseEvaluator:
    """Answers every prompt twice, once sampled and once greedily, and has both answers scored.

    Args:
        sampling: May cut the distribution (top-k, top-p), unlike in training.
        micro_batch_cost: Most tokens scored at once in a forward pass, or decoded side by side.
        use_reference: Also measure the KL of the sampled responses from the policy's reference.
        engine: What answers; None is our `Decoder`.
        answering: How, with what engine and sampling; None: in one turn.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        tokenizer: Any,
        rewards: Rewards,
        *,
        sampling: Sampling,
        seed: int,
        accelerator: Accelerator,
        micro_batch_cost: int,
        use_reference: bool,
        engine: Engine | None = None,
        answering: Answering | None = None,
    ) -> None:
        if not prompts:
            raise InputError("there are no prompts to evaluate on; hold some out.")
        self.prompts, self.tokenizer, self.rewards = prompts, tokenizer, rewards
        # All at once, a cache of many prompts takes the memory of many micro-batches.
        self.sampling = replace(sampling, token_budget=sampling.token_budget or micro_batch_cost)
        self.seed, self.accelerator = seed, accelerator
        self.micro_batch_cost, self.use_reference = micro_batch_cost, use_reference
        self.answering = answering or OneTurn(engine or Decoder(tokenizer), tokenizer, self.sampling)
        rewards.require_columns([*prompts[0].columns, *self.answering.columns])
        # What reward functions logged of the sampled responses of the last evaluation.
        self._logged: dict[str, list[Weighed]] = {}

    @torch.no_grad()
    def __call__(self, policy: CausalLM) -> Evaluation:
        """Metrics and records over all ranks, the same on each of them."""
        numbers = range(self.accelerator.process_index, len(self.prompts), self.accelerator.num_processes)
        # A rank without prompts still takes part in the one collective; and answers, for engines that start together.
        local = self._records(policy, list(numbers)) if len(numbers) else []
        if not len(numbers):
            self._answers(policy, [0])
        records = gather_object(local) if self.accelerator.num_processes > 1 else local
        records = sorted(records, key=lambda record: record["number"])
        samples = [{name: value for name, value in record.items() if name != "number"} for record in records]
        metrics = _metrics(samples)
        if self.rewards.logs_metrics:
            metrics |= mean_metrics(self._logged, self.accelerator, "eval_reward_metric/")
        return Evaluation(metrics, samples)

    def _answers(self, policy: CausalLM, numbers: list[int]) -> tuple[Responses, Responses]:
        """To these prompts, sampled and greedy."""
        prompts, ids = [self.prompts[number] for number in numbers], torch.tensor(numbers)
        draws = uniforms(self.seed, "evaluation", 0, ids, self.answering.num_draws)
        with self.accelerator.autocast():
            sampled, greedy = (self.answering(policy, prompts, uniforms=each, sample_ids=ids) for each in (draws, None))
        return sampled, greedy

    def _records(self, policy: CausalLM, numbers: list[int]) -> list[dict[str, Any]]:
        prompts = [self.prompts[number] for number in numbers]
        sampled, greedy = self._answers(policy, numbers)
        with self.accelerator.autocast():
            kl = self._kl(policy, sampled) if self.use_reference else None
        scores, greedy_scores = (
            score_responses(self.rewards, prompts, each, numbers, evaluating=True) for each in (sampled, greedy)
        )
        self._logged = scores.metrics
        records = response_records(prompts, sampled, scores, kl)
        greedy_records = response_records(prompts, greedy, greedy_scores, None)
        return [
            {
                "number": number,
                **record,
                "greedy_response": greedy_record["response"],
                "greedy_score": greedy_record["score"],
                "greedy_parts": greedy_record["parts"],
                **{f"greedy_{name}": greedy_record[name] for name in greedy.counts},
            }
            for number, record, greedy_record in zip(numbers, records, greedy_records, strict=True)
        ]

    def _kl(self, policy: CausalLM, responses: Responses) -> Tensor:
        """`(B,)` log-probability of each response over the reference's: as it was sampled by an exact engine (so cut to
        top-k and top-p), as the policy scores it where the engine is not."""
        generation, inputs = responses.generation, responses.inputs
        where: dict[str, Any] = {"accelerator": self.accelerator, "max_tokens": self.micro_batch_cost}
        logprobs = generation.logprobs if self.answering.exact else acting.scored(policy, inputs, **where)[0]
        own = None if self.sampling.truncates else logprobs
        return (logprobs - acting.reference_logprobs(policy, inputs, own, **where)).sum(dim=1)


def _metrics(records: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the sampled responses that have a score, and over the greedy ones that have one."""
    sampled = [record for record in records if record["score"] is not None]
    greedy = [record for record in records if record["greedy_score"] is not None]
    if not sampled or not greedy:
        raise InputError("the reward functions returned None for every evaluated sample; there is nothing to measure.")
    metrics = {
        "eval_score_mean": _mean([record["score"] for record in sampled]),
        "eval_greedy_score_mean": _mean([record["greedy_score"] for record in greedy]),
        "eval_length_mean": _mean([record["length"] for record in sampled]),
        "eval_finished_fraction": _mean([record["finished"] for record in sampled]),
    }
    for name in COUNTS:
        if name in sampled[0]:
            metrics[f"eval_{name}_mean"] = _mean([record[name] for record in sampled])
    if sampled[0]["kl"] is not None:
        metrics["eval_kl_ref_per_episode"] = _mean([record["kl"] for record in sampled])
    for name in sampled[0]["parts"]:
        for prefix, key in (("eval_", "parts"), ("eval_greedy_", "greedy_parts")):
            # Over those on which this function had a say; without any there is no mean.
            said = [record[key][name] for record in records if record[key][name] is not None]
            if said:
                metrics[f"{prefix}{name}"] = _mean(said)
    return metrics


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
