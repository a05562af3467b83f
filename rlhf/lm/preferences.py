"""What people prefer, as what a language model or a reward model is trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf.algorithms.base import LearnsFrom, Method
from rlhf.budget import micro_batches, passed_by
from rlhf.core import preferences
from rlhf.errors import InputError
from rlhf.lm.classifier import require_classifier
from rlhf.lm.data import Data
from rlhf.lm.offline import Offline
from rlhf.lm.preference_data import answer_rollout, ends_rollout, exchanged, preferred
from rlhf.optimize import Optimize
from rlhf.reduce import gather_rows
from rlhf.rollout import PolicyOutput, Rollout, batch_of
from rlhf.runs.evaluate import Evaluation
from rlhf.task import Here

# Held-out pairs that an evaluation writes down for people to read.
RECORDED = 8


class Preferences(Offline):
    """Answers that people compared, two and two, or labelled one by one: DPO, KTO and reward models learn from them.

    Everything is scored at temperature 1. The reference is the policy as it is at the start; what that says of each row
    is computed once, so that no copy of it is kept.

    Args:
        data: As for Prompts, with columns `chosen` and `rejected` (strings or messages, with a `prompt` or with what
            both begin with; by how much in `margin`, or `score_chosen` and `score_rejected`); or `prompt`, `completion`
            and `label` (KTO).
        rows_per_update: Rows of the data in one update, over all processes.
        held_out: So many rows are only evaluated on; or data of their own; 0: none.
        also: Another task by which the policy is evaluated as well, such as Prompts.
    """

    gives: ClassVar[tuple[LearnsFrom, ...]] = ("pairs", "labels")
    group_size = 2

    def rollout_of(self, data: Data, tokenizer: Any, *, context: int | None, method: Method | None) -> Rollout:
        sides: Any = preferred(data)
        if method is not None and method.learns_from == "pairs" and len(sides) == 1:
            raise InputError(
                f"{method.name} learns from pairs, and {data.name} has one answer a row with a label; give chosen and "
                "rejected, or take KTO."
            )
        if method is not None and method.learns_from == "labels":
            sides = [each for side in sides for each in (side, exchanged(side))]
        read = ends_rollout if method is not None and method.reads_ends else answer_rollout
        return read(sides, tokenizer, context=context)

    def require(self, policy: Any, method: Method, settings: Optimize, accelerator: Accelerator) -> None:
        super().require(policy, method, settings, accelerator)
        if method.reads_ends:
            require_classifier(policy)

    def prepare(self, policy: Any, here: Here) -> None:
        if here.method.reads_ends:
            # The head of a classifier has none; pairs are told apart by differences.
            torch.nn.init.zeros_(policy.value_head.bias).requires_grad_(False)
        super().prepare(policy, here)

    def completed(self, policy: Any, rows: Rollout, here: Here) -> Rollout:
        """The rows with the reference's log-probabilities, if the method asks for them."""
        if not here.method.needs_reference:
            return rows
        policy.to(here.accelerator.device)
        score = policy if policy.teacher is None else policy.reference_logprobs
        own = _own_outputs(policy, rows, here, score=score)
        logprobs = _gathered(own.logprobs, len(rows.mask), here)
        return replace(rows, ref_logprobs=logprobs.to(rows.rewards.device))

    def measured(self, policy: Any, rows: Rollout, here: Here) -> Evaluation:
        """Of held-out pairs: `eval_accuracy`, the share whose chosen row scores more; `eval_margin`, by how much;
        `eval_preference_loss` and `eval_calibration_error` of sigmoid(margin) as its probability. Of labels the
        accuracy is that over all pairs of a desirable and an undesirable row."""
        labelled = rows.rows((rows.rewards.sum(1) != 0.0).nonzero().squeeze(1))
        scores = self._scores(policy, labelled, here)
        desirable = labelled.rewards.sum(1) > 0
        better, worse = scores[desirable], scores[~desirable]
        if len(labelled.mask) == len(labelled.groups.unique()):  # type: ignore[union-attr]
            if not (len(better) and len(worse)):
                # Of one kind alone there is nothing to tell apart.
                return Evaluation({"eval_score": float(scores.mean())}, [])
            across = better.unsqueeze(1) - worse.unsqueeze(0)
            found = {"eval_accuracy": preferences.correct(across).mean(), "eval_margin": across.mean()}
            return Evaluation({name: float(value) for name, value in found.items()}, [])
        margins = better - worse
        found = {
            "eval_accuracy": preferences.correct(margins).mean(),
            "eval_margin": margins.mean(),
            "eval_preference_loss": preferences.bradley_terry_loss(margins).mean(),
            "eval_calibration_error": preferences.calibration_error(margins),
        }
        records = [
            {"sample": int(row), "chosen_score": float(one), "rejected_score": float(other)}
            for row, one, other in zip(labelled.groups.unique()[:RECORDED], better, worse, strict=False)  # type: ignore[union-attr]
        ]
        return Evaluation({name: float(value) for name, value in found.items()}, [self._readable(r) for r in records])

    def _readable(self, record: dict[str, Any]) -> dict[str, Any]:
        """With the texts that were compared."""
        data = self.held_out if isinstance(self.held_out, Data) else self.data
        row = data.rows[record.pop("sample")]
        texts = {name: row.get(name) for name in ("prompt", "chosen", "rejected")}
        shown = {name: text if isinstance(text, str) else json.dumps(text) for name, text in texts.items() if text}
        return shown | record

    def _scores(self, policy: Any, rows: Rollout, here: Here) -> Tensor:
        """`(B,)` float64 what the method makes of each row, on every process."""
        mine = _own(len(rows.mask), here)
        own, output = rows.rows(mine), _own_outputs(policy, rows, here)
        batch = batch_of(own, advantages=own.mask.to(own.rewards), units=own.dones.to(own.rewards))
        cpu = PolicyOutput(*(tensor.to(own.rewards.device) for tensor in output))
        return _gathered(here.method.row_scores(cpu, batch).double().to(here.accelerator.device), len(rows.mask), here)


