"""Acts with a language model: prompts, responses, scores, Rollout. Every rule on padding and EOS is here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf import acting
from rlhf.core.epochs import epoch_rows
from rlhf.core.masked import rounding
from rlhf.core.random import uniforms
from rlhf.errors import InputError
from rlhf.lm.answered import Answered
from rlhf.lm.answering import Answering, OneTurn, Responses
from rlhf.lm.data import Prompt
from rlhf.lm.engine import Engine, Generation, Sampling
from rlhf.lm.generate import Decoder
from rlhf.lm.policy import CausalLM
from rlhf.lm.responses import response_records, score_responses
from rlhf.lm.reward_logs import mean_metrics
from rlhf.lm.rewards import Rewards, Scores
from rlhf.lm.settings import CollectResponses
from rlhf.rollout import Collected, Rollout

# Updates in a row in which nothing is scored since every reward function failed and was skipped.
MAX_EMPTY = 3


def require_prompts(prompts: Sequence[object], config: CollectResponses, accelerator: Accelerator) -> None:
    """Refuses what no rollout can be drawn from; also for recipes, before they load a model.

    Raises:
        InputError: There are fewer prompts than a rollout needs, or the processes cannot share them evenly.
    """
    if len(prompts) < config.prompts_per_rollout:
        raise InputError(
            f"there are {len(prompts)} prompts, fewer than prompts_per_rollout ({config.prompts_per_rollout}); "
            "lower it (and raise responses_per_prompt), or give more prompts."
        )
    require_shared(config, accelerator.num_processes)


def require_shared(config: CollectResponses, processes: int) -> None:
    """Refuses a number of prompts that processes cannot share evenly."""
    if config.prompts_per_rollout % processes:
        raise InputError(
            f"prompts_per_rollout is {config.prompts_per_rollout}, which {processes} processes cannot share evenly; "
            "make it a multiple of them."
        )


class PromptCollector:
    """Answers prompts, each epoch in another order, and has the answers scored.

    Sample ids count the responses of a rollout over all ranks, those to one prompt (a group) side by side; a rank
    takes a contiguous share of the prompts.

    Args:
        micro_batch_cost: Most tokens scored at once in a forward pass.
        use_reference: Also score the responses under the policy's reference.
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
        config: CollectResponses,
        seed: int,
        accelerator: Accelerator,
        micro_batch_cost: int,
        use_reference: bool,
        engine: Engine | None = None,
        answering: Answering | None = None,
    ) -> None:
        sampling.require_exact()
        require_prompts(prompts, config, accelerator)
        self.prompts, self.tokenizer, self.rewards = prompts, tokenizer, rewards
        self.sampling, self.config, self.seed, self.accelerator = sampling, config, seed, accelerator
        self.micro_batch_cost, self.use_reference = micro_batch_cost, use_reference
        self.answering = answering or OneTurn(engine or Decoder(tokenizer), tokenizer, sampling)
        rewards.require_columns([*prompts[0].columns, *self.answering.columns])
        self._seen, self._empty = Moments(), 0
        # Prompts that gave way to others, in all updates so far: by so many the epochs are ahead.
        self._given_way = 0

    @torch.no_grad()
    def collect(self, policy: CausalLM, update: int) -> Collected:
        prompts, sample_ids = self._draw(update)
        answered = self._answered(policy, prompts, sample_ids, update, "responses")
        answered, again = self._drawn_again(policy, answered, sample_ids, update)
        prompts, responses, scores = answered
        rewards = self._paid(scores, responses.generation)
        rollout = self._rollout(policy, responses, rewards, scores.valid, sample_ids)
        kl = None if rollout.ref_logprobs is None else (rollout.logprobs - rollout.ref_logprobs).sum(dim=1)
        records = [
            {"sample_id": sample_id, **record}
            for sample_id, record in zip(
                sample_ids.tolist(), response_records(prompts, responses, scores, kl), strict=True
            )
        ]
        return Collected(rollout, self._metrics(rollout, responses, scores) | again, records)

    def _answered(
        self, policy: CausalLM, prompts: list[Prompt], sample_ids: Tensor, update: int, purpose: str
    ) -> Answered:
        """What the policy answers, and what that is paid; what is cut is not valid where that is masked."""
        draws = uniforms(self.seed, purpose, update, sample_ids, self.answering.num_draws)
        # No longer than for this: autocast keeps its casts of weights, and what follows may train some of its own.
        with self.accelerator.autocast():
            responses = self.answering(policy, prompts, uniforms=draws, sample_ids=sample_ids)
        scores = score_responses(self.rewards, prompts, responses, sample_ids.tolist(), evaluating=False)
        if self.config.cut_responses == "masked":
            scores = scores._replace(valid=scores.valid & responses.generation.finished.to(scores.valid.device))
        return Answered(prompts, responses, scores)

    def _drawn_again(
        self, policy: CausalLM, answered: Answered, sample_ids: Tensor, update: int
    ) -> tuple[Answered, dict[str, float]]:
        """Groups whose scores are alike give way to the next prompts of the epoch; and how many did."""
        if not self.config.draw_again:
            return answered, {}
        size, before = self.config.responses_per_prompt, self._given_way
        first = (update + 1) * self.config.prompts_per_rollout
        for number in range(self.config.draw_again):
            alike = self._gathered(answered.alike(size).long())
            missing = alike.nonzero().squeeze(1)
            if not len(missing):
                break
            rows = epoch_rows(
                self.seed, "prompts", num_rows=len(self.prompts), start=first + self._given_way, count=len(missing)
            )
            self._given_way += len(missing)
            offset = int(sample_ids[0]) // size
            mine = (missing >= offset) & (missing < offset + len(sample_ids) // size)
            if not bool(mine.any()):
                continue
            places = [(group - offset) * size + i for group in missing[mine].tolist() for i in range(size)]
            prompts = [self.prompts[row] for row in rows[mine].tolist() for _ in range(size)]
            others = self._answered(policy, prompts, sample_ids[places], update, f"responses, again {number + 1}")
            answered = answered.replaced(places, others)
        return answered, {"prompts_given_way": float(self._given_way - before)}

    def state_dict(self) -> dict[str, Any]:
        return {"scores_seen": list(self._seen), "given_way": self._given_way}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seen, self._given_way = Moments(*state["scores_seen"]), state["given_way"]

    def close(self) -> None:
        """Nothing is held open."""

    def _draw(self, update: int) -> tuple[list[Prompt], Tensor]:
        """This rank's prompts, each as often as it is answered, and the global ids of the responses."""
        share = self.config.prompts_per_rollout // self.accelerator.num_processes
        first = share * self.accelerator.process_index
        start = update * self.config.prompts_per_rollout + self._given_way + first
        rows = epoch_rows(self.seed, "prompts", num_rows=len(self.prompts), start=start, count=share)
        repeats = self.config.responses_per_prompt
        prompts = [self.prompts[row] for row in rows.tolist() for _ in range(repeats)]
        return prompts, torch.arange(first * repeats, (first + share) * repeats)

    def _paid(self, scores: Scores, generation: Generation) -> Tensor:
        """`(B, T)` rewards: scores scaled, clipped, and less the penalty for having no end."""
        rewards = scores.rewards
        if self.config.normalise_scores:
            everyone = self._gathered(torch.stack([scores.scores, scores.valid.double()], dim=1))
            self._seen = self._seen.with_scores(everyone[everyone[:, 1] > 0, 0])
            rewards = rewards / self._seen.scale
        if self.config.score_clip is not None:
            rewards = rewards.clamp(-self.config.score_clip, self.config.score_clip)
        if self.config.missing_eos_penalty is not None:
            # What the sampler saw end, by any stop token or string: tokens of the prompt have no say.
            cut = (~generation.finished).cpu().nonzero().squeeze(1)
            rewards = rewards.clone()
            rewards[cut, generation.lengths.cpu()[cut] - 1] -= self.config.missing_eos_penalty
        if self.config.overlong_tokens:
            lengths = generation.lengths.cpu()
            over = lengths - (self.sampling.max_new_tokens - self.config.overlong_tokens)
            shares = (over.double() / self.config.overlong_tokens).clamp(0.0, 1.0)
            rewards = rewards.clone()
            rewards[torch.arange(len(lengths)), lengths - 1] -= self.config.overlong_penalty * shares
        return rewards

    def _rollout(
        self,
        policy: CausalLM,
        responses: Responses,
        rewards: Tensor,
        valid: Tensor,
        sample_ids: Tensor,
    ) -> Rollout:
        generation, inputs = responses.generation, responses.inputs
        where: dict[str, Any] = {"accelerator": self.accelerator, "max_tokens": self.micro_batch_cost}
        device = generation.tokens.device
        steps = torch.arange(generation.tokens.shape[1], device=device)
        lengths = generation.lengths.unsqueeze(1)
        mask = (steps < lengths) & valid.to(device).unsqueeze(1)
        # The last token is terminal even without EOS: the response was cut by max_new_tokens, and nothing follows it.
        dones = (steps == lengths - 1) & mask
        logprobs, values = generation.logprobs, generation.values
        # Even an exact engine and the training forward round differently in half precision.
        exact = self.answering.exact and self.accelerator.mixed_precision == "no"
        if not exact or (values is None and policy.critic_trunk is None):
            logprobs, values = acting.scored(policy, inputs, **where)
        elif values is None:
            values = acting.critic_values(policy, inputs, **where)
        ref_logprobs = acting.reference_logprobs(policy, inputs, logprobs, **where) if self.use_reference else None
        next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1).masked_fill(dones, 0.0)
        return Rollout(
            inputs=inputs,
            behaviour_logprobs=generation.logprobs,
            logprobs=logprobs,
            values=values,
            next_values=next_values,
            rewards=rewards.to(values),
            dones=dones,
            mask=mask,
            sample_ids=sample_ids.to(device),
            costs=inputs["lengths"],
            ref_logprobs=ref_logprobs,
            groups=(sample_ids // self.config.responses_per_prompt).to(device),
        )

    def _metrics(self, rollout: Rollout, responses: Responses, scores: Scores) -> dict[str, float]:
        """Means over the episodes of all ranks: samples without a score are left out, and of a function's mean those on
        which it had no say.
        """
        columns = {
            "valid": scores.valid,
            "score": scores.scores,
            "return": rollout.rewards.sum(dim=1),
            "length": responses.generation.lengths,
            "finished": responses.generation.finished,
        }
        for name, counts in responses.counts.items():
            columns[f"{name}_mean"] = torch.tensor(counts)
        for name, part in scores.parts.items():
            columns[f"reward/{name}"] = torch.tensor([value or 0.0 for value in part])
        say = {f"reward/{name}": torch.tensor([x is not None for x in part]) for name, part in scores.parts.items()}
        stacked = torch.stack([column.cpu().double() for column in (*columns.values(), *say.values())], dim=1)
        everyone = self._gathered(stacked)
        kept = everyone[everyone[:, 0] > 0, : len(columns)]
        skipped = self._num_skipped(scores)
        logged = {}
        if self.rewards.logs_metrics:
            logged = mean_metrics(scores.metrics, self.accelerator, "reward_metric/")
        if len(kept) == 0:
            all_cut = self.config.cut_responses == "masked" and not bool(
                everyone[:, list(columns).index("finished")].any()
            )
            return self._nothing(skipped, all_cut=all_cut)
        self._empty = 0
        means = dict(zip(columns, kept.mean(dim=0).tolist(), strict=True))
        parts = {}
        for i, name in enumerate(say, start=len(columns)):
            said = everyone[:, i] > 0
            if int(said.sum()) == len(kept):
                parts[name] = means[name]
            elif said.any():
                parts[name] = float(everyone[said, i - len(say)].mean())
        return {
            "score_mean": means["score"],
            "score_std": float(kept[:, 1].std(correction=0)),
            "return_mean": means["return"],
            "reward_per_step": means["return"] / means["length"],
            "episode_length_mean": means["length"],
            "finished_fraction": means["finished"],
            "episodes": len(kept),
            **{f"{name}_mean": means[f"{name}_mean"] for name in responses.counts},
            **parts,
            **skipped,
            **logged,
        }

    def _num_skipped(self, scores: Scores) -> dict[str, float]:
        """How many samples of all ranks each function was left out of since it failed; only where that may be."""
        if self.rewards.calling.on_error != "skip":
            return {}
        size = len(scores.valid)
        counts = torch.tensor([[size * (name in scores.skipped) for name in scores.parts]])
        totals = self._gathered(counts).sum(dim=0).tolist()
        return {f"reward_skipped/{name}": float(total) for name, total in zip(scores.parts, totals, strict=True)}

    def _nothing(self, skipped: dict[str, float], *, all_cut: bool) -> dict[str, float]:
        """What is logged of a rollout without any score, from which nothing is learned; too many are an error."""
        if not any(skipped.values()) and not all_cut:
            raise InputError(
                "the reward functions returned None for every sample of a rollout; there is nothing to learn."
            )
        self._empty += 1
        if self._empty == MAX_EMPTY and all_cut:
            raise InputError(
                f"every response of {MAX_EMPTY} updates one after the other was cut by max_new_tokens "
                f"({self.sampling.max_new_tokens}), and cut_responses is masked, so nothing was learned; raise "
                "max_new_tokens, or set cut_responses to paid."
            )
        if self._empty == MAX_EMPTY:
            raise RuntimeError(
                f"reward functions failed in {MAX_EMPTY} updates one after the other, and nothing was scored; the "
                "lines above say how. When they answer again, --resume continues from the last checkpoint."
            )
        return {"episodes": 0, **skipped}

    def _gathered(self, rows: Tensor) -> Tensor:
        """All ranks' rows in the order of sample ids, on the CPU."""
        return self.accelerator.gather(rows.to(self.accelerator.device)).cpu()


class Moments(NamedTuple):
    """How many scores there were, their mean, and their summed squared distance from it."""

    num_scores: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def with_scores(self, scores: Tensor) -> Moments:
        """Both sets together (Chan et al., 1979; https://doi.org/10.1007/978-3-642-51461-6_3)."""
        if len(scores) == 0:
            return self
        total, mean = self.num_scores + len(scores), float(scores.mean())
        squares = float((scores - mean).square().sum())
        return Moments(
            total,
            self.mean + (mean - self.mean) * len(scores) / total,
            self.squares + squares + (mean - self.mean) ** 2 * self.num_scores * len(scores) / total,
        )

    @property
    def scale(self) -> float:
        """The standard deviation; 1 where all scores are equal to rounding, which cannot be scaled to spread."""
        deviation = math.sqrt(self.squares / self.num_scores) if self.num_scores else 0.0
        return deviation if deviation > max(1e-8, rounding(abs(self.mean))) else 1.0
