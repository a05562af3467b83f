"""Proximal policy optimisation with a clipped surrogate (Schulman et al., 2017; https://arxiv.org/abs/1707.06347)."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.algorithms.actor_critic import Schedule, critic_metrics, scheduled
from rlhf.algorithms.base import Method
from rlhf.algorithms.checks import require_dual_clip
from rlhf.deferred import deferred
from rlhf.errors import InputError
from rlhf.settings import Positive, Share, Size, TotalOrNone

with deferred():
    import torch
    from torch import Tensor

    from rlhf.core import losses
    from rlhf.core.advantages import gae, length_adaptive_lambda
    from rlhf.rollout import Batch, PolicyOutput, Rollout, batch_of, charge_kl


@dataclass(frozen=True, kw_only=True)
class PPO(Method):
    """PPO with generalized advantage estimates and an optional KL charge against a reference policy."""

    gamma: Share = 1.0
    """Discount per action, in [0, 1]."""
    gae_lambda: Share = 0.95
    """Bias-variance trade-off of the advantages, in [0, 1]; 1 is Monte Carlo minus the value."""
    critic_lambda: Share | None = None
    """Lambda of what the values are fitted to, where it is another than the advantages': 1 for long responses that are
    paid at their end (Yuan et al., 2025; https://arxiv.org/abs/2503.01491); None: the same."""
    length_alpha: Size = 0.0
    """Above 0, the advantages' lambda is 1 - 1 / (alpha * length) for an episode of that length, in the place of
    gae_lambda (VAPO; Yue et al., 2025, section 4.2, where alpha is 0.05; https://arxiv.org/abs/2504.05118)."""
    clip: Positive = 0.2
    """The ratio new / old gains nothing beyond 1 +- clip."""
    clip_high: Size = 0.0
    """Upwards it gains nothing beyond 1 + this: more room than clip lets what is unlikely become likely (DAPO; Yu et
    al., 2025, eq. 10, where it is 0.28; https://arxiv.org/abs/2503.14476); 0: the same as clip."""
    dual_clip: Size = 0.0
    """Where the advantage is negative, the loss is at most this times its size (Ye et al., 2020, eq. 5, where it is 3;
    https://arxiv.org/abs/1912.09729), above 1; 0 is off."""
    clip_schedule: Schedule = "constant"
    """linear: clip and clip_high shrink to 0 over the run."""
    value_clip: Size = 0.0
    """The value moves at most this far from the old one before its loss stops falling; 0 is off."""
    value_coef: Size = 0.5
    """Weight of the value loss, which is half a squared error."""
    entropy_coef: Size = 0.0
    """Weight of the entropy bonus, nats per action."""
    critic_warmup: TotalOrNone = 0
    """Updates at the start that train the critic only; the policy stays as it is, also where they share a trunk."""
    kl_coef: Size = 0.0
    """Charge on the reward per nat of log p(action) - log p_ref(action); 0 is off and needs no reference."""
    kl_target: Size = 0.0
    """Nats per episode that the coefficient is steered to (Ziegler et al., 2019, section 2.2); 0 keeps it fixed."""

    def __post_init__(self) -> None:
        if self.kl_target > 0 and self.kl_coef == 0:
            raise InputError("kl_target adapts kl_coef by factors, so kl_coef must be positive; it is 0.")
        require_dual_clip(self.dual_clip)

    @property
    def needs_critic(self) -> bool:
        return self.critic_warmup > 0

    @property
    def needs_episodes(self) -> bool:
        return super().needs_episodes or self.length_alpha > 0

    def initial_state(self) -> dict[str, Tensor]:
        return {"kl_coef": torch.tensor(self.kl_coef, dtype=torch.float64)}

    def estimate(self, rollout: Rollout, state: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        """Rewards less the KL charge, their GAE, and advantage plus value, which the values are fitted to."""
        rewards, metrics = charge_kl(rollout, state["kl_coef"] if self.kl_coef else 0.0)
        given = (rewards, rollout.values, rollout.next_values, rollout.dones)
        gae_lambda: float | Tensor = self.gae_lambda
        if self.length_alpha > 0:
            gae_lambda = length_adaptive_lambda(rollout.mask, alpha=self.length_alpha).to(rewards)
        advantages = fitted = gae(*given, gamma=self.gamma, gae_lambda=gae_lambda)
        if self.critic_lambda is not None:
            fitted = gae(*given, gamma=self.gamma, gae_lambda=self.critic_lambda)
        metrics |= critic_metrics(rewards, rollout, gamma=self.gamma)
        return batch_of(rollout, advantages=advantages, returns=fitted + rollout.values), metrics

    def clip_range(self, state: dict[str, Tensor], like: Tensor) -> tuple[float | Tensor, float | Tensor]:
        sizes = (self.clip, self.clip_high or self.clip)
        low, high = (scheduled(size, self.clip_schedule, state, like=like) for size in sizes)
        return low, high

    def loss(self, output: PolicyOutput, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Clipped surrogate (eq. 7), value loss and entropy bonus (eq. 9) per action, and what to log of them."""
        low, high = self.clip_range(state, output.logprobs)
        policy_loss = losses.clipped_surrogate_loss(
            output.logprobs, batch.logprobs, batch.advantages, clip=low, clip_high=high
        )
        if self.dual_clip > 0:
            policy_loss = losses.dual_clipped(policy_loss, batch.advantages, most=self.dual_clip)
        if self.value_clip > 0:
            value_loss = losses.clipped_value_loss(output.values, batch.values, batch.returns, clip=self.value_clip)
        else:
            value_loss = losses.value_loss(output.values, batch.returns)
        warm = (state["update"] >= self.critic_warmup).to(output.logprobs)
        terms = warm * (policy_loss - self.entropy_coef * output.entropy) + self.value_coef * value_loss
        return terms, {"policy_loss": policy_loss.detach(), "value_loss": value_loss.detach()}

    def fits_critic_only(self, state: dict[str, Tensor]) -> bool:
        return bool(state["update"] < self.critic_warmup) or super().fits_critic_only(state)

    def adapt(self, state: dict[str, Tensor], metrics: dict[str, float]) -> dict[str, Tensor]:
        """Steers the KL coefficient by the very KL that is logged: x (1 + 0.1 clip(KL / target - 1, -0.2, 0.2))."""
        if self.kl_target == 0:
            return state
        error = min(max(metrics["kl_ref_per_episode"] / self.kl_target - 1.0, -0.2), 0.2)
        return {**state, "kl_coef": state["kl_coef"] * (1.0 + 0.1 * error)}
