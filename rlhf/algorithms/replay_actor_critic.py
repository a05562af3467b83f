"""Actor-critic on a replay buffer, with both resamplings that make old actions harmless (Degris et al., 2012,
https://arxiv.org/abs/1205.4839, for the gradient; Q with the policy's own next action for the critic).

The buffer's states are taken as they are; its actions are not, if the policy draws its own where they matter:
    critic:  Q(s, a) -> r + gamma Q(s', a'),  a' ~ pi(. | s')      (a critic of states cannot: it is biased)
    actor:   mean_i grad log pi(a_i | s) Q(s, a_i),  a_i ~ pi(. | s)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rlhf import optimize
from rlhf.algorithms import replayed
from rlhf.algorithms.base import Method, Whitening
from rlhf.algorithms.discrete_sac import Output
from rlhf.deferred import deferred
from rlhf.optimize import Learner
from rlhf.settings import Count, CountOrNone, Share, ShareAboveZero, Size

with deferred():
    from torch import Tensor

    from rlhf.core import losses
    from rlhf.core.random import categorical, uniforms
    from rlhf.rollout import Batch, Rollout


@dataclass(frozen=True, kw_only=True)
class ReplayActorCritic(Method):
    """Replay actor-critic for discrete actions. The policy's `critic` decides about the first resampling: a critic of
    actions learns from a' ~ pi, a critic of states from what the buffer's actions led to.
    """

    whitens: ClassVar[tuple[Whitening, ...]] = ("none",)
    stops_early: ClassVar[bool] = False
    compares: ClassVar[bool] = False
    replays: ClassVar[bool] = True
    actions: ClassVar[Literal["discrete", "vectors", "either"]] = "discrete"

    gamma: Share = 0.99
    """Discount per action, in [0, 1]."""
    batch_size: Count = 256
    """Replayed transitions in each gradient step, over all processes."""
    target_rate: ShareAboveZero = 0.005
    """Share of the way that the target critics go to the critics after each gradient step."""
    sampled_actions: CountOrNone = 4
    """Actions drawn from the policy at each replayed state for its gradient, which only a critic of actions can tell
    apart; 0: the buffer's own action, biased."""
    baseline: bool = True
    """Subtract E_pi[Q(s, .)] from Q(s, a_i), which leaves the expected gradient as it is."""
    entropy_coef: Size = 0.01
    """Weight of the entropy bonus, nats per action."""

    @property
    def critic_of(self) -> str:  # type: ignore[override]
        return "actions" if self.sampled_actions else "either"

    def estimate(self, rollout: Rollout, state: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        """Nothing yet: the targets are renewed at every gradient step."""
        return replayed.transitions(rollout), {}

    def loss(self, output: Output, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Critic loss, policy-gradient loss and entropy bonus per replayed transition; the lowest critic counts.

        With the buffer's own action the weight is r + gamma Q(s', a') in place of Q(s, a_i).
        """
        draws = batch.inputs["uniforms"]
        next_actions = categorical(output.next_logits, draws[..., :1])
        next_values = output.next_values.amin(-2).gather(-1, next_actions).squeeze(-1)
        targets = replayed.one_step_targets(batch, next_values, gamma=self.gamma)
        taken = replayed.values_of(output.values, batch.inputs["actions"])
        value_loss = replayed.critic_loss(taken, targets)

        logprobs, values = output.logits.log_softmax(-1), output.values.detach().amin(-2)
        if self.sampled_actions:
            actions = categorical(output.logits.detach(), draws[..., 1:])
            gains = values.gather(-1, actions)
        else:
            actions, gains = batch.inputs["actions"].unsqueeze(-1), targets.unsqueeze(-1)
        if self.baseline:
            gains = gains - (logprobs.detach().exp() * values).sum(-1, keepdim=True)
        policy_loss = losses.policy_gradient_loss(logprobs.gather(-1, actions), gains).mean(-1)
        entropy = losses.categorical_entropy(output.logits)
        metrics = replayed.critic_metrics(taken, targets) | {
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "entropy": entropy.detach(),
        }
        # There is no temperature here, but data parallelism needs every parameter in the graph.
        terms = value_loss + policy_loss - self.entropy_coef * entropy + 0.0 * output.log_temperature
        return terms, metrics

    def update(
        self, learner: Learner, rollout: Rollout, batch: Batch, state: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Gradient steps on all parts at once, each followed by the target critics."""
        num_draws = 1 + self.sampled_actions
        draws = uniforms(learner.seed, "actions at replayed states", learner.update_index, batch.sample_ids, num_draws)
        batch = batch._replace(inputs={**batch.inputs, "uniforms": draws.unsqueeze(1)})
        bound = self.objective(state)
        after = replayed.follow(learner.module, rate=self.target_rate)
        return optimize.update(learner, batch, bound, after_step=after), state
