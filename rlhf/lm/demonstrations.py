"""Demonstrations as what a language model is cloned from: supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator

from rlhf import optimize
from rlhf.algorithms.base import Method
from rlhf.budget import micro_batches, passed_by
from rlhf.demonstrations import DemonstrationCollector, require_rows
from rlhf.errors import InputError
from rlhf.lm.data import Data, demonstration_rollout, hold_out
from rlhf.lm.memory import require_memory
from rlhf.lm.prompts import Source, data_sums, loaded, require_tokenizer, same_tokens
from rlhf.optimize import Optimize
from rlhf.reduce import global_sum
from rlhf.rollout import Rollout
from rlhf.runs.evaluate import Evaluation
from rlhf.settings import Count, CountOrNone, checked
from rlhf.sources import rows_sums
from rlhf.task import CollectorTask, Here, Task


class Demonstrations(CollectorTask):
    """Texts, completions or conversations that the policy learns to write; needs no reward.

    They are learned at temperature 1, whatever the policy's own is, which is back afterwards.

    Args:
        data: As for Prompts, with columns `text`; `prompt` and `completion`; or `messages`.
        rows_per_update: Demonstrations of one update, over all processes.
        held_out: So many rows are only evaluated on, by their loss; or data of their own; 0: none.
        also: Another task by which the policy is evaluated as well, such as the Prompts that come next.
    """

    shared_state = True

    @checked
    def __init__(
        self,
        data: Source,
        *,
        rows_per_update: Count = 64,
        held_out: CountOrNone | Source = 0,
        also: Task | None = None,
    ) -> None:
        self.data, self.rows_per_update, self.also = loaded(data), rows_per_update, also
        self.held_out = held_out if isinstance(held_out, int) else loaded(held_out)
        self._rows: tuple[Rollout, Rollout | None] | None = None
        self._read_with: tuple[Any, int | None] = (None, None)
        self._evaluated: Rollout | None = None
        self._temperature = 1.0

    def read(self, tokenizer: Any, *, context: int | None) -> None:
        """Tokenizes the demonstrations, so that what is wrong with them shows before a model is loaded.

        Raises:
            InputError: The columns fit no format, or a row is empty, too long, or cannot be rendered.
        """
        self._read_with = (tokenizer, context)
        apart = None
        if isinstance(self.held_out, Data):
            apart = demonstration_rollout(self.held_out, tokenizer, context=context)
        self._rows = demonstration_rollout(self.data, tokenizer, context=context), apart

    def require_size(self, accelerator: Accelerator) -> None:
        """Refuses fewer rows than one update needs, or a number that processes cannot share."""
        assert self._rows is not None, "read() comes first"
        held_out, num_rows = self.held_out if isinstance(self.held_out, int) else 0, len(self._rows[0].mask)
        if not 0 <= held_out < num_rows:
            raise InputError(
                f"held_out is {held_out} and there are {num_rows} demonstrations; leave some to learn from."
            )
        require_rows(len(self._rows[0].mask) - held_out, self.rows_per_update, accelerator)

    def require(self, policy: Any, method: Method, settings: Optimize, accelerator: Accelerator) -> None:
        if not method.demonstrated:
            raise InputError(
                f"{method.name} weighs actions by what they earned, and of demonstrations nothing is known but the "
                "actions; clone them with BehaviourCloning()."
            )
        require_tokenizer(policy)
        policy.require_precision(accelerator.mixed_precision)
        if self._rows is None or not same_tokens(self._read_with, (policy.tokenizer, policy.context)):
            self.read(policy.tokenizer, context=policy.context)
        self.require_size(accelerator)
        require_memory(policy, needs_reference=method.needs_reference, accelerator=accelerator)
        optimize.require_rows(self.rows_per_update, settings.minibatches)
        if self.also is not None:
            self.also.require_measurable(policy, accelerator)

    def require_measurable(self, policy: Any, accelerator: Accelerator) -> None:
        raise InputError(
            "demonstrations are learned from, at temperature 1, and only evaluated by beside another task they would "
            "change its temperature; to measure the loss on them, take rlhf.Texts(data)."
        )

    def prepare(self, policy: Any, here: Here) -> None:
        assert self._rows is not None
        shown, apart = self._rows
        if isinstance(self.held_out, int) and self.held_out:
            training, evaluated = hold_out(len(shown.mask), num_held_out=self.held_out, seed=here.seed)
            shown, apart = shown.rows(training), shown.rows(evaluated)
        self._evaluated = apart
        self.collector = DemonstrationCollector(
            shown, rows_per_update=self.rows_per_update, seed=here.seed, accelerator=here.accelerator
        )
        if self.also is not None:
            self.also.prepare(policy, here)
        policy.compute_in(here.accelerator.mixed_precision)
        self._policy, self._temperature = policy, policy.temperature
        policy.temperature = 1.0

    def evaluate(self, policy: Any, here: Here) -> Evaluation:
        """`eval_loss` on the held-out rows, nats a token, and what the other task measures."""
        metrics: dict[str, float] = {}
        if self._evaluated is not None:
            metrics["eval_loss"] = _loss(policy, self._evaluated, here)
        if self.also is None:
            return Evaluation(metrics, [])
        with _temperature(policy, self._temperature):
            other = self.also.evaluate(policy, here)
        return Evaluation(metrics | other.metrics, other.samples)

    def close(self) -> None:
        super().close()
        self._policy.temperature = self._temperature
        if self.also is not None:
            self.also.close()

    def inputs(self) -> dict[str, str]:
        return data_sums(self.data, self.held_out) | ({} if self.also is None else self.also.inputs())

    def describe(self) -> dict[str, Any]:
        held_out = self.held_out if isinstance(self.held_out, int) else self.held_out.name
        return {
            "data": self.data.name,
            "rows": len(self.data.rows),
            "rows_per_update": self.rows_per_update,
            "held_out": held_out,
        }


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
        with _temperature(policy, 1.0):
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


@contextmanager
def _temperature(policy: Any, temperature: float) -> Iterator[None]:
    own = policy.temperature
    policy.temperature = temperature
    try:
        yield
    finally:
        policy.temperature = own
