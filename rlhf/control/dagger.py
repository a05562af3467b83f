"""DAgger: cloning an expert in the states that the learner itself comes to (Ross et al., 2011, algorithm 3.1;
https://proceedings.mlr.press/v15/ross11a.html).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from gymnasium.vector import VectorEnv
from torch import Tensor

from rlhf.control.demonstrations import Controller, actions_of, step_rows
from rlhf.control.envs import spaces_of
from rlhf.control.episodes import Episodes
from rlhf.control.policy import ControlPolicy
from rlhf.control.settings import Dagger
from rlhf.core.random import uniforms
from rlhf.errors import InputError
from rlhf.reduce import global_sum
from rlhf.rollout import Collected


class DaggerCollector:
    """Acts with the learner, labels with the expert; an update clones everything that was labelled so far.

    With the method of `algorithms/clone.py`, `train` is then the whole of DAgger. The learner acts as it samples. If it
    normalises observations, its moments take in each state once, before the update that first clones it.

    Args:
        expert: A policy, which labels greedily, or a function of one raw observation.
    """

    def __init__(
        self,
        envs: VectorEnv,
        expert: ControlPolicy | Controller,
        *,
        config: Dagger,
        seed: int,
        accelerator: Accelerator,
    ) -> None:
        if envs.num_envs * accelerator.num_processes != config.num_envs:
            raise InputError(
                f"num_envs is {config.num_envs}, but {accelerator.num_processes} processes hold {envs.num_envs} "
                "environments each; choose a multiple of the number of processes."
            )
        self.envs, self.expert, self.config, self.seed = envs, expert, config, seed
        self.accelerator = accelerator
        self.spaces = spaces_of(envs)
        self.episodes = Episodes(envs, seed=seed, first_id=accelerator.process_index * envs.num_envs)
        # Everything labelled so far by this process, one row a step: raw observations, actions as the policy names
        # them, and what numbers the step among those of all processes.
        self.labelled: dict[str, Tensor] = {}

    @torch.no_grad()
    def collect(self, policy: ControlPolicy, update: int) -> Collected:
        """All demonstrations so far, those of this update's states included."""
        device = policy.weight.device
        seen, metrics, samples = self._act(policy, update)
        self.labelled = {name: torch.cat([self.labelled[name], x]) for name, x in seen.items()} if update else seen
        if policy.config.normalise_observations:
            policy.normalizer.update(seen["observations"], lambda sums: global_sum(self.accelerator, sums))
        data = {name: x.to(device) for name, x in self.labelled.items()}
        rollout = step_rows(policy, data["observations"], data["actions"], data["sample_ids"])
        counts = torch.tensor([len(rollout.mask), len(seen["sample_ids"])], device=self.accelerator.device)
        labels, steps = global_sum(self.accelerator, counts).tolist()
        return Collected(rollout, metrics | {"labels": int(labels), "steps": int(steps)}, samples)

    def state_dict(self) -> dict[str, Any]:
        return {"episodes": self.episodes.state_dict(), "labelled": self.labelled}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.episodes.load_state_dict(state["episodes"])
        self.labelled = state["labelled"]

    def close(self) -> None:
        self.envs.close()

    def _act(
        self, policy: ControlPolicy, update: int
    ) -> tuple[dict[str, Tensor], dict[str, float], list[dict[str, Any]]]:
        """The states come to in this update with their labels, metrics over all processes, and episodes that ended."""
        ids, num_steps = torch.as_tensor(self.episodes.ids), self.config.steps
        size = self.spaces.action_size
        draws = uniforms(self.seed, "actions", update, ids, num_steps * size).view(len(ids), num_steps, size)
        # 0^0 = 1: without a share the expert leads in the first update.
        leads = uniforms(self.seed, "who acts", update, ids, num_steps).numpy() < self.config.expert_share**update
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        agreed, samples = [], []
        for t in range(num_steps):
            observations = self.episodes.observations.copy()
            labels = actions_of(self.expert, observations)
            own = policy.for_env(policy.act(torch.as_tensor(observations), draws[:, t])[0])
            agreed.append(np.isclose(own, labels).reshape(len(ids), -1).all(1))
            expert_leads = leads[:, t].reshape(-1, *[1] * (own.ndim - 1))
            step = self.episodes.step(np.where(expert_leads, labels, own))
            acted = torch.as_tensor(step.mask)
            numbers = (update * self.config.num_envs + ids) * num_steps + t
            named = policy.from_env(labels)
            parts.append((torch.as_tensor(observations)[acted], named[acted], numbers[acted]))
            samples += step.finished
        names = ("observations", "actions", "sample_ids")
        seen = {name: torch.cat(rows) for name, rows in zip(names, zip(*parts, strict=True), strict=True)}
        return seen, self._metrics(np.array(agreed), leads, samples), samples

    def _metrics(self, agreed: np.ndarray, leads: np.ndarray, samples: list[dict[str, Any]]) -> dict[str, float]:
        returns = sum(sample["return"] for sample in samples)
        sums = [agreed.sum(), leads.sum(), agreed.size, len(samples), returns]
        local = torch.tensor(sums, dtype=torch.float64, device=self.accelerator.device)
        agreements, led, steps, episodes, total = global_sum(self.accelerator, local).tolist()
        metrics = {"expert_agreement": agreements / steps, "expert_led": led / steps, "episodes": int(episodes)}
        return metrics | ({"return_mean": total / episodes} if episodes else {})
