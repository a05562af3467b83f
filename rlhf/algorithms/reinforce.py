"""REINFORCE: log-probabilities weighed by returns of whole episodes (Williams, 1992; https://doi.org/10.1007/BF00992696)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rlhf import optimize
from rlhf.algorithms import actor_critic
from rlhf.algorithms.base import Method, Whitening
from rlhf.deferred import deferred
from rlhf.errors import InputError
from rlhf.optimize import Learner
from rlhf.settings import Count, Share, Size

with deferred():
    import torch
    from accelerate import Accelerator
    from torch import Tensor, nn

    from rlhf.core import advantages
    from rlhf.core.baselines import mean_return, mean_return_of_others, squared_gradient_norms
    from rlhf.reduce import advantage_metrics, global_max, global_sum
    from rlhf.rollout import Batch, PolicyOutput, Rollout, batch_of, charge_kl

# Gradients of single actions that are held at once for the baseline of least variance.
CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class Reinforce(Method):
    """REINFORCE on whole episodes; it takes one step on each batch: optimize.epochs and optimize.minibatches are 1."""

    single_step: ClassVar[bool] = True

    gamma: Share = 1.0
    """Discount per action, in [0, 1]."""
    returns: Literal["to_go", "total"] = "to_go"
    """What an action is credited with: the rewards from it on, or those of its whole episode."""
    discounted_states: bool = False
    """Weigh the returns to go at step t by gamma^t, as the gradient of the discounted return does. Without it the
    gradient is the usual one, which is biased for gamma < 1; total returns need no such weight."""
    baseline: Literal["none", "mean", "leave_one_out", "step_mean", "step_leave_one_out", "value", "least_variance"] = (
        "leave_one_out"
    )
    """Taken off the returns. mean: of the episodes' returns, which shrinks the gradient of N episodes to (N - 1) / N;
    leave_one_out: of the other episodes, unbiased; step_*: the same of the returns at step t of the episodes that reach
    it; value: of the state, by a critic that is fitted to this batch first; least_variance: the constant that minimises
    the variance of single actions, by the other episodes, unbiased."""
    critic_epochs: Count = 10
    """Passes over the batch that fit the critic before a value baseline is evaluated."""
    units: Literal["episode", "action"] = "episode"
    """What the gradient is averaged over: episodes, which is unbiased, or actions."""
    entropy_coef: Size = 0.0
    """Weight of the entropy bonus, nats per action."""
    kl_coef: Size = 0.0
    """Charge on the reward per nat of log p(action) - log p_ref(action); 0 is off and needs no reference."""

    def __post_init__(self) -> None:
        if self.returns == "total" and self.discounted_states:
            raise InputError("returns is total, whose gradient needs no weight on states; set discounted_states off.")

    @property
    def whitens(self) -> tuple[Whitening, ...]:  # type: ignore[override]
        """Whitening takes the mean over all actions off in the place of a baseline of the batch."""
        return ("none", "minibatch", "batch") if self.baseline == "value" else ("none",)

    @property
    def critic_of(self) -> str:  # type: ignore[override]
        return "states" if self.baseline == "value" else "none"

    @property
    def needs_critic(self) -> bool:
        return self.baseline == "value"

    @property
    def needs_episodes(self) -> bool:
        return True

    @property
    def needs_memoryless(self) -> bool:
        return self.baseline == "least_variance"

    def estimate(self, rollout: Rollout, state: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        """Credits of each action less a value baseline; those that need the whole batch are taken off in `update`."""
        rewards, metrics = charge_kl(rollout, self.kl_coef)
        critic = self.baseline == "value"
        # Without a critic nothing is known of what a cut episode would still have earned.
        next_values = rollout.next_values if critic else torch.zeros_like(rollout.next_values)
        returns = advantages.monte_carlo_returns(rewards, next_values, rollout.dones, gamma=self.gamma)
        weighed = self.discounted_states or self.returns == "total"
        discounts = self.gamma ** torch.arange(returns.shape[1], device=returns.device).to(returns) if weighed else 1.0
        credits = returns[:, :1].expand_as(returns) if self.returns == "total" else discounts * returns
        if critic:
            credits = credits - discounts * rollout.values
            metrics |= actor_critic.critic_metrics(rewards, rollout, gamma=self.gamma)
        weights = rollout.mask.to(rewards)
        units = (rollout.mask & rollout.dones).to(rewards) if self.units == "episode" else weights
        return batch_of(rollout, advantages=credits, returns=returns, weights=weights, units=units), metrics

    def loss(self, output: PolicyOutput, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """-log pi(a_t | s_t) (G_t - b) (Sutton and Barto, 2018, eq. 13.11) less the entropy bonus, per action."""
        # The critic is fitted apart from the policy.
        terms, metrics = actor_critic.policy_and_value_loss(
            output, batch, entropy_coef=self.entropy_coef, value_coef=0.0
        )
        if self.baseline != "value":
            del metrics["value_loss"]
        return terms, metrics

    def update(
        self, learner: Learner, rollout: Rollout, batch: Batch, state: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Takes the baseline off, then one step of the policy; a value baseline is first fitted to this very batch."""
        accelerator = learner.accelerator
        _require_whole_episodes(rollout, accelerator)
        bound = self.objective(state)
        if self.baseline == "value":
            metrics = actor_critic.update(
                learner,
                rollout,
                batch,
                bound,
                critic=actor_critic.Critic(target="monte_carlo", epochs=self.critic_epochs),
                evaluate=lambda scored: self.estimate(scored, state)[0],
            )
            return metrics, state
        if self.baseline != "none":
            baseline = batch_baseline(learner.policy, batch, rollout.mask, self.baseline, accelerator).reshape(
                batch.mask.shape
            )
            batch = batch._replace(advantages=(batch.advantages - baseline).masked_fill(~batch.mask, 0.0))
        metrics = advantage_metrics(accelerator, batch.advantages, batch.mask)
        return metrics | optimize.update(learner, batch, bound), state


