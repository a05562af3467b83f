"""Kahneman-Tversky optimisation (Ethayarajh et al., 2024; https://arxiv.org/abs/2402.01306)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rlhf import optimize
from rlhf.algorithms.base import LearnsFrom, Method, Whitening
from rlhf.algorithms.pairs import row_sums
from rlhf.deferred import deferred
from rlhf.errors import InputError
from rlhf.optimize import Learner
from rlhf.settings import Positive, Size

with deferred():
    import torch
    from torch import Tensor

    from rlhf.acting import rescored
    from rlhf.core import preferences
    from rlhf.reduce import global_sum
    from rlhf.rollout import Batch, PolicyOutput, Rollout, batch_of
    from rlhf.sharded import whole


@dataclass(frozen=True, kw_only=True)
class KTO(Method):
    """KTO: the policy learns from answers that are each labelled desirable or not; nobody needs to compare two."""

    whitens: ClassVar[tuple[Whitening, ...]] = ("none",)
    rows: ClassVar[Literal["steps", "episodes", "groups"]] = "episodes"
    learns_from: ClassVar[LearnsFrom] = "labels"
    stops_early: ClassVar[bool] = False
    compares: ClassVar[bool] = False
    critic_of: ClassVar[str] = "none"

    beta: Positive = 0.1
    """Score of a nat of log-ratio to the reference: how soon a row counts as won, or lost, and is left alone."""
    desirable_weight: Size = 1.0
    """Weight of desirable rows; weights in proportion 1 / number of rows to 4/3 of that keep rare ones heard."""
    undesirable_weight: Size = 1.0
    """Weight of undesirable rows."""

    def __post_init__(self) -> None:
        if self.desirable_weight == self.undesirable_weight == 0:
            raise InputError("desirable_weight and undesirable_weight are both 0, so nothing would be learned.")

    @property
    def needs_reference(self) -> bool:
        return True

    def estimate(self, rollout: Rollout, state: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        """The rows as they are, each averaged over once, at its last action."""
        ends, ones = rollout.dones.to(rollout.rewards), rollout.mask.to(rollout.rewards)
        return batch_of(rollout, advantages=ones, units=ends)._replace(rewards=rollout.rewards), {}

    def update(
        self, learner: Learner, rollout: Rollout, batch: Batch, state: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Measures the KL to the reference on rows without a label, then learns from the others."""
        kl = self._kl(learner, rollout)
        labelled = rollout.rewards.sum(1) != 0.0
        told = {**state, "kl": torch.tensor(kl)}
        metrics = optimize.update(learner, batch.rows(labelled.nonzero().squeeze(1)), self.objective(told))
        return metrics | {"kl_to_reference": kl}, state

    def _kl(self, learner: Learner, rollout: Rollout) -> float:
        """max(0, mean log-ratio of answers to other prompts than their own), over all ranks: the estimate of section
        4.1, which is biased, and cheap."""
        exchanged = rollout.rows((rollout.rewards.sum(1) == 0.0).nonzero().squeeze(1))
        cost = learner.config.micro_batch_cost
        with whole(learner.module):
            seen = rescored(learner.module, exchanged, accelerator=learner.accelerator, micro_batch_cost=cost)
        assert seen.ref_logprobs is not None
        log_ratios = (seen.logprobs - seen.ref_logprobs).double()
        rows = torch.tensor(float(len(log_ratios)), device=log_ratios.device, dtype=torch.float64)
        total, count = global_sum(learner.accelerator, torch.stack([log_ratios.sum(), rows])).tolist()
        return max(0.0, total / max(count, 1.0))

    def row_scores(self, output: PolicyOutput, batch: Batch) -> Tensor:
        """beta * log pi(row) / pi_ref(row) (eq. 7)."""
        assert batch.ref_logprobs is not None
        return self.beta * row_sums(output.logprobs - batch.ref_logprobs, batch)

    def loss(self, output: PolicyOutput, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """What is lost of a row's value (eq. 8), at its last action."""
        assert batch.rewards is not None
        scores, desirable = self.row_scores(output, batch), batch.rewards.sum(1) > 0
        losses = preferences.prospect_loss(
            scores / self.beta,
            desirable,
            kl=state["kl"].to(scores),
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )
        return losses.unsqueeze(1) * batch.units, {"preference_loss": losses.detach(), "score": scores.detach()}
