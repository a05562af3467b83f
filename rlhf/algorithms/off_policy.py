"""Off-policy policy gradient: actions of lagging actors, made the learner's by importance weights (Degris et al., 2012;
https://arxiv.org/abs/1205.4839; Sutton and Barto, 2018, sections 5.5 and 5.9).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rlhf.algorithms import actor_critic
from rlhf.algorithms.base import Method
from rlhf.deferred import deferred
from rlhf.settings import Share, Size

with deferred():
    import torch
    from torch import Tensor

    from rlhf.core import advantages, importance, kl, losses
    from rlhf.rollout import Batch, PolicyOutput, Rollout, batch_of, charge_kl


@dataclass(frozen=True, kw_only=True)
class OffPolicy(Method):
    """Policy gradient on data of another policy, as of actors that lag (`collect.lag`)."""

    corrects_lag: ClassVar[bool] = True

    gamma: Share = 1.0
    """Discount per action, in [0, 1]."""
    ratios: Literal["action", "trajectory", "decision"] = "action"
    """What corrects for the actor. action: the ratio of this action alone, which is biased; trajectory: the product
    over the episode, unbiased; decision: the product until this action, and returns corrected from it on, unbiased. The
    products need whole episodes as rows, and explode with their length."""
    self_normalised: bool = False
    """Divide by the sum of the weights and not by their number: biased, of far less variance."""
    baseline: Literal["none", "value"] = "value"
    """Taken off the returns; value: of the state, by the critic, which learns along."""
    units: Literal["episode", "action"] = "action"
    """What the gradient is averaged over: episodes, which is unbiased, or actions."""
    value_coef: Size = 0.5
    """Weight of the value loss, which is half a squared error; without a value baseline there is none."""
    entropy_coef: Size = 0.0
    """Weight of the entropy bonus, nats per action."""
    kl_coef: Size = 0.0
    """Charge on the reward per nat of log p(action) - log p_ref(action); 0 is off and needs no reference."""

    @property
    def critic_of(self) -> str:  # type: ignore[override]
        return "states" if self.baseline == "value" else "none"

    @property
    def needs_critic(self) -> bool:
        return self.baseline == "value"

    @property
    def needs_episodes(self) -> bool:
        return self.ratios != "action"

    def initial_state(self) -> dict[str, Tensor]:
        return {"effective_samples": torch.tensor(0.0, dtype=torch.float64)}

    def estimate(self, rollout: Rollout, state: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        """Returns less the baseline, and the weights of the learner, as it is before this update, over the actor."""
        rewards, metrics = charge_kl(rollout, self.kl_coef)
        log_ratios, dones = rollout.logprobs - rollout.behaviour_logprobs, rollout.dones
        critic = self.baseline == "value"
        # Without a critic nothing is known of what a cut episode would still have earned.
        next_values = rollout.next_values if critic else torch.zeros_like(rollout.next_values)
        corrected = self.ratios == "decision"
        discounts = importance.corrected_discounts(log_ratios, dones, gamma=self.gamma) if corrected else self.gamma
        returns = advantages.monte_carlo_returns(rewards, next_values, dones, gamma=discounts)
        match self.ratios:
            case "action":
                ratios = importance.action_ratios(log_ratios)
            case "trajectory":
                ratios = importance.trajectory_ratios(log_ratios, dones)
            case "decision":
                ratios = importance.decision_ratios(log_ratios, dones)
        cells = rollout.mask.to(rewards)
        # An episode counts once, over all of its steps.
        shares = cells / importance.episode_sums(cells, dones).clamp(min=1.0)
        units = shares if self.units == "episode" else cells
        samples = shares if self.ratios == "trajectory" else cells
        metrics |= {"weight": samples * ratios, "weight_squared": samples * ratios.square(), "weight_max": ratios}
        metrics["behaviour_kl_k3"] = kl.k3(rollout.behaviour_logprobs, rollout.logprobs)
        if critic:
            metrics |= actor_critic.critic_metrics(rewards, rollout, gamma=self.gamma)
        batch = batch_of(
            rollout,
            advantages=returns - rollout.values if critic else returns,
            returns=returns,
            weights=cells * ratios,
            units=units * ratios if self.self_normalised else units,
        )
        return batch, metrics

    def loss(self, output: PolicyOutput, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """-(pi / pi_old) A, which the batch's weights make -(pi / b) A, value loss and entropy bonus, per action.

        In later steps on one batch the ratio of this action follows the policy; other factors of a product stay as they
        were before the update.
        """
        policy_loss = importance.surrogate_loss(output.logprobs, batch.logprobs, batch.advantages)
        value_loss = losses.value_loss(output.values, batch.returns)
        value_coef = self.value_coef if self.baseline == "value" else 0.0
        terms = policy_loss - self.entropy_coef * output.entropy + value_coef * value_loss
        metrics = {"policy_loss": policy_loss.detach()}
        if self.baseline == "value":
            metrics["value_loss"] = value_loss.detach()
        return terms, metrics

    def adapt(self, state: dict[str, Tensor], metrics: dict[str, float]) -> dict[str, Tensor]:
        """The effective sample size, in episodes for trajectory ratios and else in actions, to be logged."""
        # Means over actions; times their number they are the sums.
        weights, squares = (torch.tensor(metrics[name], dtype=torch.float64) for name in ("weight", "weight_squared"))
        return {**state, "effective_samples": metrics["steps"] * importance.effective_sample_size(weights, squares)}
