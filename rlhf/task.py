"""What a policy is trained on: how it acts, what that is paid, and how it is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator

from rlhf.algorithms.base import Method
from rlhf.optimize import Optimize
from rlhf.rollout import Collected
from rlhf.runs.evaluate import Evaluation


class Here(NamedTuple):
    """Where and for whom a task works; made once, by `train`."""

    accelerator: Accelerator
    seed: int
    """Everything random follows from it."""
    method: Method
    """What learns from what is collected."""
    settings: Optimize
    """Of the optimizer; its `micro_batch_cost` is the most row costs to score at once."""
    folder: Path | None
    """Of the phase; None where nothing is kept."""


class Task:
    """A task of your own inherits from this and defines `collect`; what else it does not define does nothing.

    One object serves one run at a time: `prepare` comes first, `close` last.
    """

    group_size: int = 1
    """Rows of a rollout that share a start."""
    whole_episodes: bool = True
    """Each row of a rollout is one whole episode, as a response is."""
    steps_per_update: int = 0
    """Actions in each rollout; 0: their number varies."""
    shared_state: bool = False
    """Its state is the same on every process, so another number of them may go on from it."""
    rounding: float = 0.1
    """Nats an action, in the mean, by which rounding lets what it says of its actions' probability differ from what the
    learner says, in the precision of the weights."""
    lag: int = 0
    """Updates by which the weights that act lag behind those that learn."""

    def require(self, policy: Any, method: Method, settings: Optimize, accelerator: Accelerator) -> None:
        """Refuses what does not fit, before anything else happens.

        Raises:
            InputError: With what was given, what is needed, and what to do.
        """

    def require_measurable(self, policy: Any, accelerator: Accelerator) -> None:
        """As `require`, where the policy is not trained on this task and only evaluated by it."""

    def prepare(self, policy: Any, here: Here) -> None:
        """Makes ready to act, once, with the policy as it is before the first update."""

    def collect(self, policy: Any, update: int, here: Here) -> Collected:
        """One rollout of this process, its metrics over all processes, and a record a sample for people to read."""
        raise NotImplementedError

    def at_reference(self, policy: Any) -> bool:
        """The policy is still the reference of `ref_logprobs`, weight for weight, so there is no KL between them."""
        return False

    def evaluate(self, policy: Any, here: Here) -> Evaluation:
        """How good the policy is, by means of its own: other seeds or prompts than those of training."""
        return Evaluation({}, [])

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on exactly; one a process, part of every checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts it back."""

    @contextmanager
    def aside(self, policy: Any) -> Iterator[None]:
        """Meanwhile the policy is, for other tasks, as it was before `prepare`, but for what it has learned."""
        yield

    def close(self) -> None:
        """Lets go of what `prepare` opened."""

    def inputs(self) -> dict[str, str]:
        """Checksums, by name, of data and of user code (see `rlhf.sources`): a resumed run must find the same."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Its settings, for config.json: what tells two runs apart."""
        return {"task": type(self).__name__}


class CollectorTask(Task):
    """A task that has a collector act, which `prepare` makes: it sets `self.collector`."""

    collector: Any = None

    def collect(self, policy: Any, update: int, here: Here) -> Collected:
        return self.collector.collect(policy, update)

    def state_dict(self) -> dict[str, Any]:
        return self.collector.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.collector.load_state_dict(state)

    def close(self) -> None:
        self.collector.close()
