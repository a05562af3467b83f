"""Policies for control: a softmax or Gaussian actor and a critic, each a small tanh network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf.control import saved
from rlhf.control.normalize import Normalizer
from rlhf.control.settings import PolicyConfig
from rlhf.core.losses import entropy_of_logprobs, gaussian_entropy
from rlhf.core.random import categorical, derive_seed, gaussians
from rlhf.errors import InputError
from rlhf.rollout import Categorical, Gaussian, PolicyOutput

# Half of float32's largest number: what an environment writes that means no bound.
_UNBOUNDED = 1.7e38


class UnitScale(NamedTuple):
    """An action of the environment is middle + half x a, where the policy's own is a."""

    middle: np.ndarray
    half: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Spaces:
    """What goes into a policy and what comes out, so that it can act without its environment."""

    observation_size: int
    num_actions: int = 0
    """Of a discrete action space; 0: actions are vectors."""
    first_action: int = 0
    """The environment's name for action 0."""
    action_low: tuple[float | None, ...] = ()
    """Bounds of a vector action; None is unbounded."""
    action_high: tuple[float | None, ...] = ()

    @property
    def action_size(self) -> int:
        """Numbers in one action, which is also how many uniforms it takes to draw one."""
        return 1 if self.num_actions else len(self.action_low)

    def for_env(self, actions: Tensor) -> np.ndarray:
        """Actions as the environment takes them: named from its first action, or clipped to its bounds."""
        array = actions.cpu().numpy()
        if self.num_actions:
            return array + self.first_action
        low, high = self._limits
        return np.clip(array, low.astype(array.dtype), high.astype(array.dtype))

    def from_env(self, actions: np.ndarray) -> Tensor:
        """The policy's name for what the environment was given."""
        if self.num_actions:
            return torch.as_tensor(actions, dtype=torch.int64) - self.first_action
        return torch.as_tensor(actions)

    @cached_property
    def unit(self) -> UnitScale | None:
        """Where bounds become -1 and 1 for a Gaussian that begins with mean 0 and deviation 1; None: nowhere.

        It stays on the environment's scale where it reaches both bounds and is not most of the time at one: where 0
        lies between them and neither is nearer than a quarter of a deviation or further than four.
        """
        low, high = self._limits
        narrow, wide = 0.25, 4.0
        reached = (-wide <= low) & (low <= -narrow) & (narrow <= high) & (high <= wide)
        # Bounds at the end of the floats are none.
        bounded = (low > -_UNBOUNDED) & (high < _UNBOUNDED) & (low < high)
        scaled = bounded & ~reached
        if not scaled.any():
            return None
        return UnitScale(np.where(scaled, (low + high) / 2, 0.0), np.where(scaled, (high - low) / 2, 1.0))

    @cached_property
    def _limits(self) -> tuple[np.ndarray, np.ndarray]:
        low = [-math.inf if bound is None else bound for bound in self.action_low]
        high = [math.inf if bound is None else bound for bound in self.action_high]
        return np.array(low), np.array(high)


