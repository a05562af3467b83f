"""A softmax policy with one logit per (state, action) and one value per state: small enough to enumerate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.rollout import Categorical, PolicyOutput


class TabularPolicy(nn.Module):
    """inputs = {"states": (B, T), "actions": (B, T)}."""

    memoryless, has_critic = True, True

    def __init__(self, num_states: int, num_actions: int, *, seed: int = 0, dtype: torch.dtype = torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.logits = nn.Parameter(torch.randn(num_states, num_actions, generator=generator, dtype=dtype))
        self.critic = nn.Parameter(torch.randn(num_states, generator=generator, dtype=dtype))

    def forward(self, inputs: dict[str, Tensor], *, distribution: bool = False) -> Any:
        logprobs = torch.log_softmax(self.logits, dim=-1)[inputs["states"]]
        chosen = logprobs.gather(-1, inputs["actions"].unsqueeze(-1)).squeeze(-1)
        output = PolicyOutput(chosen, self.state_values(inputs), -(logprobs.exp() * logprobs).sum(-1))
        return (output, Categorical(logprobs)) if distribution else output

    def state_values(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.critic[inputs["states"]]

    def critic_parameters(self) -> list[nn.Parameter]:
        return [self.critic]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        content = {name: tensor.tolist() for name, tensor in self.state_dict().items()}
        (folder / "policy.json").write_text(json.dumps(content))

    def load(self, folder: Path) -> None:
        content = json.loads((folder / "policy.json").read_text())
        self.load_state_dict({name: torch.tensor(value, dtype=torch.float64) for name, value in content.items()})
