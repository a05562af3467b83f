"""The collector that a collect.Config describes."""

from __future__ import annotations

from typing import Any

import numpy as np
from accelerate import Accelerator

from rlhf.control import collect
from rlhf.control.envs import make_envs, make_many
from rlhf.control.episode_collect import EpisodeCollector
from rlhf.control.policy import ControlPolicy
from rlhf.errors import InputError
from rlhf.lag import LaggedCollector


def make_collector(
    env_id: str,
    *,
    config: collect.Config,
    gamma: float,
    seed: int,
    accelerator: Accelerator,
    micro_batch_cost: int,
    reference: ControlPolicy | None = None,
    starts: np.ndarray | None = None,
) -> Any:
    """Whole episodes or fragments, by actors that lag or do not; with this process's share of the environments.

    Args:
        gamma: Discount of the returns that `normalise_rewards` scales by.
        micro_batch_cost: Most row costs that the learner scores at once where actors lag.
        reference: A policy to measure the KL to.
        starts: States in which episodes begin, as for `make_env`.
    """
    options: dict[str, Any] = {"config": config, "gamma": gamma, "seed": seed, "accelerator": accelerator}
    options["reference"] = reference
    num_processes = accelerator.num_processes
    collector: Any
    if config.episodes_per_rollout:
        if config.episodes_per_rollout % num_processes:
            raise InputError(
                f"episodes_per_rollout is {config.episodes_per_rollout}, which {num_processes} processes cannot share "
                "evenly; make it a multiple of them."
            )
        collector = EpisodeCollector(
            make_many(env_id, config.episodes_per_rollout // num_processes, starts=starts), **options
        )
    else:
        vector = make_envs(env_id, config.num_envs, num_processes=num_processes, starts=starts)
        collector = collect.EnvCollector(vector, **options)
    if config.lag:
        return LaggedCollector(collector, lag=config.lag, accelerator=accelerator, micro_batch_cost=micro_batch_cost)
    return collector
