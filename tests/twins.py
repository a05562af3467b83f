"""A tabular policy with twin critics, and transitions of tiny problems, for the methods that replay."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlhf.algorithms.discrete_sac import Output
from rlhf.rollout import Rollout


class Table(nn.Module):
    """`(states, critics, actions)` values."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values.clone())

    def forward(self, states: Tensor) -> Tensor:
        return self.values[states]


class TabularTwins(nn.Module):
    """inputs = {"states", "actions", "next_states"}, each `(B, T)`; the targets start as the critics."""

    memoryless, has_critic = True, True

    def __init__(self, logits: Tensor, values: Tensor, *, temperature: float = 1.0) -> None:
        super().__init__()
        self.actor = nn.Parameter(logits.clone())
        self.critic, self.target_critic = Table(values), Table(values).requires_grad_(False)
        self.log_temperature = nn.Parameter(torch.tensor(temperature, dtype=torch.float64).log())

    def forward(self, inputs: dict[str, Tensor]) -> Output:
        states, next_states = inputs["states"], inputs["next_states"]
        with torch.no_grad():
            next_logits, next_values = self.actor[next_states], self.target_critic(next_states)
        temperature = self.log_temperature.expand(states.shape)
        return Output(self.actor[states], self.critic(states), next_logits, next_values, temperature)


def replayed(
    states: Tensor, actions: Tensor, rewards: Tensor, next_states: Tensor, terminals: Tensor | None = None
) -> Rollout:
    """Transitions `(B,)` as rows of one step, in float64."""
    mask = torch.ones(len(states), 1, dtype=torch.bool)
    unknown = torch.zeros(len(states), 1, dtype=torch.float64)
    return Rollout(
        inputs={"states": states.unsqueeze(1), "actions": actions.unsqueeze(1)},
        behaviour_logprobs=unknown,
        logprobs=unknown,
        values=unknown,
        next_values=unknown,
        rewards=rewards.double().unsqueeze(1),
        dones=mask,
        mask=mask,
        sample_ids=torch.arange(len(states)),
        costs=torch.ones(len(states), dtype=torch.int64),
        terminals=~mask if terminals is None else terminals.unsqueeze(1),
        next_inputs={"states": next_states.unsqueeze(1)},
    )