def batch_baseline(policy: nn.Module, batch: Batch, mask: Tensor, kind: str, accelerator: Accelerator) -> Tensor:
    """`(B, T)` weighted means of the credits, over the batches of all ranks.

    Args:
        batch: As the policy scores it: step by step if it is memoryless.
        mask: `(B, T)`, one whole episode a row.
    """
    credits, weights = batch.advantages.reshape(mask.shape).double(), mask.double()
    if kind == "least_variance":
        weights = _squared_gradient_norms(policy, batch, accelerator).reshape(mask.shape)
        sums, weights = (weights * credits).sum(1, keepdim=True), weights.sum(1, keepdim=True)
    else:
        # An episode's return is the credit of its first action.
        steps = mask.shape[1] if kind.startswith("step") else 1
        sums, weights = credits[:, :steps], weights[:, :steps]
    total, weight = _over_all_rows(torch.stack([sums, weights]), accelerator)
    if kind.endswith("mean"):
        means = mean_return(total, weight).expand_as(sums)
    else:
        means = mean_return_of_others(sums, weights, total, weight)
    return means.to(batch.advantages).expand(mask.shape)


def _over_all_rows(x: Tensor, accelerator: Accelerator) -> Tensor:
    """`(2, K)` sums over the rows, `(2, B, K)`, of all ranks, whose rows may differ in length."""
    width = x.shape[2]
    longest = int(global_max(accelerator, torch.tensor(width, device=x.device)))
    return global_sum(accelerator, nn.functional.pad(x.sum(1), (0, longest - width)))[:, :width]


def _squared_gradient_norms(policy: nn.Module, batch: Batch, accelerator: Accelerator) -> Tensor:
    """`(N, 1)`, 0 outside the mask."""
    model: Any = accelerator.unwrap_model(policy)

    def logprob(parameters: dict[str, Tensor], row: dict[str, Tensor]) -> Tensor:
        inputs = {name: tensor.unsqueeze(0) for name, tensor in row.items()}
        return torch.func.functional_call(model, parameters, (inputs,)).logprobs.sum()

    acted = batch.mask.squeeze(1)
    parameters = {name: tensor.detach() for name, tensor in model.named_parameters() if tensor.requires_grad}
    norms = torch.zeros(batch.mask.shape, dtype=torch.float64, device=batch.mask.device)
    if bool(acted.any()):
        inputs = {name: tensor[acted] for name, tensor in batch.inputs.items()}
        norms[acted, 0] = squared_gradient_norms(logprob, parameters, inputs, chunk_size=CHUNK)
    return norms


def _require_whole_episodes(rollout: Rollout, accelerator: Accelerator) -> None:
    """Of each row the steps that were acted, from the first column on, are one episode."""
    lengths = rollout.mask.sum(1, keepdim=True)
    steps = torch.arange(rollout.mask.shape[1], device=lengths.device)
    whole = (rollout.mask == (steps < lengths)) & ((rollout.dones & rollout.mask) == (steps == lengths - 1))
    broken = int(global_sum(accelerator, (~whole.all(1)).sum()))
    if broken:
        raise InputError(
            f"{broken} rows of a rollout are not one whole episode, whose return REINFORCE needs; on control set "
            "collect.episodes."
        )
