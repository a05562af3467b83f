"""What the actor-critic methods share: what the critic learns and when, and the loss per action."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from rlhf import optimize
from rlhf.deferred import deferred
from rlhf.optimize import Learner
from rlhf.settings import Count, CountOrNone, Settings, Share, Size

with deferred():
    import torch
    from torch import Tensor, nn

    from rlhf.acting import rescored
    from rlhf.core import advantages, losses
    from rlhf.core.random import derive_seed
    from rlhf.reduce import advantage_metrics
    from rlhf.rollout import Batch, PolicyOutput, Rollout, batch_of, charge_kl, single_steps
    from rlhf.sharded import whole

Schedule = Literal["constant", "linear"]


@dataclass(frozen=True, kw_only=True)
class Critic(Settings):
    """What the critic is fitted to, and whether before the advantages are evaluated or together with the policy."""

    target: Literal["monte_carlo", "td0", "n_step", "td_lambda"] = "td_lambda"
    """What values are fitted to; with the td_lambda of the advantages' gae_lambda it is advantage plus value."""
    num_steps: Count = 5
    """Rewards in an n_step target before the critic's value takes over."""
    td_lambda: Share = 1.0
    """Lambda of a td_lambda target, in [0, 1]; 0 is td0, 1 monte_carlo."""
    coef: Size = 0.5
    """Weight of the value loss, half a squared error, beside the policy's; not used if epochs is positive."""
    epochs: CountOrNone = 0
    """Passes that fit the critic alone, before the advantages are evaluated with it. 0: it learns together with the
    policy, and the advantages are those of the values captured while acting."""
    renew_labels: bool = False
    """The targets are computed again, from the critic as it has become, before each of the passes in `epochs`."""

    @property
    def loss_coef(self) -> float:
        """Weight of the value loss in the policy's step."""
        return 0.0 if self.epochs else self.coef


def scheduled(size: float, schedule: Schedule, state: dict[str, Tensor], like: Tensor | None = None) -> float | Tensor:
    """`size` throughout, or, linear, falling from it to 0 over the run, of the type and on the device of `like`."""
    if schedule == "constant":
        return size
    return size * (1.0 - (state["progress"] if like is None else state["progress"].to(like)))


def gae_batch(rollout: Rollout, *, kl_coef: float, gamma: float, gae_lambda: float) -> tuple[Batch, dict[str, Tensor]]:
    """Rewards less the charge for the KL to a reference, if there is one, and their GAE, as in PPO."""
    rewards, metrics = charge_kl(rollout, kl_coef)
    estimates = advantages.gae(
        rewards, rollout.values, rollout.next_values, rollout.dones, gamma=gamma, gae_lambda=gae_lambda
    )
    metrics |= critic_metrics(rewards, rollout, gamma=gamma)
    return batch_of(rollout, advantages=estimates, returns=estimates + rollout.values), metrics


def critic_targets(rewards: Tensor, rollout: Rollout, critic: Critic, *, gamma: float) -> Tensor:
    """`(B, T)` what the critic's values are fitted to, from rewards that may have been charged."""
    next_values, dones = rollout.next_values, rollout.dones
    match critic.target:
        case "monte_carlo":
            return advantages.monte_carlo_returns(rewards, next_values, dones, gamma=gamma)
        case "td0":
            return advantages.td0_returns(rewards, next_values, gamma=gamma)
        case "n_step":
            return advantages.n_step_returns(rewards, next_values, dones, gamma=gamma, num_steps=critic.num_steps)
        case "td_lambda":
            return advantages.lambda_returns(rewards, next_values, dones, gamma=gamma, lambda_=critic.td_lambda)


def critic_metrics(rewards: Tensor, rollout: Rollout, *, gamma: float) -> dict[str, Tensor]:
    td_errors = rewards + gamma * rollout.next_values - rollout.values
    return {"td_error": td_errors.abs(), "value_max": rollout.values}


def policy_and_value_loss(
    output: PolicyOutput, batch: Batch, *, entropy_coef: float, value_coef: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """-log pi A - entropy_coef H + value_coef (V - R)^2 / 2 per action (Mnih et al., 2016, section 4;
    https://arxiv.org/abs/1602.01783), and what to log of it.
    """
    policy_loss = losses.policy_gradient_loss(output.logprobs, batch.advantages)
    value_loss = losses.value_loss(output.values, batch.returns)
    terms = policy_loss - entropy_coef * output.entropy + value_coef * value_loss
    return terms, {"policy_loss": policy_loss.detach(), "value_loss": value_loss.detach()}


def update(
    learner: Learner,
    rollout: Rollout,
    batch: Batch,
    loss: optimize.Loss,
    *,
    critic: Critic,
    evaluate: Callable[[Rollout], Batch],
) -> dict[str, float]:
    """One step of policy and critic together, or the critic first and then the policy by what the critic now says.

    Args:
        batch: By the values captured while acting, as the policy scores it.
        evaluate: Advantages and critic targets, `(B, T)`, from a rollout whose values are the critic's.
    """
    if not critic.epochs:
        seen = advantage_metrics(learner.accelerator, batch.advantages, batch.mask)
        return seen | optimize.update(learner, batch, loss)
    model, config = learner.module, learner.config
    own = model.critic_parameters()
    num_fits, epochs = (critic.epochs, 1) if critic.renew_labels else (1, critic.epochs)
    errors = []
    for fit in range(num_fits):
        order = derive_seed(learner.seed, "critic fit", fit)
        errors.append(fit_critic(replace(learner, config=replace(config, epochs=epochs), seed=order), batch))
        acted = rollout.logprobs
        with whole(model):
            rollout = rescored(
                model, rollout, accelerator=learner.accelerator, micro_batch_cost=config.micro_batch_cost
            )
        # The fit left the policy as it was: what the policy's step is checked against is what was said while acting.
        rollout = replace(rollout, logprobs=acted)
        batch = evaluate(rollout)
        batch = single_steps(batch) if model.memoryless else batch
    fitted = {id(parameter) for parameter in own}
    others = [parameter for parameter in model.parameters() if id(parameter) not in fitted]
    seen = advantage_metrics(learner.accelerator, batch.advantages, batch.mask)
    with stepping_only(learner.optimizer, others):
        metrics = optimize.update(learner, batch, loss)
    return seen | metrics | {"value_loss_fitting": sum(row["value_loss"] for row in errors) / len(errors)}


def fit_critic(learner: Learner, batch: Batch) -> dict[str, float]:
    """Epochs of regression of the values on `batch.returns`, in which nothing but the critic's own parameters moves."""
    fitting = replace(learner.config, whiten="none", target_kl=0.0)
    with stepping_only(learner.optimizer, learner.module.critic_parameters()):
        return optimize.update(replace(learner, config=fitting), batch, _critic_loss)


@contextmanager
def stepping_only(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """The optimizer has no others meanwhile: even a gradient of 0 would still move them by Adam's momentum."""
    chosen = {id(parameter) for parameter in parameters}
    whole = [group["params"] for group in optimizer.param_groups]
    for group, all_of_it in zip(optimizer.param_groups, whole, strict=True):
        group["params"] = [parameter for parameter in all_of_it if id(parameter) in chosen]
    try:
        yield
    finally:
        for group, all_of_it in zip(optimizer.param_groups, whole, strict=True):
            group["params"] = all_of_it


def _critic_loss(output: PolicyOutput, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    value_loss = losses.value_loss(output.values, batch.returns)
    # The policy does not learn here, but data parallelism needs every parameter in the graph.
    return value_loss + 0.0 * (output.logprobs + output.entropy), {"value_loss": value_loss.detach()}
