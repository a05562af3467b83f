"""Tiny runs on control by the package's front door, each with its own combination of mechanisms.

torchrun tests/covering/control/runs.py FOLDER CASES    # the cases of a file by several processes, one after the other
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

import rlhf
from rlhf.control.settings import EvaluateEpisodes, Replay
from rlhf.control.stack import StackedMethod
from rlhf.rollout import Rollout
from rlhf.runs.launch import leave
from rlhf.runs.log import read_lines
from tests.covering.cases import Case
from tests.covering.control.mechanisms import METHODS
from tests.covering.control.watched import WatchedEnvs, WatchedSeeds
from tests.covering.control.world import LIMIT, World
from tests.covering.laws import copied, optimize_of, quickly

UPDATES = 2
SEEDS = (3, 4)
NUM_ENVS = 4
# Steps of a rollout; with those that a replay buffer begins with, as many as an episode's limit.
STEPS, REPLAYED_STEPS = LIMIT, LIMIT // 2
BUDGETS = {"all": 100_000, "some": 20, "one row": 1}
DTYPES = {"float64": torch.float64, "float32": torch.float32}
ACTING: dict[str, dict[str, int]] = {
    "fragments": {"num_envs": NUM_ENVS, "steps": STEPS},
    "episodes": {"episodes": 4},
    "groups": {"episodes": 4, "episodes_per_start": 2},
}
STARTS = {"CartPole": [[0.0, 0.1, 0.0, 0.0], [0.05, 0.0, 0.0, 0.2]]}


class Outcome(NamedTuple):
    """What a run came to."""

    before: dict[str, Tensor]
    """Weights, and what else the policy has."""
    after: dict[str, Tensor]
    reference: tuple[dict[str, Tensor], dict[str, Tensor]]
    """Before and after."""
    rows: list[dict[str, Any]]
    """Metrics of the updates and evaluations, where a folder keeps them."""
    passes: list[tuple[int, int]]
    """Of each forward pass that scores: rows, steps of each."""
    rollouts: list[Rollout]
    """As they were collected."""
    moved_by_evaluation: list[str]


def replays(case: Case) -> bool:
    return METHODS[case["method"]][0].replays


def task_of(case: Case, *, paid: bool = True, ends: str | None = None, reference: Any = None) -> rlhf.Envs:
    name = case["environment"]
    acting: dict[str, Any] = {**ACTING[case["acting"]], "lag": int(case["lag"])}
    if replays(case):
        acting["steps"] = REPLAYED_STEPS
    return WatchedEnvs(
        "CartPole-v1" if name == "CartPole" else World(name, ends or case["ends"], paid=paid),
        replay=Replay(capacity=100, random_steps=NUM_ENVS * (LIMIT - REPLAYED_STEPS)),
        evaluate=EvaluateEpisodes(episodes=1, sampled_episodes=1),
        reference=reference,
        starts=None if case["starts"] == "own" else np.array(STARTS.get(name, [[-0.5, 0.0], [0.3, 1.0]])),
        normalise_rewards=case["rewards"] == "normalised",
        **acting,
    )


def policy_of(case: Case, task: Any, **seed: int) -> Any:
    settings = {
        "hidden_sizes": (4,),
        "critic": case["critic"],
        "normalise_observations": case["observations"] == "normalised",
        **seed,
    }
    if replays(case):
        settings["replays"] = True
    return task.policy(**settings).to(DTYPES[case["precision"]])


def method_of(case: Case) -> rlhf.Method:
    kind, own = METHODS[case["method"]]
    wanted = {
        "gamma": float(case["gamma"]),
        "entropy_coef": float(case["entropy"]),
        "kl_coef": 0.0 if case["reference"] == "none" else 0.1,
    }
    known = {field.name for field in fields(kind)}
    return kind(**own, **{name: value for name, value in wanted.items() if name in known})


def settings_of(case: Case) -> rlhf.Optimize:
    # In cloning there is no method to choose.
    critic = "method" in case and case.get("critic") != "none" and method_of(case).critic_of != "none"
    return optimize_of(case, budget=BUDGETS[case["budget"]], critic=critic)


def made(case: Case, *, seed: int = 0, **kind: Any) -> tuple[Any, Any, rlhf.Method]:
    """Policy, task and method."""
    method = method_of(case)
    if case["seeds"] == "two":
        both = WatchedSeeds(task_of(case, **kind), SEEDS)
        # What is not offered for several seeds is asked for all the same, since it must be refused.
        both.envs.reference = None if case["reference"] == "none" else both.envs.policy()
        return policy_of(case, both), both, StackedMethod(method=method, seeds=SEEDS)
    task = task_of(case, **kind)
    policy = policy_of(case, task, seed=seed)
    if case["reference"] != "none":
        # That it is to be trained must not matter.
        reference = policy if case["reference"] == "same" else policy_of(case, task, seed=seed + 1)
        task = task_of(case, **kind, reference=reference)
    return policy, task, method


def run(
    case: Case,
    out: Path | None = None,
    *,
    updates: int = UPDATES,
    evaluations: int = 1,
    interrupted_at: int | None = None,
    resume: bool = False,
    seed: int = 0,
    **kind: Any,
) -> Outcome:
    """Trains by the front door.

    Args:
        kind: `paid` and `ends` of the environment.
    """
    policy, task, method = made(case, seed=seed, **kind)
    task.interrupted_at = interrupted_at
    reference = getattr(task, "reference", None)
    before = copied(policy.state_dict())
    kept = {} if reference is None else copied(reference.state_dict())
    with watched(policy) as passes, quickly():
        rlhf.train(
            policy,
            task,
            method,
            settings_of(case),
            updates=updates,
            evaluations=evaluations,
            checkpoints=updates,
            out=out,
            resume=resume,
            seed=seed,
        )
    return Outcome(
        before,
        copied(policy.state_dict()),
        (kept, {} if reference is None else copied(reference.state_dict())),
        [] if out is None else read_lines(out / method.name / "metrics.jsonl"),
        passes,
        task.rollouts,
        task.moved_by_evaluation,
    )


def weights_at(update: int, case: Case, out: Path) -> dict[str, Tensor]:
    """Those of a checkpoint."""
    policy, _, method = made(case)
    policy.load(out / method.name / "checkpoints" / f"{update:08d}" / "policy")
    return copied(policy.state_dict())


@contextmanager
def watched(policy: Any) -> Iterator[list[tuple[int, int]]]:
    passes: list[tuple[int, int]] = []

    def note(module: Any, args: Any) -> None:
        passes.append(tuple(args[0]["observations"].shape[:2]))

    hook = policy.register_forward_pre_hook(note)
    try:
        yield passes
    finally:
        hook.remove()


def main() -> None:
    output, cases = (Path(argument) for argument in sys.argv[1:])
    torch.set_num_threads(1)
    for number, case in enumerate(json.loads(cases.read_text())):
        outcome = run(case, output / f"run {number}")
        if torch.distributed.get_rank() == 0:
            save_file(outcome.after, output / f"{number}.safetensors")
    leave(0)


if __name__ == "__main__":
    main()
