"""Runs on CartPole that leave nothing behind but a curve: what figures that train many times share."""

from __future__ import annotations

import numpy as np
from accelerate import Accelerator

from recipes.settings.control import Preset
from rlhf.control.evaluate import EvaluateEpisodes
from rlhf.control.tasks import Envs
from rlhf.runs.run import Unsaved
from rlhf.training import Duration, train_phase

EPISODES = EvaluateEpisodes(episodes=20, sampled_episodes=0)


def trained(settings: Preset, *, seed: int) -> np.ndarray:
    """`(2, P)` steps and mean returns of the evaluations."""
    method = settings.method
    task = Envs("CartPole-v1", replay=settings.replay, evaluate=EPISODES, **vars(settings.collect))
    policy = task.policy(replays=method.replays, seed=seed, **vars(settings.policy))
    phase = Unsaved(method.name, Accelerator(cpu=True), shown=False)
    duration = Duration(steps=settings.steps, eval_every=settings.eval_every_steps, checkpoint_every=0)
    train_phase(policy, task, method, settings.optimize, duration=duration, phase=phase, seed=seed)
    points = [(row["steps"], row["eval_return_mean"]) for row in phase.rows() if "eval_return_mean" in row]
    return np.array(points).T
