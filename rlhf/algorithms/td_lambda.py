"""TD(lambda) actor-critic with eligibility traces: the backward view, online (Sutton and Barto, 2018, section 13.6;
http://incompleteideas.net/book).

Each row of a rollout is one stream of experience; with one step a row the weights move at every step, with more they
are held meanwhile. Steps are plain: the optimizer gives the learning rate and the norm to clip at, and takes no part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from rlhf.algorithms import actor_critic
from rlhf.algorithms.base import Method, Whitening
from rlhf.deferred import deferred
from rlhf.errors import InputError, NonFiniteError
from rlhf.optimize import Learner, check_identity, set_learning_rate
from rlhf.settings import Share, Size

with deferred():
    import torch
    from torch import Tensor, nn
    from torch.func import functional_call, grad, vmap

    from rlhf.core import advantages
    from rlhf.core.traces import accumulate
    from rlhf.reduce import MetricSums, gather_rows, global_sum
    from rlhf.rollout import Batch, PolicyOutput, Rollout, batch_of, charge_kl


@dataclass(frozen=True, kw_only=True)
class TDLambda(Method):
    """Accumulating traces, one for each row, averaged over rows; without the book's factor gamma^t (its I), as
    everywhere in this package."""

    # Traces weigh TD errors as they are.
    whitens: ClassVar[tuple[Whitening, ...]] = ("none",)
    single_step: ClassVar[bool] = True

    gamma: Share = 1.0
    """Discount per action, in [0, 1]."""
    actor_lambda: Share = 0.9
    """Decay of the policy's traces beside gamma, in [0, 1]; 0 is one-step actor-critic, 1 Monte Carlo."""
    critic_lambda: Share = 0.9
    """Decay of the critic's traces beside gamma, in [0, 1]."""
    critic_rate: Size = 1.0
    """Step size of the critic over that of the policy."""
    kl_coef: Size = 0.0
    """Charge on the reward per nat of log p(action) - log p_ref(action); 0 is off and needs no reference."""

    @property
    def needs_memoryless(self) -> bool:
        return True

    def initial_state(self) -> dict[str, Tensor]:
        """The traces join it at the first update, when their size is known."""
        return {}

    def estimate(self, rollout: Rollout, state: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        """TD errors r + gamma V(s') - V(s), for policy and critic alike."""
        rewards, metrics = charge_kl(rollout, self.kl_coef)
        targets = advantages.td0_returns(rewards, rollout.next_values, gamma=self.gamma)
        metrics |= actor_critic.critic_metrics(rewards, rollout, gamma=self.gamma)
        return batch_of(rollout, advantages=targets - rollout.values, returns=targets), metrics

    def loss(self, output: PolicyOutput, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """What a step descends if both lambdas are 0."""
        return actor_critic.policy_and_value_loss(output, batch, entropy_coef=0.0, value_coef=self.critic_rate)

    def update(
        self, learner: Learner, rollout: Rollout, batch: Batch, state: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """weights += rate * sum of delta_t z_t over rows and steps, over the number of actions.

        The state holds the traces of every rank's rows.
        """
        model, accelerator = learner.module, learner.accelerator
        if not model.memoryless:
            raise InputError("eligibility traces need the gradient of each action, so a policy without memory.")
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        parameters = list(trained.values())
        gradients, output = _gradients(model, {name: x.detach() for name, x in trained.items()}, batch)
        sums = MetricSums()
        sums.add(self.objective(state)(output, batch)[1], batch.mask)
        metrics = sums.reduce(accelerator)
        check_identity(metrics, accelerator)
        ids, offset = gather_rows(accelerator, rollout.sample_ids)
        traces = state.get("traces", gradients.new_zeros(len(ids), gradients.shape[-1]))
        shape = rollout.mask.shape
        actor_rate = float(state.get("teaches", True))
        critic_rate = self.critic_rate * learner.config.critic_over
        decay, rates = _of_each_weight(model, parameters, self, actor_rate=actor_rate, critic_rate=critic_rate)
        errors = batch.advantages if batch.importance is None else batch.advantages * batch.importance
        updates, traces = accumulate(
            gradients.view(*shape, -1),
            errors.view(shape),
            rollout.dones,
            # A checkpoint hands them back on the CPU.
            traces[offset : offset + shape[0]].to(gradients),
            decay=decay,
        )
        step = (
            rates * global_sum(accelerator, updates.sum(dim=0)) / global_sum(accelerator, batch.mask.sum()).clamp(min=1)
        )
        rate = set_learning_rate(learner)
        norm = _step(parameters, step, rate=rate, most=learner.config.max_gradient_norm)
        metrics |= {"gradient_norm": norm, "gradient_steps": 1, "learning_rate": rate}
        return metrics, {**state, "traces": accelerator.gather(traces)}


def _gradients(model: Any, parameters: dict[str, Tensor], batch: Batch) -> tuple[Tensor, PolicyOutput]:
    """`(N, P)` gradients of log pi(a | s) + V(s), which share no parameter, at each of the single steps."""

    def score(weights: dict[str, Tensor], inputs: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        output = functional_call(model, weights, ({name: x.unsqueeze(0) for name, x in inputs.items()},))
        return (output.logprobs + output.values).sum(), tuple(x.squeeze(0) for x in output)

    gradients, output = vmap(grad(score, has_aux=True), in_dims=(None, 0))(parameters, batch.inputs)
    flat = torch.cat([gradients[name].flatten(1) for name in parameters], dim=1)
    return flat.masked_fill(~batch.mask, 0.0), PolicyOutput(*output)


def _of_each_weight(
    model: Any, parameters: list[nn.Parameter], method: TDLambda, *, actor_rate: float, critic_rate: float
) -> tuple[Tensor, Tensor]:
    """`(P,)` decay of the trace, and step size over the optimizer's."""
    critic = {id(parameter) for parameter in model.critic_parameters()}
    decays, rates = [], []
    for parameter in parameters:
        own = id(parameter) in critic
        lambda_, rate = (method.critic_lambda, critic_rate) if own else (method.actor_lambda, actor_rate)
        decays.append(torch.full_like(parameter, method.gamma * lambda_).flatten())
        rates.append(torch.full_like(parameter, rate).flatten())
    return torch.cat(decays).detach(), torch.cat(rates).detach()


def _step(parameters: list[nn.Parameter], step: Tensor, *, rate: float, most: float) -> float:
    """Adds `rate` times the step, scaled down to the norm `most` (0 is off); returns its norm before that."""
    norm = float(step.norm())
    if not math.isfinite(norm):
        raise NonFiniteError("the update by eligibility traces is not finite.")
    scale = rate * min(1.0, most / norm) if most and norm else rate
    parts = step.split([parameter.numel() for parameter in parameters])
    with torch.no_grad():
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.add_(part.view_as(parameter), alpha=scale)
    return norm
