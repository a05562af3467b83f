"""Trust region policy optimisation (Schulman et al., 2015; https://arxiv.org/abs/1502.05477).

The step is the natural gradient's, as long as the quadratic model of KL(old || new) allows, then shortened until the
KL itself keeps to its limit and the surrogate has improved: of all methods here the only one whose steps are bounded.
The critic is fitted afterwards, by the optimizer and its config; the policy itself uses neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from rlhf import optimize
from rlhf.algorithms import actor_critic, natural
from rlhf.algorithms.base import Method
from rlhf.deferred import deferred
from rlhf.optimize import Learner
from rlhf.settings import Count, Positive, ProperShare, Share, Size

with deferred():
    import torch
    from torch import Tensor

    from rlhf.budget import even_micro_batches, filler_of
    from rlhf.core import importance
    from rlhf.rollout import Batch, PolicyOutput, Rollout


@dataclass(frozen=True, kw_only=True)
class TRPO(Method):
    """TRPO with generalized advantage estimates."""

    stops_early: ClassVar[bool] = False
    shardable: ClassVar[bool] = False

    gamma: Share = 1.0
    """Discount per action, in [0, 1]."""
    gae_lambda: Share = 0.95
    """Bias-variance trade-off of the advantages, in [0, 1]; 1 is Monte Carlo minus the value."""
    max_kl: Positive = 0.01
    """Most nats per action of KL(old || new) in one update: the delta of the paper."""
    max_kl_schedule: actor_critic.Schedule = "constant"
    """linear: the limit shrinks to 0 over the run."""
    damping: Size = 0.1
    """Added to the Fisher matrix as a multiple of the identity; the surer the policy, the more it takes."""
    cg_iterations: Count = 10
    """Iterations of conjugate gradient, each of which differentiates the KL twice."""
    fisher_shares: Count = 1
    """The Fisher matrix is that of one in so many rows, drawn anew at each update; 1: of all (appendix C: 10). Gradient
    and line search always take all."""
    backtracks: Count = 10
    """Steps that the line search tries before the policy is left as it is."""
    shrinkage: ProperShare = 0.8
    """Length of each step of the line search over that of the one before."""
    kl_coef: Size = 0.0
    """Charge on the reward per nat of log p(action) - log p_ref(action); 0 is off and needs no reference."""

    @property
    def num_parts(self) -> int:
        return self.fisher_shares

    def estimate(self, rollout: Rollout, state: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        """GAE, less the KL to a reference, if there is one."""
        return actor_critic.gae_batch(rollout, kl_coef=self.kl_coef, gamma=self.gamma, gae_lambda=self.gae_lambda)

    def loss(self, output: PolicyOutput, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The surrogate -ratio A per action (eq. 14, negated); the critic is none of its business."""
        policy_loss = importance.surrogate_loss(output.logprobs, batch.logprobs, batch.advantages)
        return policy_loss, {"policy_loss": policy_loss.detach()}

    def update(
        self, learner: Learner, rollout: Rollout, batch: Batch, state: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """One step of the actor inside the trust region (appendix C), then the critic's fit to the returns.

        Raises:
            NonFiniteError: A number is NaN or infinite; the actor has not moved.
        """
        policy, optimizer, accelerator = learner.policy, learner.optimizer, learner.accelerator
        model = learner.module
        critic = {id(parameter) for parameter in model.critic_parameters()}
        actor = [p for p in model.parameters() if p.requires_grad and id(p) not in critic]
        acting = batch if learner.config.whiten == "none" else optimize.whitened(batch, accelerator)
        filler = filler_of(acting)
        budget: dict[str, Any] = {"accelerator": accelerator, "micro_batch_cost": learner.config.micro_batch_cost}
        surrogate = self.objective(state)
        max_kl = float(actor_critic.scheduled(self.max_kl, self.max_kl_schedule, state))

        optimizer.zero_grad()
        first = optimize.gradient(policy, acting, filler, surrogate, **budget)
        optimize.check_identity(first, accelerator)
        ascent = -natural.flat([torch.zeros_like(p) if p.grad is None else p.grad for p in actor])
        optimizer.zero_grad()

        parts = even_micro_batches(acting, filler, **budget, policy=policy)
        shown = next(optimize.minibatches(learner, acting, ["fisher rows"], self.fisher_shares))
        curved = even_micro_batches(shown, filler, **budget, policy=policy)
        search = natural.step(
            natural.fisher_products(policy, actor, curved, damping=self.damping, accelerator=accelerator),
            ascent,
            num_iterations=self.cg_iterations,
            max_kl=max_kl,
        )
        metrics = natural.line_search(
            actor,
            search,
            natural.Measure(policy, parts, surrogate, accelerator),
            max_kl=max_kl,
            shrinkage=self.shrinkage,
            num_tries=self.backtracks,
        )
        metrics |= {"ratio_error_max": first["ratio_error_max"], "gradient_norm": float(ascent.norm())}
        if critic:
            fitted = actor_critic.fit_critic(learner, batch)
            metrics = fitted | metrics
        return metrics, state
