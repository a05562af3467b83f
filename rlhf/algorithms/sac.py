"""Soft actor-critic with twin critics (Haarnoja et al., 2018, https://arxiv.org/abs/1801.01290) and a learned
temperature (Haarnoja et al., 2019, https://arxiv.org/abs/1812.05905), on replayed transitions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from rlhf import optimize
from rlhf.algorithms import replayed
from rlhf.algorithms.base import Method, Whitening
from rlhf.deferred import deferred
from rlhf.optimize import Learner
from rlhf.settings import Count, Share, ShareAboveZero

with deferred():
    from torch import Tensor

    from rlhf.core.random import gaussians, uniforms
    from rlhf.rollout import Batch, Rollout


@dataclass(frozen=True, kw_only=True)
class SAC(Method):
    """SAC; `optimize.epochs` x `optimize.minibatches` steps an update, each on `batch_size` transitions."""

    whitens: ClassVar[tuple[Whitening, ...]] = ("none",)
    stops_early: ClassVar[bool] = False
    compares: ClassVar[bool] = False
    replays: ClassVar[bool] = True
    actions: ClassVar[Literal["discrete", "vectors", "either"]] = "vectors"
    critic_of: ClassVar[str] = "actions"

    gamma: Share = 0.99
    """Discount per action, in [0, 1]."""
    batch_size: Count = 256
    """Replayed transitions in each gradient step, over all processes."""
    target_rate: ShareAboveZero = 0.005
    """Share of the way that the target critics go to the critics after each gradient step."""
    target_entropy: float = -1.0
    """Nats per number of an action that the temperature steers the entropy to, on the scale of bounds -1 and 1."""

    def estimate(self, rollout: Rollout, state: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        """Nothing yet: the targets are renewed at every gradient step."""
        return replayed.transitions(rollout), {}

    def loss(self, output: Output, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """J_Q (2019, eq. 5) + J_pi (eq. 7) + J_alpha (eq. 17, in log alpha); each has parameters of its own."""
        temperature = output.log_temperature.detach().exp()
        next_values = output.next_values.amin(-1) - temperature * output.next_logprobs
        targets = replayed.one_step_targets(batch, next_values, gamma=self.gamma)
        value_loss = replayed.critic_loss(output.values, targets)
        policy_loss = temperature * output.logprobs - output.sampled_values.amin(-1)
        target_entropy = self.target_entropy * batch.inputs["actions"].shape[-1]
        temperature_loss = -output.log_temperature * (output.logprobs.detach() + target_entropy)
        metrics = replayed.critic_metrics(output.values, targets) | {
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "entropy": -output.logprobs.detach(),
            "temperature": temperature,
        }
        return value_loss + policy_loss + temperature_loss, metrics

    def update(
        self, learner: Learner, rollout: Rollout, batch: Batch, state: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Gradient steps on all parts at once, each followed by the target critics."""
        size = batch.inputs["actions"].shape[-1]
        draws = uniforms(learner.seed, "actions at replayed states", learner.update_index, batch.sample_ids, 2 * size)
        noise, next_noise = gaussians(draws).to(batch.mask.device, batch.values.dtype).unsqueeze(1).chunk(2, dim=-1)
        batch = batch._replace(inputs={**batch.inputs, "noise": noise, "next_noise": next_noise})
        bound = self.objective(state)
        after = replayed.follow(learner.module, rate=self.target_rate)
        return optimize.update(learner, batch, bound, after_step=after), state


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
