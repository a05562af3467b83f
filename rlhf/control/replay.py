"""A replay buffer, and the collector that fills it and hands out what it holds."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from rlhf.control import collect
from rlhf.control.envs import spaces_of
from rlhf.control.episodes import Episodes
from rlhf.control.experience import Experience, episode_metrics, observe
from rlhf.control.policy import Spaces
from rlhf.control.settings import Replay
from rlhf.control.twin_policy import TwinPolicy
from rlhf.core.random import uniforms
from rlhf.errors import InputError
from rlhf.rollout import Collected, Rollout


class ReplayBuffer:
    """A ring of the last `num_slots` steps of N environments: tensors `(slots, N, ...)`, made when it is first fed."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.num_taken = 0
        self._columns: dict[str, Tensor] = {}

    @property
    def filled(self) -> int:
        """Slots that hold a step."""
        return min(self.num_taken, self.num_slots)

    def add(self, columns: dict[str, Tensor]) -> None:
        """Takes in T steps of every environment, `(N, T, ...)`, of which more than the ring holds are passed over."""
        num_steps = next(iter(columns.values())).shape[1]
        kept = min(num_steps, self.num_slots)
        slots = (self.num_taken + torch.arange(num_steps - kept, num_steps)) % self.num_slots
        for name, column in columns.items():
            steps = column.transpose(0, 1)[num_steps - kept :]
            if name not in self._columns:
                self._columns[name] = steps.new_empty(self.num_slots, *steps.shape[1:])
            self._columns[name][slots] = steps
        self.num_taken += num_steps

    def take(self, slots: Tensor, envs: Tensor) -> dict[str, Tensor]:
        """The steps in these slots of these environments, `(M, ...)`."""
        return {name: column[slots, envs] for name, column in self._columns.items()}

    def state_dict(self) -> dict[str, Any]:
        columns = {name: column[: self.filled] for name, column in self._columns.items()}
        return {"num_taken": self.num_taken, "num_slots": self.num_slots, "columns": columns}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["num_slots"] != self.num_slots:
            raise InputError(f"the checkpoint's buffer has {state['num_slots']} slots and this run's {self.num_slots}.")
        self.num_taken, self._columns = state["num_taken"], {}
        for name, column in state["columns"].items():
            self._columns[name] = column.new_empty(self.num_slots, *column.shape[1:])
            self._columns[name][: self.filled] = column


