"""Tasks that keep what they collect. Every run sums up the files that its task imports, so these are few."""

from __future__ import annotations

from typing import Any

import rlhf
from rlhf.control.seeds import SeedsOfEnvs
from rlhf.control.tasks import Imitation
from rlhf.rollout import Rollout
from tests.covering.laws import Interruptible, changed, copied


class Watched(Interruptible):
    """Keeps what it collects, and notes what an evaluation moves."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.rollouts: list[Rollout] = []
        self.moved_by_evaluation: list[str] = []

    def collect(self, policy: Any, update: int, here: rlhf.Here) -> rlhf.Collected:
        collected = super().collect(policy, update, here)
        self.rollouts.append(collected.rollout)
        return collected

    def evaluate(self, policy: Any, here: rlhf.Here) -> rlhf.Evaluation:
        before = copied(policy.state_dict())
        evaluation = super().evaluate(policy, here)  # type: ignore[misc]
        self.moved_by_evaluation += changed(before, policy.state_dict())
        return evaluation


class WatchedEnvs(Watched, rlhf.Envs):
    pass


class WatchedSeeds(Watched, SeedsOfEnvs):
    pass


class WatchedImitation(Watched, Imitation):
    pass
