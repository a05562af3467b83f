"""The mechanisms of cloning on control, tiny runs of them, and what each run keeps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import rlhf
from rlhf.control.dagger import DaggerCollector
from rlhf.control.demonstrations import demonstrations
from rlhf.control.envs import make_envs
from rlhf.control.settings import Dagger, EvaluateEpisodes
from rlhf.demonstrations import DemonstrationCollector
from rlhf.runs.log import read_lines
from tests.covering import laws
from tests.covering.cases import Case, Mechanisms, refused
from tests.covering.control import runs
from tests.covering.control.laws import CRITIC, MOMENTS, assert_within_budget
from tests.covering.control.mechanisms import ABSENT, FACTORS
from tests.covering.control.watched import WatchedImitation
from tests.covering.control.world import ACTIONS, World
from tests.covering.laws import ROUNDING, assert_same_change, changed, copied, quickly

_OF_BOTH = ("environment", "ends", "observations", "critic", "steps", "budget", "schedule", "precision")
MECHANISMS = Mechanisms(
    {"shown": ("by a policy", "by a function", "by dagger", "by dagger led"), "expert": ("raw", "normalised")}
    | {name: FACTORS[name] for name in _OF_BOTH},
    refused("critic", ("action",), "environment", ("vectors",), "needs discrete actions"),
    [*(pair for pair in ABSENT if pair[0][0] == "environment"), (("shown", "by a function"), ("expert", "normalised"))],
)


def controller_of(environment: str) -> Callable[[np.ndarray], Any]:
    """Goes to where it is paid."""

    def act(observation: np.ndarray) -> Any:
        right = bool(observation[-2] < 0.0)
        if environment in ("CartPole", "choices"):
            return int(not right) if environment == "CartPole" else 5 + 2 * right
        space = ACTIONS[environment]
        return np.where([right, not right], space.high, space.low).astype(np.float32)

    return act


def made(case: Case) -> tuple[Any, Any, Any]:
    """Policy, task and expert."""
    plain = {"acting": "fragments", "lag": "0", "starts": "own", "rewards": "raw", "method": "ppo"}
    envs = runs.task_of({**case, **plain})
    policy = runs.policy_of({**case, **plain}, envs)
    expert: Any = controller_of(case["environment"])
    if case["shown"] != "by a function":
        expert = runs.policy_of({**case, **plain, "observations": case["expert"]}, envs, seed=1)
    env: Any = "CartPole-v1" if case["environment"] == "CartPole" else World(case["environment"], case["ends"])

    def collector(*, seed: int, accelerator: Any) -> Any:
        if case["shown"].startswith("by dagger"):
            config = Dagger(num_envs=4, steps=3, expert_share=0.5 if case["shown"] == "by dagger led" else 0.0)
            shared = make_envs(env, 4, num_processes=accelerator.num_processes)
            return DaggerCollector(shared, expert, config=config, seed=seed, accelerator=accelerator)
        shown = demonstrations(expert, policy, env, episodes=2, seed=seed)
        return DemonstrationCollector(shown, rows_per_update=6, seed=seed, accelerator=accelerator)

    task = WatchedImitation(env, collector, evaluate=EvaluateEpisodes(episodes=1, sampled_episodes=1))
    return policy, task, expert


def run(
    case: Case,
    out: Path | None = None,
    *,
    updates: int = runs.UPDATES,
    evaluations: int = 1,
    interrupted_at: int | None = None,
    resume: bool = False,
) -> runs.Outcome:
    """Clones by the front door; the reference is the expert, where it has weights."""
    policy, task, expert = made(case)
    task.interrupted_at = interrupted_at
    before, kept = copied(policy.state_dict()), _weights_of(expert)
    with runs.watched(policy) as passes, quickly():
        rlhf.train(
            policy,
            task,
            rlhf.BehaviourCloning(),
            runs.settings_of({**case, "whiten": "none"}),
            updates=updates,
            evaluations=evaluations,
            checkpoints=updates,
            out=out,
            resume=resume,
        )
    after = copied(policy.state_dict())
    rows = [] if out is None else read_lines(out / "clone" / "metrics.jsonl")
    experts = (kept, _weights_of(expert))
    return runs.Outcome(before, after, experts, rows, passes, task.rollouts, task.moved_by_evaluation)


def _weights_of(expert: Any) -> dict[str, Any]:
    return copied(expert.state_dict()) if hasattr(expert, "state_dict") else {}


def assert_laws(case: Case, folder: Path) -> None:
    whole = run(case, folder / "whole")
    assert not changed(*whole.reference)
    assert not whole.moved_by_evaluation
    assert_within_budget({**case, "method": "clone"}, whole)
    moved = changed(whole.before, whole.after)
    assert [name for name in moved if not name.startswith(MOMENTS)]
    assert not [name for name in moved if name.startswith(CRITIC)]
    one, other = (run({**case, "budget": budget}, updates=1) for budget in (case["budget"], _another(case["budget"])))
    assert_same_change(one.before, one.after, other.after, limit=ROUNDING[case["precision"]])
    laws.assert_resumed_is_uninterrupted(
        laws.Run(whole.before, whole.after, whole.rows),
        partial(run, case, folder / "resumed", evaluations=runs.UPDATES),
    )


def _another(budget: str) -> str:
    return "one row" if budget == "all" else "all"
