"""Soft actor-critic with twin critics (Haarnoja et al., 2018, https://arxiv.org/abs/1801.01290) and a learned
temperature (Haarnoja et al., 2019, https://arxiv.org/abs/1812.05905), on replayed transitions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from torch import Tensor

from rlhf import optimize, replay
from rlhf.core.random import gaussians, uniforms
from rlhf.optimize import Learner
from rlhf.rollout import Batch, Rollout

# There are no advantages to scale.
WHITEN = "none"


@dataclass(frozen=True, kw_only=True)
class Config:
    """SAC; `optimize.epochs` x `optimize.minibatches` steps an update, each on `batch_size` transitions."""

    gamma: float = 0.99
    """Discount per action, in [0, 1]."""
    batch_size: int = 256
    """Replayed transitions in each gradient step, over all processes."""
    target_rate: float = 0.005
    """Share of the way that the target critics go to the critics after each gradient step."""
    target_entropy: float = -1.0
    """Nats per number of an action that the temperature steers the entropy to, on the scale of bounds -1 and 1."""

    def __post_init__(self) -> None:
        replay.require_ranges(self)


class Output(NamedTuple):
    """What SAC asks of a policy: `(B, T)`, values `(B, T, 2)`, one for each of the twin critics."""

    values: Tensor
    """Of the replayed actions."""
    logprobs: Tensor
    """Of actions drawn now, a = f(inputs["noise"], s), nats; the gradient goes through the draw as well."""
    sampled_values: Tensor
    """Of these; the gradient goes to them, not to the critics."""
    next_logprobs: Tensor
    """Of actions drawn from inputs["next_noise"] where the replayed ones led; no gradient."""
    next_values: Tensor
    """Of these, by the target critics; no gradient."""
    log_temperature: Tensor


def initial_state(config: Config) -> dict[str, Tensor]:
    return {}


def estimate(rollout: Rollout, state: dict[str, Tensor], config: Config) -> tuple[Batch, dict[str, Tensor]]:
    """Nothing yet: the targets are renewed at every gradient step."""
    return replay.transitions(rollout), {}


def loss(output: Output, batch: Batch, state: dict[str, Tensor], config: Config) -> tuple[Tensor, dict[str, Tensor]]:
    """J_Q (2019, eq. 5) + J_pi (eq. 7) + J_alpha (eq. 17, in log alpha); each has parameters of its own."""
    temperature = output.log_temperature.detach().exp()
    next_values = output.next_values.amin(-1) - temperature * output.next_logprobs
    targets = replay.one_step_targets(batch, next_values, gamma=config.gamma)
    value_loss = replay.critic_loss(output.values, targets)
    policy_loss = temperature * output.logprobs - output.sampled_values.amin(-1)
    target_entropy = config.target_entropy * batch.inputs["actions"].shape[-1]
    temperature_loss = -output.log_temperature * (output.logprobs.detach() + target_entropy)
    metrics = replay.critic_metrics(output.values, targets) | {
        "policy_loss": policy_loss.detach(),
        "value_loss": value_loss.detach(),
        "entropy": -output.logprobs.detach(),
        "temperature": temperature,
    }
    return value_loss + policy_loss + temperature_loss, metrics


def update(
    learner: Learner, rollout: Rollout, batch: Batch, state: dict[str, Tensor], config: Config
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Gradient steps on all parts at once, from the weights before the step, each followed by the target critics."""
    size = batch.inputs["actions"].shape[-1]
    draws = uniforms(learner.seed, "actions at replayed states", learner.update_index, batch.sample_ids, 2 * size)
    noise, next_noise = gaussians(draws).to(batch.mask.device, batch.values.dtype).unsqueeze(1).chunk(2, dim=-1)
    batch = batch._replace(inputs={**batch.inputs, "noise": noise, "next_noise": next_noise})
    bound = partial(loss, state=state, config=config)
    after = replay.follow(learner.module, rate=config.target_rate)
    return optimize.update(learner, batch, bound, after_step=after), state


def adapt(state: dict[str, Tensor], metrics: dict[str, float], config: Config) -> dict[str, Tensor]:
    return state
