"""Reward models from pairs (Bradley and Terry, 1952; Christiano et al., 2017; https://arxiv.org/abs/1706.03741)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rlhf.algorithms import pairs
from rlhf.algorithms.base import LearnsFrom, Method, Whitening
from rlhf.deferred import deferred
from rlhf.settings import Size

with deferred():
    import torch
    from torch import Tensor

    from rlhf.core import preferences
    from rlhf.rollout import Batch, PolicyOutput, Rollout


@dataclass(frozen=True, kw_only=True)
class BradleyTerry(Method):
    """A reward model: the value of a row's end is its score, and a pair's margin the log-odds that people chose so."""

    name: ClassVar[str] = "reward_model"
    rows: ClassVar[Literal["steps", "episodes", "groups"]] = "groups"
    whitens: ClassVar[tuple[Whitening, ...]] = ("none",)
    learns_from: ClassVar[LearnsFrom] = "pairs"
    reads_ends: ClassVar[bool] = True
    stops_early: ClassVar[bool] = False
    compares: ClassVar[bool] = False
    # What is saved of it at the end is one process's whole model.
    shardable: ClassVar[bool] = False

    margin_coef: Size = 0.0
    """Weight of the margin that people gave a pair (1 where they gave none), by which its scores are to differ at least
    (Touvron et al., 2023, eq. 2; https://arxiv.org/abs/2307.09288)."""
    centring_coef: Size = 0.0
    """Weight of the square of the sum of a pair's scores, so that scores have mean 0 (Eisenstein et al., 2023, eq. 2;
    https://arxiv.org/abs/2312.09244)."""

    @property
    def needs_critic(self) -> bool:
        return True

    def estimate(self, rollout: Rollout, state: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        """The pairs as they are."""
        return pairs.pair_batch(rollout), {}

    def row_scores(self, output: PolicyOutput, batch: Batch) -> Tensor:
        """The value at each row's last action; of a language model's rows, that is the only one."""
        return torch.where(batch.units > 0, output.values, 0.0).sum(1)

    def loss(self, output: PolicyOutput, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """-log sigmoid(margin - margin_coef m) + centring_coef (sum of the scores)^2, at the end of both rows."""
        assert batch.rewards is not None
        scores = self.row_scores(output, batch)
        asked = batch.rewards.sum(1).abs().view(-1, 2).sum(1)
        losses = preferences.bradley_terry_loss(pairs.margins(scores, batch) - self.margin_coef * asked)
        terms = losses + self.centring_coef * scores.view(-1, 2).sum(1).square()
        return pairs.at_ends(terms, batch), pairs.shown(losses, scores, batch)