class ReplayCollector:
    """Steps every environment, remembers the transitions, and returns `num_rows` drawn evenly from all remembered.

    A row of the rollout is one step. Of the steps' log-probabilities and values nothing is known, so they are 0. Each
    process remembers its own environments' transitions and returns those of the global draw that it holds: what is
    learned from does not depend on the number of processes.

    Args:
        envs: This process's share of the environments, as from `make_envs`.
        num_rows: Over all processes.
    """

    def __init__(
        self,
        envs: VectorEnv,
        *,
        config: collect.CollectSteps,
        replay: Replay,
        num_rows: int,
        seed: int,
        accelerator: Accelerator,
    ) -> None:
        if envs.metadata.get("autoreset_mode") is not AutoresetMode.DISABLED:
            raise InputError(f"{envs} resets itself; a replay buffer needs environments from make_envs.")
        if config.normalise_rewards or config.lag or config.episodes:
            raise InputError(
                "normalise_rewards, lag and episodes have no meaning for methods with a replay buffer; leave them off."
            )
        self.envs, self.config, self.replay = envs, config, replay
        self.num_rows, self.seed, self.accelerator = num_rows, seed, accelerator
        self.spaces = spaces_of(envs)
        self.num_envs = envs.num_envs * accelerator.num_processes
        self.episodes = Episodes(envs, seed=seed, first_id=accelerator.process_index * envs.num_envs)
        self.buffer = ReplayBuffer(-(-replay.capacity // self.num_envs))
        self.env_steps = 0

    @torch.no_grad()
    def collect(self, policy: TwinPolicy, update: int) -> Collected:
        """The first call also takes the steps with evenly drawn actions."""
        num_random = 0 if self.env_steps else -(-self.replay.random_steps // self.num_envs)
        seen, actions, samples = self._act(policy, update, num_random)
        self.buffer.add(
            {
                "observations": torch.as_tensor(seen.observations).to(policy.weight.dtype),
                "actions": actions.cpu(),
                "rewards": torch.as_tensor(seen.rewards).to(policy.weight.dtype),
                "terminals": torch.as_tensor(seen.terminated),
                "next_observations": torch.as_tensor(seen.next_observations).to(policy.weight.dtype),
            }
        )
        observe(policy, seen, self.accelerator)
        metrics = episode_metrics(seen, samples, self.accelerator, steps_before=self.env_steps)
        metrics |= {
            "steps": int(metrics["env_steps"]) - self.env_steps,
            "replay_size": self.buffer.filled * self.num_envs,
        }
        self.env_steps = int(metrics["env_steps"])
        return Collected(self._draw(policy, update), metrics, samples)

    def state_dict(self) -> dict[str, Any]:
        return {
            "episodes": self.episodes.state_dict(),
            "buffer": self.buffer.state_dict(),
            "env_steps": self.env_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.episodes.load_state_dict(state["episodes"])
        self.buffer.load_state_dict(state["buffer"])
        self.env_steps = state["env_steps"]

    def close(self) -> None:
        self.envs.close()

    def _act(self, policy: TwinPolicy, update: int, num_random: int) -> tuple[Experience, Tensor, list[dict[str, Any]]]:
        ids = torch.as_tensor(self.episodes.ids)
        shape = (len(ids), num_random + self.config.steps, self.spaces.action_size)
        draws = uniforms(self.seed, "actions", update, ids, shape[1] * shape[2]).view(shape)
        observed = self.episodes.observations
        seen = Experience.empty(shape[:2], observed.shape[1], observed.dtype)
        actions, samples = [], []
        for t in range(shape[1]):
            seen.observations[:, t] = self.episodes.observations
            if t < num_random:
                actions.append(_even(self.spaces, draws[:, t], policy.weight))
            else:
                actions.append(policy.act(torch.as_tensor(seen.observations[:, t]), draws[:, t])[0])
            step = self.episodes.step(policy.for_env(actions[-1]))
            for name in ("next_observations", "rewards", "terminated", "truncated", "mask"):
                getattr(seen, name)[:, t] = getattr(step, name)
            samples += step.finished
        return seen, torch.stack(actions, dim=1), samples

    def _draw(self, policy: TwinPolicy, update: int) -> Rollout:
        device = policy.weight.device
        draws = uniforms(self.seed, "replayed steps", update, torch.arange(self.num_rows), 1).squeeze(1)
        chosen = (draws * (self.buffer.filled * self.num_envs)).long()
        slots, envs = chosen // self.num_envs, chosen % self.num_envs - int(self.episodes.ids[0])
        sample_ids = ((envs >= 0) & (envs < len(self.episodes.ids))).nonzero().squeeze(1)
        slots, envs, drawn = slots[sample_ids], envs[sample_ids], True
        if not len(sample_ids):
            # All ranks take part in every update: one that drew nothing by a step of its own that is masked.
            slots = envs = torch.zeros(1, dtype=torch.int64)
            sample_ids, drawn = torch.tensor([self.num_rows + self.accelerator.process_index]), False
        columns = {name: column.unsqueeze(1).to(device) for name, column in self.buffer.take(slots, envs).items()}
        ends = torch.ones_like(columns["terminals"])
        unknown = torch.zeros_like(columns["rewards"])
        return Rollout(
            inputs={"observations": policy.normalise(columns["observations"]), "actions": columns["actions"]},
            behaviour_logprobs=unknown,
            logprobs=unknown,
            values=unknown,
            next_values=unknown,
            rewards=columns["rewards"],
            # Nothing flows from one row to another.
            dones=ends,
            mask=ends & drawn,
            sample_ids=sample_ids.to(device),
            costs=torch.ones_like(sample_ids, device=device),
            terminals=columns["terminals"],
            next_inputs={"observations": policy.normalise(columns["next_observations"])},
        )


def _even(spaces: Spaces, draws: Tensor, like: Tensor) -> Tensor:
    """Actions drawn evenly over all actions or between the bounds, from uniforms `(N, action size)`."""
    if spaces.num_actions:
        return (draws * spaces.num_actions).long().squeeze(-1).to(like.device)
    low, high = (torch.tensor(bounds, dtype=torch.float64) for bounds in (spaces.action_low, spaces.action_high))
    return (low + draws * (high - low)).to(like)
