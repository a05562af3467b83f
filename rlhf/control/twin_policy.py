"""The policy of methods that learn from replayed transitions: an actor, twin critics of actions, target critics."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rlhf.algorithms import discrete_sac, sac
from rlhf.control import saved
from rlhf.control.ensemble import Ensemble
from rlhf.control.normalize import Normalizer
from rlhf.control.policy import PolicyConfig, Spaces
from rlhf.core.random import categorical, derive_seed, gaussians
from rlhf.core.squashed import squashed_gaussian_logprobs
from rlhf.errors import InputError

# Of the Gaussian before the tanh, as in Haarnoja's code.
MIN_LOG_STD, MAX_LOG_STD = -20.0, 2.0


class TwinPolicy(nn.Module):
    """Softmax over discrete actions, or over vectors a Gaussian squashed into their bounds by a tanh.

    Its initial weights are a function of `seed` alone. inputs = {"observations": (B, T, O) normalised, "actions":
    (B, T) int64 or (B, T, A) within the bounds, "next_observations": where they led}; vectors also need "noise" and
    "next_noise", (B, T, A) standard normal.

    The density of a vector is that on the scale where its bounds are -1 and 1, on which the critics take it, too.
    """

    memoryless, has_critic = True, True
    inputs: Callable[[], dict[str, str]] = dict
    """Gives checksums of what it was loaded from."""
    low: Tensor
    high: Tensor

    def __init__(self, spaces: Spaces, config: PolicyConfig, *, seed: int) -> None:
        super().__init__()
        self.spaces, self.config = spaces, config
        discrete = bool(spaces.num_actions)
        if not discrete and config.critic == "state":
            raise InputError("critic is 'state', but vector actions need a critic of actions; choose 'action'.")
        if None in (*spaces.action_low, *spaces.action_high):
            raise InputError(
                f"the actions' bounds are {spaces.action_low} and {spaces.action_high}; squashing needs finite ones."
            )
        generator = torch.Generator().manual_seed(derive_seed(seed, "control policy weights"))
        size, hidden = spaces.observation_size, config.hidden_sizes
        num_outputs = spaces.num_actions or 2 * spaces.action_size
        self.actor = Ensemble(1, (size, *hidden, num_outputs), last_gain=0.01, generator=generator)
        judged, num_values = size if discrete else size + spaces.action_size, 1
        if discrete and config.critic == "action":
            num_values = spaces.num_actions
        self.critic = Ensemble(2, (judged, *hidden, num_values), last_gain=1.0, generator=generator)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.log_temperature = nn.Parameter(torch.zeros(()))
        if not discrete:
            self.register_buffer("low", torch.tensor(spaces.action_low), persistent=False)
            self.register_buffer("high", torch.tensor(spaces.action_high), persistent=False)
        if config.normalise_observations:
            self.normalizer = Normalizer(size)

    @property
    def weight(self) -> Tensor:
        """A tensor whose type and device are the policy's."""
        return self.actor.weights[0]

    def critic_parameters(self) -> list[nn.Parameter]:
        """Those of the twins that learn; all others are the actor's, or copies."""
        return list(self.critic.parameters())

    def forward(self, inputs: dict[str, Tensor]) -> sac.Output | discrete_sac.Output:
        """What the method needs of the replayed actions and of those that the policy would take."""
        return self._discrete(inputs) if self.spaces.num_actions else self._squashed(inputs)

    def _discrete(self, inputs: dict[str, Tensor]) -> discrete_sac.Output:
        observations, next_observations = inputs["observations"], inputs["next_observations"]
        with torch.no_grad():
            next_logits = self.actor(next_observations).squeeze(-2)
            next_values = self.target_critic(next_observations)
        num_actions = self.spaces.num_actions
        return discrete_sac.Output(
            logits=self.actor(observations).squeeze(-2),
            values=self.critic(observations).expand(*observations.shape[:-1], 2, num_actions),
            next_logits=next_logits,
            next_values=next_values.expand(*observations.shape[:-1], 2, num_actions),
            log_temperature=self.log_temperature.expand(observations.shape[:-1]),
        )

    def _squashed(self, inputs: dict[str, Tensor]) -> sac.Output:
        observations, next_observations = inputs["observations"], inputs["next_observations"]
        with torch.no_grad():
            next_actions, next_logprobs = self._draw(self.actor(next_observations), inputs["next_noise"])
            next_values = self.target_critic(torch.cat([next_observations, next_actions], -1)).squeeze(-1)
        actions, logprobs = self._draw(self.actor(observations), inputs["noise"])
        replayed = torch.cat([observations, self._to_unit(inputs["actions"])], -1)
        return sac.Output(
            values=self.critic(replayed).squeeze(-1),
            logprobs=logprobs,
            sampled_values=self.critic(torch.cat([observations, actions], -1), frozen=True).squeeze(-1),
            next_logprobs=next_logprobs,
            next_values=next_values,
            log_temperature=self.log_temperature.expand(logprobs.shape),
        )

    def _draw(self, outputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions on the scale of -1 to 1, and their log-densities, from the actor's outputs `(..., 1, 2 A)`."""
        mean, log_std = self._moments(outputs)
        draws = mean + log_std.exp() * noise
        return draws.tanh(), squashed_gaussian_logprobs(draws, mean, log_std)

    def _moments(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = outputs.squeeze(-2).chunk(2, dim=-1)
        return mean, (log_std + self.config.initial_log_std).clamp(MIN_LOG_STD, MAX_LOG_STD)

    def _to_unit(self, actions: Tensor) -> Tensor:
        return 2.0 * (actions - self.low) / (self.high - self.low) - 1.0

    def for_env(self, actions: Tensor) -> np.ndarray:
        """Actions as the environment takes them."""
        return self.spaces.for_env(actions)

    def normalise(self, observations: Tensor) -> Tensor:
        """Raw observations as the networks take them."""
        scaled = self.normalizer(observations) if self.config.normalise_observations else observations
        return scaled.to(self.weight.dtype)

    @torch.no_grad()
    def act(self, observations: Tensor, uniforms: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Actions, their log-probabilities and the lower of their values, for raw observations `(N, O)`.

        Drawn by inverse CDF from `uniforms`, `(N, action size)`; greedy without: the likeliest action, or the squashed
        mean. `for_env(actions)` is what the environment takes.
        """
        observations = self.normalise(observations.to(self.weight.device))
        outputs = self.actor(observations)
        if self.spaces.num_actions:
            logits = outputs.squeeze(-2)
            greedy = logits.argmax(-1, keepdim=True)
            drawn = greedy if uniforms is None else categorical(logits, uniforms.to(logits.device))
            values = self.critic(observations).amin(-2).expand_as(logits)
            logprobs = logits.log_softmax(-1)
            return drawn.squeeze(-1), logprobs.gather(-1, drawn).squeeze(-1), values.gather(-1, drawn).squeeze(-1)
        noise = torch.zeros_like(outputs[..., 0, : len(self.low)]) if uniforms is None else gaussians(uniforms)
        squashed, logprobs = self._draw(outputs, noise.to(outputs))
        values = self.critic(torch.cat([observations, squashed], -1)).squeeze(-1).amin(-1)
        return self.low + 0.5 * (squashed + 1.0) * (self.high - self.low), logprobs, values

    def save(self, folder: Path) -> None:
        saved.write(folder, self, spaces=self.spaces, config=self.config)

    def load(self, folder: Path) -> None:
        """Takes over, in place and exactly, what `save` wrote."""
        saved.fill(self, folder)
