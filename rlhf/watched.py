"""A task, and other tasks by which its policy is evaluated as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator

from rlhf.algorithms.base import Method
from rlhf.optimize import Optimize
from rlhf.rollout import Collected
from rlhf.runs.evaluate import Evaluation
from rlhf.task import Here, Task


class Watched(Task):
    """What is trained on, and beside it tasks that the policy is only evaluated by, as often.

    Metrics `eval_...` of the one that is called NAME are `eval_NAME_...` here, and its samples have NAME under `of`.

    Args:
        also: Those tasks, by name.
    """

    def __init__(self, task: Task, also: Mapping[str, Task]) -> None:
        self.task, self.also = task, dict(also)
        self.group_size, self.whole_episodes = task.group_size, task.whole_episodes
        self.shared_state = task.shared_state
        self.steps_per_update, self.lag, self.rounding = task.steps_per_update, task.lag, task.rounding

    def require(self, policy: Any, method: Method, settings: Optimize, accelerator: Accelerator) -> None:
        self.task.require(policy, method, settings, accelerator)
        for task in self.also.values():
            task.require_measurable(policy, accelerator)

    def require_measurable(self, policy: Any, accelerator: Accelerator) -> None:
        for task in (self.task, *self.also.values()):
            task.require_measurable(policy, accelerator)

    def prepare(self, policy: Any, here: Here) -> None:
        self.task.prepare(policy, here)
        with self.task.aside(policy):
            for task in self.also.values():
                # What a task keeps in the run's folder is that of the one which is trained on.
                task.prepare(policy, here._replace(folder=None))

    def collect(self, policy: Any, update: int, here: Here) -> Collected:
        return self.task.collect(policy, update, here)

    def at_reference(self, policy: Any) -> bool:
        return self.task.at_reference(policy)

    def evaluate(self, policy: Any, here: Here) -> Evaluation:
        metrics, samples = self.task.evaluate(policy, here)
        for name, task in self.also.items():
            with self.task.aside(policy):
                other = task.evaluate(policy, here)
            metrics = metrics | {f"eval_{name}_{key.removeprefix('eval_')}": v for key, v in other.metrics.items()}
            samples = [*samples, *({"of": name, **sample} for sample in other.samples)]
        return Evaluation(metrics, samples)

    def state_dict(self) -> dict[str, Any]:
        return self.task.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.task.load_state_dict(state)

    def close(self) -> None:
        for task in (*self.also.values(), self.task):
            task.close()

    def inputs(self) -> dict[str, str]:
        sums = self.task.inputs()
        for name, task in self.also.items():
            sums |= {f"{name}: {what}": value for what, value in task.inputs().items()}
        return sums

    def describe(self) -> dict[str, Any]:
        return {**self.task.describe(), "also": {name: task.describe() for name, task in self.also.items()}}
