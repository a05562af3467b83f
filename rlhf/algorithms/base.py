"""What a method is: its settings, an estimate, a loss, and the facts by which a run is checked before it starts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias

from rlhf import optimize
from rlhf.deferred import deferred
from rlhf.errors import InputError
from rlhf.optimize import Learner, Loss
from rlhf.settings import Settings

with deferred():
    import torch
    from torch import Tensor

    from rlhf.core import kl
    from rlhf.rollout import Batch, PolicyOutput, Rollout

Whitening = Literal["none", "minibatch", "batch"]
LearnsFrom = Literal["rewards", "demonstrations", "pairs", "labels"]
Clip: TypeAlias = "float | Tensor"


@dataclass(frozen=True, kw_only=True)
class Method(Settings):
    """The base of every method: a frozen dataclass whose fields are its settings.

    A method of your own defines `estimate` and `loss`, both pure functions of `(B, T)` tensors, and overrides whatever
    fact below is not so. Facts that depend on the settings are properties. `state` holds what the method adapts and
    what the loop says: `update` (updates done), `progress` (share of the run, in [0, 1)), and after the estimates
    `paid` (some reward of the run was not 0) and `teaches` (of this update some action was paid better than another).
    """

    name: ClassVar[str]
    """On the command line, in messages and as the folder of its phase; left out, the class's in snake case."""
    rows: ClassVar[Literal["steps", "episodes", "groups"]] = "steps"
    """What the loss sees. steps: single actions of a policy without memory may be scored alone, so its `(B, T)` rows
    become `(B * T, 1)`; episodes: rows are whole; groups: rows of a group or pair stay together as well, in minibatches
    and in micro-batches."""
    whitens: ClassVar[tuple[Whitening, ...]] = ("none", "minibatch", "batch")
    """The `whiten` of Optimize that it goes with; where a run leaves it open, the last one."""
    single_step: ClassVar[bool] = False
    """No ratio in the loss makes a second optimizer step on one batch right."""
    stops_early: ClassVar[bool] = True
    """`target_kl` of Optimize can end its update; never so if it takes a single step."""
    corrects_lag: ClassVar[bool] = False
    """Its estimates hold the ratio of learner and actor; for all others the loop weighs the advantages by it."""
    compares: ClassVar[bool] = True
    """It asks how likely the actions were at the start of the update; without, they are only scored in the loss."""
    replays: ClassVar[bool] = False
    """It learns from replayed transitions."""
    learns_from: ClassVar[LearnsFrom] = "rewards"
    """demonstrations: actions of which nothing is known but that they are to be repeated; pairs: rows two and two, of
    which one was chosen; labels: rows that are desirable or not, and beside each one with an answer to another prompt,
    which is neither."""
    reads_ends: ClassVar[bool] = False
    """Of a row it sees the state after its last action and no other, as a reward model does."""
    shardable: ClassVar[bool] = True
    """Its update needs no process to hold all weights at once."""
    critic_of: ClassVar[str] = "states"
    """What its critic gives a value to: states, actions, either; none: it has no critic."""
    actions: ClassVar[Literal["discrete", "vectors", "either"]] = "either"
    """What it can choose between."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" not in vars(cls):
            cls.name = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower()
        if isinstance(cls.name, str) and not re.fullmatch(r"[\w-]{1,100}", cls.name):
            raise InputError(
                f"the name of method {cls.__name__} is {cls.name!r:.120}; a folder bears it, so make it up to 100 "
                "letters, digits, _ and -."
            )

    @property
    def needs_critic(self) -> bool:
        """It fits a critic before it uses what it says."""
        return False

    @property
    def needs_groups(self) -> bool:
        """Rows are compared with others of the same start, so each start needs several."""
        return self.rows == "groups" and self.learns_from == "rewards"

    @property
    def needs_episodes(self) -> bool:
        """Rows of the rollout must be whole episodes; responses of a language model are."""
        return self.rows != "steps"

    @property
    def needs_memoryless(self) -> bool:
        """It takes the gradient or the value of every single action, which a policy that remembers does not give."""
        return self.replays

    @property
    def needs_reference(self) -> bool:
        """It charges for the KL to a reference."""
        return getattr(self, "kl_coef", 0.0) > 0

    @property
    def needs_rewards(self) -> bool:
        """Where no action was paid better than another, its loss has nothing to move the policy by: no entropy bonus,
        no demonstrations. Such an update fits the critic, and leaves the policy as it is to the last bit."""
        return self.compares and self.learns_from == "rewards" and getattr(self, "entropy_coef", 0.0) == 0

    @property
    def discount(self) -> float:
        """Of the returns that rewards are scaled by, where a task scales them; 1 without a `gamma`."""
        return getattr(self, "gamma", 1.0)

    @property
    def num_seeds(self) -> int:
        """Of how many runs side by side, whose rows lie end to end, as many for each."""
        return 1

    @property
    def num_parts(self) -> int:
        """Into how many parts it cuts a batch, beside the minibatches of Optimize."""
        return 1

    def initial_state(self) -> dict[str, Tensor]:
        """Numbers that it adapts from update to update; they are logged, and part of every checkpoint."""
        return {}

    def estimate(self, rollout: Rollout, state: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        """What the loss sees of a rollout, and `(B, T)` cells to log."""
        raise NotImplementedError

    def loss(self, output: Any, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """`(B, T)` terms, and what to log: `(B, T)` cells, or `(B,)` numbers of rows. An optimizer step minimises
        sum(weights * terms) / sum(units).

        `output` is the policy's PolicyOutput, or what else the policy's `forward` gives a method that has its own kind.
        How far the policy has moved, its entropy and the clipped share are logged by the loop, which also keeps
        outputs that the terms leave out in the graph, as data parallelism needs.
        """
        raise NotImplementedError

    def row_scores(self, output: PolicyOutput, batch: Batch) -> Tensor:
        """`(B,)` what a method that learns from pairs or labels makes of each row; held-out rows are measured by it."""
        raise NotImplementedError

    def clip_range(self, state: dict[str, Tensor], like: Tensor) -> Clip | tuple[Clip, Clip] | None:
        """The ratio of an action counts as clipped beyond 1 +- this, of the type of `like`, or below 1 - the first and
        above 1 + the second; None: none is clipped."""
        return None

    def fits_critic_only(self, state: dict[str, Tensor]) -> bool:
        """In this update only the critic's own parameters step, though its loss may reach others that it shares."""
        return self.needs_rewards and not state["teaches"]

    def update(
        self, learner: Learner, rollout: Rollout, batch: Batch, state: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """What an update does with the estimates: the gradient loop. Returns metrics and the next state.

        Args:
            batch: As the policy scores it; step by step if the method's rows may be and the policy has no memory.
        """
        return optimize.update(learner, batch, self.objective(state)), state

    def adapt(self, state: dict[str, Tensor], metrics: dict[str, float]) -> dict[str, Tensor]:
        """The state of the next update, by the metrics that are logged of this one."""
        return state

    def objective(self, state: dict[str, Tensor]) -> Loss:
        """The loss as the gradient loop takes it, with what is logged of every method."""
        return partial(self._objective, state=state)

    def _objective(
        self, output: PolicyOutput, batch: Batch, *, state: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if not state.get("teaches", True):
            # The critic's error is all that they are.
            batch = batch._replace(advantages=torch.zeros_like(batch.advantages))
        if batch.importance is not None:
            batch = batch._replace(advantages=batch.advantages * batch.importance)
        terms, metrics = self.loss(output, batch, state)
        if not isinstance(output, PolicyOutput):
            return terms, metrics
        with torch.no_grad():
            shown = {"entropy": output.entropy.detach()}
            if self.compares:
                shown |= kl.movement(output.logprobs, batch.logprobs)
                clip = self.clip_range(state, output.logprobs)
                if clip is not None:
                    low, high = clip if isinstance(clip, tuple) else (clip, clip)
                    off = shown["ratio_max"] - 1.0
                    shown["clip_fraction"] = ((-off > low) | (off > high)).to(terms)
        # Data parallelism needs every parameter in the graph.
        return terms + 0.0 * (output.logprobs + output.values), shown | metrics
