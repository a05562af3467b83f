"""Proximal policy optimisation with a clipped surrogate (Schulman et al., 2017; https://arxiv.org/abs/1707.06347)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.algorithms import actor_critic
from rlhf.core import kl, losses
from rlhf.errors import InputError
from rlhf.rollout import Batch, PolicyOutput, Rollout


@dataclass(frozen=True, kw_only=True)
class Config:
    """PPO with generalized advantage estimates and an optional KL charge against a reference policy."""

    gamma: float = 1.0
    """Discount per action, in [0, 1]."""
    gae_lambda: float = 0.95
    """Bias-variance trade-off of the advantages, in [0, 1]; 1 is Monte Carlo minus the value."""
    clip: float = 0.2
    """The ratio new / old gains nothing beyond 1 +- clip."""
    clip_schedule: actor_critic.Schedule = "constant"
    """linear: the clip shrinks to 0 over the run."""
    value_clip: float = 0.0
    """The value moves at most this far from the old one before its loss stops falling; 0 is off."""
    value_coef: float = 0.5
    """Weight of the value loss, which is half a squared error."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus, nats per action."""
    critic_warmup: int = 0
    """Updates at the start that train the critic only."""
    kl_coef: float = 0.0
    """Charge on the reward per nat of log p(action) - log p_ref(action); 0 is off and needs no reference."""
    kl_target: float = 0.0
    """Nats per episode that the coefficient is steered to (Ziegler et al., 2019, section 2.2); 0 keeps it fixed."""

    def __post_init__(self) -> None:
        sizes = ("value_clip", "value_coef", "entropy_coef", "critic_warmup", "kl_coef", "kl_target")
        actor_critic.check(self, shares=("gamma", "gae_lambda"), sizes=sizes)
        if not self.clip > 0:
            raise InputError(f"clip is {self.clip}; it must be positive, 0.2 is usual.")
        if self.kl_target > 0 and self.kl_coef == 0:
            raise InputError("kl_target adapts kl_coef by factors, so kl_coef must be positive; it is 0.")


def initial_state(config: Config) -> dict[str, Tensor]:
    return {"kl_coef": torch.tensor(config.kl_coef, dtype=torch.float64)}


def estimate(rollout: Rollout, state: dict[str, Tensor], config: Config) -> tuple[Batch, dict[str, Tensor]]:
    """GAE, less the KL to a reference, if there is one."""
    return actor_critic.gae_batch(rollout, kl_coef=state["kl_coef"], gamma=config.gamma, gae_lambda=config.gae_lambda)


def loss(
    output: PolicyOutput, batch: Batch, state: dict[str, Tensor], config: Config
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate (eq. 7), value loss and entropy bonus (eq. 9) per action, and what to log of them."""
    clip = actor_critic.scheduled(config.clip, config.clip_schedule, state, like=output.logprobs)
    policy_loss = losses.clipped_surrogate_loss(output.logprobs, batch.logprobs, batch.advantages, clip=clip)
    if config.value_clip > 0:
        value_loss = losses.clipped_value_loss(output.values, batch.values, batch.returns, clip=config.value_clip)
    else:
        value_loss = losses.value_loss(output.values, batch.returns)
    warm = (state["update"] >= config.critic_warmup).to(output.logprobs)
    terms = warm * (policy_loss - config.entropy_coef * output.entropy) + config.value_coef * value_loss
    with torch.no_grad():
        metrics = kl.movement(output.logprobs, batch.logprobs) | {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": output.entropy,
        }
        metrics["clip_fraction"] = ((metrics["ratio_max"] - 1.0).abs() > clip).to(policy_loss)
    return terms, metrics


def adapt(state: dict[str, Tensor], metrics: dict[str, float], config: Config) -> dict[str, Tensor]:
    """Steers the KL coefficient by the very KL that is logged: x (1 + 0.1 clip(KL / target - 1, -0.2, 0.2))."""
    if config.kl_target == 0:
        return state
    error = min(max(metrics["kl_ref_per_episode"] / config.kl_target - 1.0, -0.2), 0.2)
    return {**state, "kl_coef": state["kl_coef"] * (1.0 + 0.1 * error)}
