"""Every trajectory of a tiny MDP of three steps, and policies whose critic is a table of states or of actions."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlhf import optimize
from rlhf.algorithms.base import Method
from rlhf.algorithms.q_actor_critic import QActorCritic, less_baseline
from rlhf.rollout import PolicyOutput, Rollout, single_steps
from tests.tabular import TabularPolicy
from theory import mdp
from theory.mdp import Mdp

CPU = Accelerator(cpu=True)
STATE = {"progress": torch.tensor(0.0), "update": torch.tensor(0)}
NUM_STEPS, WIDTH, NUM_ACTIONS = 3, 2, 2
NUM_STATES = NUM_STEPS * WIDTH


class QPolicy(TabularPolicy):
    """Its critic values actions."""

    values_actions = True

    def __init__(self, num_states: int, num_actions: int, *, seed: int = 0) -> None:
        super().__init__(num_states, num_actions, seed=seed)
        generator = torch.Generator().manual_seed(seed + 1)
        self.critic = nn.Parameter(torch.randn(num_states, num_actions, generator=generator, dtype=torch.float64))

    def forward(self, inputs: dict[str, Tensor], *, distribution: bool = False) -> Any:
        output = super().forward(inputs)
        return PolicyOutput(output.logprobs, self.critic[inputs["states"], inputs["actions"]], output.entropy)

    def state_values(self, inputs: dict[str, Tensor]) -> Tensor:
        return (self.logits.softmax(-1) * self.critic).sum(-1)[inputs["states"]]


def three_steps(seed: int = 0) -> Mdp:
    """Two places and three steps; a state is a step and a place, and every episode ends after the third."""
    generator = torch.Generator().manual_seed(seed)
    moves = torch.rand(NUM_STEPS, WIDTH, NUM_ACTIONS, WIDTH, generator=generator, dtype=torch.float64)
    transitions = torch.zeros(NUM_STATES, NUM_ACTIONS, NUM_STATES, dtype=torch.float64)
    for step, place in itertools.product(range(NUM_STEPS - 1), range(WIDTH)):
        rows = moves[step, place] / moves[step, place].sum(-1, keepdim=True)
        transitions[step * WIDTH + place, :, (step + 1) * WIDTH : (step + 2) * WIDTH] = rows
    rewards = torch.randn(NUM_STATES, NUM_ACTIONS, generator=generator, dtype=torch.float64)
    start = torch.zeros(NUM_STATES, dtype=torch.float64)
    start[:WIDTH] = torch.tensor([0.3, 0.7])
    return Mdp(transitions, rewards, start)


class Enumerated(NamedTuple):
    """All trajectories as rows, and how likely each is."""

    rollout: Rollout
    probabilities: Tensor


@torch.no_grad()
def enumerated(world: Mdp, policy: nn.Module, *, actor: Tensor | None = None) -> Enumerated:
    """Acted by the policy, or by a table of logits `actor`; scored by the policy."""
    places = list(itertools.product(range(WIDTH), repeat=NUM_STEPS))
    actions = list(itertools.product(range(NUM_ACTIONS), repeat=NUM_STEPS))
    pairs = list(itertools.product(places, actions))
    states = torch.tensor([place for place, _ in pairs]) + torch.arange(NUM_STEPS) * WIDTH
    taken = torch.tensor([action for _, action in pairs])
    inputs = {"states": states, "actions": taken}
    acted = (policy.logits if actor is None else actor).log_softmax(-1)[states, taken]
    moves = world.transitions[states[:, :-1], taken[:, :-1], states[:, 1:]]
    output = policy(inputs)
    following = policy.state_values({"states": states[:, 1:]})
    rollout = Rollout(
        inputs=inputs,
        behaviour_logprobs=acted,
        logprobs=output.logprobs,
        values=output.values,
        next_values=torch.cat([following, torch.zeros_like(following[:, :1])], dim=1),
        rewards=world.rewards[states, taken],
        dones=torch.arange(NUM_STEPS).expand(len(pairs), NUM_STEPS) == NUM_STEPS - 1,
        mask=torch.ones(len(pairs), NUM_STEPS, dtype=torch.bool),
        sample_ids=torch.arange(len(pairs)),
        costs=torch.full((len(pairs),), NUM_STEPS),
    )
    return Enumerated(rollout, world.start[states[:, 0]] * moves.prod(1) * acted.sum(1).exp())


def expected_gradient(policy: nn.Module, all_: Enumerated, method: Method) -> dict[str, Tensor]:
    """Of the method's own estimate and loss, per episode, over all trajectories."""
    state = method.initial_state() | STATE
    batch, _ = method.estimate(all_.rollout, state)
    if isinstance(method, QActorCritic):
        batch = less_baseline(policy, batch, method)
    weights = batch.weights * all_.probabilities.unsqueeze(1)
    batch = single_steps(batch._replace(weights=weights, units=all_.rollout.dones * all_.probabilities.unsqueeze(1)))
    policy.zero_grad()
    loss = method.objective(state)
    optimize.gradient(policy, batch, batch.rows(torch.tensor([0])), loss, accelerator=CPU, micro_batch_cost=10_000)
    return {name: parameter.grad.clone() for name, parameter in policy.named_parameters()}


def gradient_by_weights(world: Mdp, policy: nn.Module, weights: Tensor, *, actor: Tensor | None = None) -> Tensor:
    """-sum_s visits(s) sum_a grad pi(a | s) weight(s, a) in the logits of the softmax; visits are the actor's."""
    table = policy.logits.detach().softmax(-1)
    visits = mdp.visits(world, table if actor is None else actor.softmax(-1), gamma=1.0).unsqueeze(-1)
    return -visits * table * (weights - (table * weights).sum(-1, keepdim=True))
