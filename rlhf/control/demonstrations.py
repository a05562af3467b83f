"""Demonstrations on control, for behaviour cloning: what a policy or a hand-written controller does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from rlhf.control.envs import make_env
from rlhf.control.evaluate import run_episodes
from rlhf.control.policy import ControlPolicy
from rlhf.core.random import derive_seed
from rlhf.errors import InputError
from rlhf.rollout import Rollout

Controller = Callable[[np.ndarray], Any]
"""One raw observation to one action of the environment."""


def demonstrations(
    controller: ControlPolicy | Controller,
    learner: ControlPolicy,
    env_id: str,
    *,
    episodes: int,
    seed: int,
    accelerator: Accelerator,
) -> Rollout:
    """This process's share of the steps of whole episodes; a row is one step. A policy demonstrates greedily.

    Args:
        learner: The policy that will clone them. If it normalises observations, its moments take in all of these
            first, so that what it learns now still holds when it collects experience of its own.
    """
    if episodes < 1:
        raise InputError(f"episodes is {episodes}; it must be at least 1.")
    seen: list[np.ndarray] = []
    done: list[np.ndarray] = []

    def act(observations: np.ndarray, which: np.ndarray, step: int) -> np.ndarray:
        if isinstance(controller, ControlPolicy):
            actions = controller.spaces.for_env(controller.act(torch.as_tensor(observations), None)[0])
        else:
            actions = np.array([controller(observation) for observation in observations])
        seen.append(observations)
        done.append(actions)
        return actions

    envs = [make_env(env_id) for _ in range(episodes)]
    run_episodes(act, envs, [derive_seed(seed, "demonstration", i) for i in range(episodes)])
    for env in envs:
        env.close()
    raw = torch.as_tensor(np.concatenate(seen)).to(learner.weight.device)
    if learner.config.normalise_observations:
        # Every process has played all of them: nothing is left to add up.
        learner.normalizer.update(raw, lambda sums: sums)
    actions = learner.spaces.from_env(np.concatenate(done)).to(raw.device)
    if not learner.spaces.num_actions:
        actions = actions.to(learner.weight.dtype)
    sample_ids = torch.arange(len(raw), device=raw.device)
    sample_ids = sample_ids.tensor_split(accelerator.num_processes)[accelerator.process_index]
    return Rollout.demonstrations(
        inputs={
            "observations": learner.normalise(raw[sample_ids]).unsqueeze(1),
            "actions": actions[sample_ids].unsqueeze(1),
        },
        mask=torch.ones(len(sample_ids), 1, dtype=torch.bool, device=raw.device),
        sample_ids=sample_ids,
        costs=torch.ones_like(sample_ids),
    )
