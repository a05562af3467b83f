"""Demonstrations as what a language model is cloned from: supervised fine-tuning."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator

from rlhf.algorithms.base import Method
from rlhf.budget import micro_batches, passed_by
from rlhf.lm.data import Data, demonstration_rollout
from rlhf.lm.offline import Offline, at_temperature
from rlhf.lm.prompts import Source, loaded, require_tokenizer, same_tokens
from rlhf.reduce import global_sum
from rlhf.rollout import Rollout
from rlhf.runs.evaluate import Evaluation
from rlhf.settings import checked
from rlhf.sources import rows_sums
from rlhf.task import Here, Task


class Demonstrations(Offline):
    """Texts, completions or conversations that the policy learns to write; needs no reward.

    They are learned at temperature 1, whatever the policy's own is, which is back afterwards.

    Args:
        data: As for Prompts, with columns `text`; `prompt` and `completion`; or `messages`.
        rows_per_update: Demonstrations of one update, over all processes.
        held_out: So many rows are only evaluated on, by their loss; or data of their own; 0: none.
        also: Another task by which the policy is evaluated as well, such as the Prompts that come next.
    """

    def rollout_of(self, data: Data, tokenizer: Any, *, context: int | None, method: Method | None) -> Rollout:
        return demonstration_rollout(data, tokenizer, context=context)

    def measured(self, policy: Any, rows: Rollout, here: Here) -> Evaluation:
        """`eval_loss`, nats a token."""
        return Evaluation({"eval_loss": _loss(policy, rows, here)}, [])


class Texts(Task):
    """Texts, completions or conversations that are only read: the policy's loss on them, at temperature 1.

    Args:
        data: As for Demonstrations.
    """

    @checked
    def __init__(self, data: Source) -> None:
        self.data = loaded(data)
        self._rows: Rollout | None = None
        self._read_with: tuple[Any, int | None] = (None, None)

    def read(self, tokenizer: Any, *, context: int | None) -> None:
        """Tokenizes the texts; raises InputError as that of Demonstrations."""
        self._rows = demonstration_rollout(self.data, tokenizer, context=context)
        self._read_with = (tokenizer, context)

    def require_measurable(self, policy: Any, accelerator: Accelerator) -> None:
        require_tokenizer(policy)
        if self._rows is None or not same_tokens(self._read_with, (policy.tokenizer, policy.context)):
            self.read(policy.tokenizer, context=policy.context)

    def evaluate(self, policy: Any, here: Here) -> Evaluation:
        """`eval_loss`, nats a token."""
        assert self._rows is not None
        with at_temperature(policy, 1.0):
            return Evaluation({"eval_loss": _loss(policy, self._rows, here)}, [])

    def inputs(self) -> dict[str, str]:
        return rows_sums("data", self.data.name, self.data.rows)

    def describe(self) -> dict[str, Any]:
        return {"data": self.data.name, "rows": len(self.data.rows)}


@torch.no_grad()
def _loss(policy: Any, rows: Rollout, here: Here) -> float:
    """Negative log-likelihood of the demonstrated actions, nats a token, over all processes."""
    accelerator = here.accelerator
    mine = torch.arange(accelerator.process_index, len(rows.mask), accelerator.num_processes)
    total = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    if len(mine):
        own = rows.rows(mine).to(accelerator.device)
        with accelerator.autocast():
            passed = passed_by(policy, own.inputs)
            for part in micro_batches(own.costs, here.settings.micro_batch_cost, passed=passed):
                some = own.rows(part)
                logprobs = policy(some.inputs).logprobs.double().masked_fill(~some.mask, 0.0)
                total += torch.stack([-logprobs.sum(), some.mask.sum().double()])
    loss, count = global_sum(accelerator, total).tolist()
    return loss / count
