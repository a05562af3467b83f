"""A task made of what a test has at hand: a collector, and a function that evaluates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlhf.rollout import Collected
from rlhf.runs.evaluate import Evaluation
from rlhf.task import Here, Task


def unmeasured(policy: Any) -> Evaluation:
    return Evaluation({}, [])


class Given(Task):
    """Rows share starts as the method may ask, and are whole episodes, unless the test says otherwise."""

    def __init__(
        self,
        collector: Any,
        evaluate: Callable[[Any], Evaluation] = unmeasured,
        *,
        lag: int = 0,
        group_size: int = 2,
        whole_episodes: bool = True,
    ) -> None:
        self.collector, self.evaluator, self.lag = collector, evaluate, lag
        self.group_size, self.whole_episodes = group_size, whole_episodes

    def collect(self, policy: Any, update: int, here: Here) -> Collected:
        return self.collector.collect(policy, update)

    def evaluate(self, policy: Any, here: Here) -> Evaluation:
        return self.evaluator(policy)

    def state_dict(self) -> dict[str, Any]:
        return self.collector.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.collector.load_state_dict(state)
