"""Runs on CartPole that leave nothing behind but a curve: what figures that train many times share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from rlhf.control import evaluate
from rlhf.control.assemble import assemble
from rlhf.control.presets import Preset


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What `assemble` asks for: one method on CartPole, one seed, with the fields of a preset."""

    algorithm: str
    seed: int
    settings: Preset
    env_id: str = "CartPole-v1"
    num_seeds: int = 1
    output_dir: Path = Path()
    evaluate: evaluate.Config = evaluate.Config(episodes=20, sampled_episodes=0)
    checkpoint_every_steps: int = 10**9

    def __getattr__(self, name: str) -> Any:
        return getattr(self.settings, name)


class Curve:
    """In place of a phase's folder: keeps steps and returns of evaluations, and writes nothing."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []

    def finished(self, target: int, unit: str) -> bool:
        return False

    def restore(self) -> None:
        """There is nothing to go on from."""

    def save(self, update: int, state: Any, writers: Any) -> None:
        """A run of a minute needs no checkpoint."""

    def log(self, row: dict[str, float]) -> None:
        if "eval_return_mean" in row:
            self.points.append((row["steps"], row["eval_return_mean"]))

    def record(self, samples: Any) -> None:
        """Nobody reads them."""

    def finish(self, target: int, writers: Any) -> None:
        """Nothing to commit."""


def trained(method: str, settings: Preset, *, seed: int) -> np.ndarray:
    """`(2, P)` steps and mean returns of the evaluations."""
    trial, curve, accelerator = Trial(algorithm=method, seed=seed, settings=settings), Curve(), Accelerator(cpu=True)
    parts = assemble(trial, accelerator)
    parts.evaluate.cache = None
    parts.train(trial, phase=curve, accelerator=accelerator)
    return np.array(curve.points).T
