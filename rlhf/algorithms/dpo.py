"""Direct preference optimisation (Rafailov et al., 2023; https://arxiv.org/abs/2305.18290) and two of its variants.

The policy's log-ratio to a reference is the score of a row, so pairs teach the policy itself and no reward model. IPO
(Azar et al., 2023; https://arxiv.org/abs/2310.12036) and the hinge of SLiC (Zhao et al., 2023;
https://arxiv.org/abs/2305.10425) are other losses of the same margin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rlhf.algorithms import pairs
from rlhf.algorithms.base import LearnsFrom, Method, Whitening
from rlhf.deferred import deferred
from rlhf.errors import InputError
from rlhf.settings import Positive, Share

with deferred():
    from torch import Tensor

    from rlhf.core import preferences
    from rlhf.rollout import Batch, PolicyOutput, Rollout


@dataclass(frozen=True, kw_only=True)
class DPO(Method):
    """DPO: the policy learns from pairs of which one was chosen; the reference is the policy at the start."""

    rows: ClassVar[Literal["steps", "episodes", "groups"]] = "groups"
    whitens: ClassVar[tuple[Whitening, ...]] = ("none",)
    learns_from: ClassVar[LearnsFrom] = "pairs"
    stops_early: ClassVar[bool] = False
    compares: ClassVar[bool] = False
    critic_of: ClassVar[str] = "none"

    beta: Positive = 0.1
    """Score of a nat of log-ratio to the reference: the KL coefficient of the problem that DPO solves."""
    loss_type: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    """Loss of a pair's margin: -log sigmoid(margin); IPO's square, which stops at a log-ratio of 1 / (2 beta); hinge,
    which stops at a margin of 1."""
    label_smoothing: Share = 0.0
    """Share of the pairs that is taken to be the wrong way round, below 0.5; with sigmoid only."""

    def __post_init__(self) -> None:
        if self.label_smoothing >= 0.5:
            raise InputError(
                f"label_smoothing is {self.label_smoothing}; from 0.5 on the rejected rows would be learned, so it "
                "must be below."
            )
        if self.label_smoothing > 0 and self.loss_type != "sigmoid":
            raise InputError(
                f"label_smoothing is {self.label_smoothing}, which {self.loss_type} does not know; set it to 0, or "
                "take sigmoid."
            )

    @property
    def needs_reference(self) -> bool:
        return True

    def estimate(self, rollout: Rollout, state: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        """The pairs as they are."""
        return pairs.pair_batch(rollout), {}

    def row_scores(self, output: PolicyOutput, batch: Batch) -> Tensor:
        """beta * log pi(row) / pi_ref(row): the reward whose optimum the policy is (eq. 5), up to a constant of each
        prompt."""
        assert batch.ref_logprobs is not None
        return self.beta * pairs.row_sums(output.logprobs - batch.ref_logprobs, batch)

    def loss(self, output: PolicyOutput, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """-log sigmoid(margin) (eq. 7), or another loss of it, at the last action of both rows of a pair."""
        scores = self.row_scores(output, batch)
        margins = pairs.margins(scores, batch)
        if self.loss_type == "ipo":
            losses = preferences.identity_loss(margins / self.beta, beta=self.beta)
        elif self.loss_type == "hinge":
            losses = preferences.hinge_loss(margins)
        else:
            losses = preferences.bradley_terry_loss(margins, label_smoothing=self.label_smoothing)
        return pairs.at_ends(losses, batch), pairs.shown(losses, scores, batch)