class Mlp(nn.Sequential):
    """Linear layers with tanh between them, without calling each as a module, which costs as much as the arithmetic."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self._modules.values():
            x = F.linear(x, layer.weight, layer.bias) if isinstance(layer, nn.Linear) else torch.tanh(x)
        return x


class ControlPolicy(nn.Module):
    """Softmax over discrete actions or a diagonal Gaussian over vectors, with a critic beside it.

    Its initial weights are a function of `seed` alone. inputs = {"observations": (B, T, O) normalised,
    "actions": (B, T) int64 or (B, T, A) as sampled, not clipped}.
    """

    memoryless, has_critic = True, True
    inputs: Callable[[], dict[str, str]] = dict
    """Gives checksums of what it was loaded from."""

    def __init__(self, spaces: Spaces, config: PolicyConfig, *, seed: int) -> None:
        super().__init__()
        self.spaces, self.config = spaces, config
        for low, high in zip(spaces.action_low, spaces.action_high, strict=True):
            if (high is None and (low or 0.0) > 1.0) or (low is None and (high or 0.0) < -1.0):
                raise InputError(
                    f"actions lie between {low} and {high} (None: no bound), where a Gaussian that begins at 0 would "
                    "stay at the bound; give the action_space two finite bounds, to which it is scaled."
                )
        generator = torch.Generator().manual_seed(derive_seed(seed, "control policy weights"))
        num_outputs = spaces.num_actions or spaces.action_size
        self.actor = _mlp(spaces.observation_size, config.hidden_sizes, num_outputs, 0.01, generator)
        if config.critic == "action" and not spaces.num_actions:
            raise InputError("critic is 'action', which needs discrete actions; choose 'state' for vectors.")
        num_values = spaces.num_actions if config.critic == "action" else 1
        self.critic = _mlp(spaces.observation_size, config.hidden_sizes, num_values, 1.0, generator)
        if not spaces.num_actions:
            self.log_std = nn.Parameter(torch.full((spaces.action_size,), config.initial_log_std))
        if config.normalise_observations:
            self.normalizer = Normalizer(spaces.observation_size)

    @property
    def weight(self) -> Tensor:
        """A tensor whose type and device are the policy's."""
        return self.actor[0].weight  # type: ignore[return-value]

    @property
    def values_actions(self) -> bool:
        """Whether `values` are Q of the taken actions, and not V of the states."""
        return self.config.critic == "action"

    def forward(self, inputs: dict[str, Tensor], *, distribution: bool = False) -> Any:
        """PolicyOutput of the taken actions; with `distribution` also what else could have been done."""
        outputs = self.actor(inputs["observations"])
        logprobs, entropy = self.score(outputs, inputs["actions"])
        output = PolicyOutput(logprobs, self.values(inputs["observations"], inputs["actions"]), entropy)
        return (output, self.distribution(outputs)) if distribution else output

    def values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """V of normalised observations, or Q of them and the actions if that is what the critic values."""
        values = self.critic(observations)
        if self.config.critic == "state":
            return values.squeeze(-1)
        return values.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def state_values(self, inputs: dict[str, Tensor]) -> Tensor:
        """V of the states of `inputs`, with a critic of actions sum_a pi(a | s) Q(s, a)."""
        values = self.critic(inputs["observations"])
        if self.config.critic == "state":
            return values.squeeze(-1)
        return (self.actor(inputs["observations"]).softmax(-1) * values).sum(-1)

    def distribution(self, outputs: Tensor) -> Categorical | Gaussian:
        """Of the actions, from the actor's outputs."""
        if self.spaces.num_actions:
            return Categorical(outputs)
        return Gaussian(outputs, self.log_std.expand_as(outputs))

    def critic_parameters(self) -> list[nn.Parameter]:
        """Those that only the values depend on; all others are the actor's."""
        return list(self.critic.parameters())

    def score(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of each action, and entropy, under the actor's outputs (logits or means); nats."""
        if self.spaces.num_actions:
            logprobs = outputs.log_softmax(-1)
            return logprobs.gather(-1, actions.unsqueeze(-1)).squeeze(-1), entropy_of_logprobs(logprobs)
        z = (actions - outputs) * torch.exp(-self.log_std)
        # Summed over the action's numbers: log N(a) = -z^2 / 2 - log std - log(2 pi) / 2.
        logprobs = -(0.5 * z.square() + (self.log_std + 0.5 * math.log(2.0 * math.pi))).sum(-1)
        return logprobs, gaussian_entropy(self.log_std).expand_as(logprobs)

    def sample(self, outputs: Tensor, uniforms: Tensor | None) -> Tensor:
        """Actions drawn by inverse CDF from `uniforms`, `(N, action size)` float64; the likeliest ones for None."""
        if not self.spaces.num_actions:
            if uniforms is None:
                return outputs
            return (outputs + self.log_std.exp() * gaussians(uniforms)).to(outputs.dtype)
        if uniforms is None:
            return outputs.argmax(-1)
        return categorical(outputs, uniforms).squeeze(-1)

    def for_env(self, actions: Tensor) -> np.ndarray:
        """Actions as the environment takes them, within its bounds and on its scale."""
        unit = self.spaces.unit
        if unit is not None:
            middle, half = (torch.as_tensor(x).to(actions) for x in unit)
            actions = middle + half * actions
        return self.spaces.for_env(actions)

    def from_env(self, actions: np.ndarray) -> Tensor:
        """The policy's own name for what the environment was given."""
        unit = self.spaces.unit
        return self.spaces.from_env(actions if unit is None else (actions - unit.middle) / unit.half)

    def normalise(self, observations: Tensor) -> Tensor:
        """Raw observations as the networks take them."""
        scaled = self.normalizer(observations) if self.config.normalise_observations else observations
        return scaled.to(self.weight.dtype)

    @torch.no_grad()
    def act(self, observations: Tensor, uniforms: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Actions, their log-probabilities and the values, for raw observations `(N, O)`; greedy without uniforms.

        `for_env(actions)` is what the environment takes.
        """
        observations = self.normalise(observations.to(self.weight.device))
        outputs = self.actor(observations)
        actions = self.sample(outputs, None if uniforms is None else uniforms.to(outputs.device))
        return actions, self.score(outputs, actions)[0], self.values(observations, actions)

    def save(self, folder: Path) -> None:
        saved.write(folder, self, spaces=self.spaces, config=self.config)

    def load(self, folder: Path) -> None:
        """Takes over, in place and exactly, what `save` wrote."""
        saved.fill(self, folder)


def _mlp(
    num_inputs: int, hidden_sizes: tuple[int, ...], num_outputs: int, last_gain: float, generator: torch.Generator
) -> Mlp:
    """Tanh network, orthogonal weights of gain sqrt 2 (`last_gain` at the end), zero biases."""
    layers: list[nn.Module] = []
    sizes = (num_inputs, *hidden_sizes, num_outputs)
    for i in range(len(sizes) - 1):
        linear = nn.utils.skip_init(nn.Linear, sizes[i], sizes[i + 1])
        last = i == len(sizes) - 2
        nn.init.orthogonal_(linear.weight, last_gain if last else math.sqrt(2.0), generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear] if last else [linear, nn.Tanh()]
    return Mlp(*layers)