def _own(num_rows: int, here: Here) -> Tensor:
    """Numbers of the rows that this process scores."""
    return torch.arange(here.accelerator.process_index, num_rows, here.accelerator.num_processes)


@torch.no_grad()
def _own_outputs(policy: Any, rows: Rollout, here: Here, *, score: Any = None) -> PolicyOutput:
    """What the policy says of this process's rows, on its device.

    Args:
        score: What scores them in its place; if that gives log-probabilities alone, the rest is they again.
    """
    accelerator, width = here.accelerator, rows.mask.shape[1]
    own = rows.rows(_own(len(rows.mask), here))

    def outputs() -> Iterator[PolicyOutput]:
        passed = passed_by(policy, own.inputs)
        for part in micro_batches(own.costs, here.settings.micro_batch_cost, passed=passed):
            some = own.rows(part).to(accelerator.device)
            said = (score or policy)(some.inputs)
            said = (said, said, said) if isinstance(said, Tensor) else said
            yield PolicyOutput(*(tensor.masked_fill(~some.mask, 0.0) for tensor in said))

    with accelerator.autocast():
        parts = list(outputs()) or [PolicyOutput(*(torch.zeros(0, width, device=accelerator.device),) * 3)]
    return PolicyOutput(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _gathered(own: Tensor, num_rows: int, here: Here) -> Tensor:
    """All processes' rows in the order of the data, from each one's own; on the CPU."""
    cells, _ = gather_rows(here.accelerator, own.reshape(-1))
    ids, _ = gather_rows(here.accelerator, _own(num_rows, here).to(own.device))
    ordered = torch.empty(num_rows, *own.shape[1:], dtype=own.dtype, device=own.device)
    ordered[ids] = cells.view(num_rows, *own.shape[1:])
    return ordered.cpu()
