"""What others wrote, which the policy learns from row by row: what tasks of this kind share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from accelerate import Accelerator

from rlhf import optimize
from rlhf.algorithms.base import LearnsFrom, Method
from rlhf.algorithms.checks import require_learns_from
from rlhf.demonstrations import DemonstrationCollector, require_rows
from rlhf.errors import InputError
from rlhf.lm.data import Data, hold_out
from rlhf.lm.memory import require_memory
from rlhf.lm.prompts import Source, data_sums, loaded, require_tokenizer, same_tokens
from rlhf.optimize import Optimize
from rlhf.rollout import Rollout
from rlhf.runs.evaluate import Evaluation
from rlhf.settings import Count, CountOrNone, checked
from rlhf.task import CollectorTask, Here, Task


class Offline(CollectorTask):
    """A task whose data are read once and gone through in epochs, at temperature 1, whatever the policy's own is.

    One of its kinds says what rows its data make (`rollout_of`), and how a policy is measured by them (`measured`).
    """

    gives: ClassVar[tuple[LearnsFrom, ...]] = ("demonstrations",)
    """What methods can learn from here."""
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
        self._read_for: Method | None = None
        self._evaluated: Rollout | None = None
        self._temperature = 1.0

    def rollout_of(self, data: Data, tokenizer: Any, *, context: int | None, method: Method | None) -> Rollout:
        """All rows of the data; each may be several of the rollout, side by side.

        Args:
            method: What will learn from them, where that is known.
        """
        raise NotImplementedError

    def measured(self, policy: Any, rows: Rollout, here: Here) -> Evaluation:
        """How good the policy is on rows that it does not learn from."""
        raise NotImplementedError

    def read(self, tokenizer: Any, *, context: int | None, method: Method | None = None) -> None:
        """Tokenizes the data, so that what is wrong with them shows before a model is loaded.

        Raises:
            InputError: The columns fit no format, or a row is empty, too long, or cannot be rendered.
        """
        self._read_with, self._read_for = (tokenizer, context), method
        apart = None
        if isinstance(self.held_out, Data):
            apart = self.rollout_of(self.held_out, tokenizer, context=context, method=method)
        self._rows = self.rollout_of(self.data, tokenizer, context=context, method=method), apart

    def require_size(self, accelerator: Accelerator) -> None:
        """Refuses fewer rows than one update needs, or a number that processes cannot share."""
        held_out, num_rows = self.held_out if isinstance(self.held_out, int) else 0, len(self.data.rows)
        if not 0 <= held_out < num_rows:
            raise InputError(
                f"held_out is {held_out} and there are {num_rows} demonstrations; leave some to learn from."
            )
        require_rows(num_rows - held_out, self.rows_per_update, accelerator)

    def require(self, policy: Any, method: Method, settings: Optimize, accelerator: Accelerator) -> None:
        require_learns_from(method, *self.gives)
        require_tokenizer(policy)
        policy.require_precision(accelerator.mixed_precision)
        same = same_tokens(self._read_with, (policy.tokenizer, policy.context))
        if self._rows is None or self._read_for != method or not same:
            self.read(policy.tokenizer, context=policy.context, method=method)
        self.require_size(accelerator)
        require_memory(policy, needs_reference=False, accelerator=accelerator)
        optimize.require_rows(self.rows_per_update, settings.minibatches)
        if self.also is not None:
            self.also.require_measurable(policy, accelerator)

    def require_measurable(self, policy: Any, accelerator: Accelerator) -> None:
        raise InputError(
            "demonstrations are learned from, at temperature 1, and only evaluated by beside another task they would "
            "change its temperature; to measure the loss on them, take rlhf.Texts(data)."
        )

    def prepare(self, policy: Any, here: Here) -> None:
        policy.compute_in(here.accelerator.mixed_precision)
        self._policy, self._temperature = policy, policy.temperature
        policy.temperature = 1.0
        assert self._rows is not None
        rows, apart = self._rows
        size = len(rows.mask) // len(self.data.rows)
        if isinstance(self.held_out, int) and self.held_out:
            training, evaluated = hold_out(len(self.data.rows), num_held_out=self.held_out, seed=here.seed)
            rows, apart = (
                rows.rows((part.unsqueeze(1) * size + torch.arange(size)).flatten()) for part in (training, evaluated)
            )
        rows = self.completed(policy, rows, here)
        self._evaluated = None if apart is None else self.completed(policy, apart, here)
        self.collector = DemonstrationCollector(
            rows, rows_per_update=self.rows_per_update, seed=here.seed, accelerator=here.accelerator, size=size
        )
        if self.also is not None:
            with self.aside(policy):
                self.also.prepare(policy, here)

    def completed(self, policy: Any, rows: Rollout, here: Here) -> Rollout:
        """The rows with what the policy, as it is before it learns, has to say of them."""
        return rows

    def evaluate(self, policy: Any, here: Here) -> Evaluation:
        """What held-out rows show, and what the other task measures."""
        own = Evaluation({}, [])
        if self._evaluated is not None:
            own = self.measured(policy, self._evaluated, here)
        if self.also is None:
            return own
        with self.aside(policy):
            other = self.also.evaluate(policy, here)
        return Evaluation(own.metrics | other.metrics, own.samples + other.samples)

    @contextmanager
    def aside(self, policy: Any) -> Iterator[None]:
        """With its own temperature."""
        with at_temperature(policy, self._temperature):
            yield

    def close(self) -> None:
        super().close()
        self._policy.temperature = self._temperature
        self._policy = None
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


@contextmanager
def at_temperature(policy: Any, temperature: float) -> Iterator[None]:
    """The policy with another temperature meanwhile."""
    own = policy.temperature
    policy.temperature = temperature
    try:
        yield
    finally:
        policy.temperature = own
