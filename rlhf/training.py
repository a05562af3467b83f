"""The way in: a policy, a task, a method and settings become a run."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple
from weakref import WeakSet

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from torch import nn

from rlhf import optimize
from rlhf.algorithms import checks
from rlhf.algorithms.base import Method
from rlhf.errors import InputError, no_exit
from rlhf.loop import Duration, learn
from rlhf.parallel import require_accelerator, require_environment, require_shardable
from rlhf.runs.processes import end_in_order, require_processes
from rlhf.runs.run import Phase, Run, Unsaved
from rlhf.runs.summary import conclude
from rlhf.settings import CountOrNone, Location, Seed, TotalOrNone, checked
from rlhf.sources import code_sums
from rlhf.task import Here, Task

# Policies whose weights this process has trained.
_TRAINED: WeakSet[nn.Module] = WeakSet()


class Result(NamedTuple):
    """The metrics of the first and of the last evaluation, and the folder of the phase if it has one."""

    before: dict[str, float]
    after: dict[str, float]
    folder: Path | None


@checked
def train(
    policy: Any,
    task: Task,
    method: Method,
    settings: optimize.Optimize | None = None,
    *,
    updates: TotalOrNone = 0,
    steps: TotalOrNone = 0,
    evaluations: CountOrNone = 10,
    checkpoints: CountOrNone = 10,
    out: Location | Path | None = None,
    resume: bool = False,
    accept_changes: bool = False,
    seed: Seed = 0,
    mixed_precision: Literal["no", "bf16"] = "no",
) -> Result:
    """Trains `policy` in place, and measures it before, on the way and after.

    Args:
        policy: As `load_policy` or a task's `policy()` gives it.
        task: What it is trained on: Prompts, Demonstrations, Envs, or one of your own.
        method: PPO(), GRPO(), ..., or one of your own.
        settings: How a batch becomes optimizer steps; None is Optimize(), with what goes with the method.
        updates: Updates in all; or give `steps`.
        steps: Actions in all: environment steps or tokens.
        evaluations: Spread evenly over the run, beside the one before it.
        checkpoints: Spread alike; nothing is kept without `out`.
        out: Folder for what the run leaves behind; None keeps nothing.
        resume: Continue the run in `out`, which may be given more updates or steps.
        accept_changes: On resume, go on although data, code or models are not those that the run was started from.
        seed: Everything random follows from it.
        mixed_precision: bf16 is autocast; weights that are trained stay float32.

    Raises:
        InputError: Something does not fit; nothing was changed.
    """
    require_parts(policy, task, method, settings)
    if resume and out is None:
        raise InputError("resume is True, but without `out` nothing was kept to go on from; name the run's folder.")
    if resume and method.needs_reference and policy in _TRAINED:
        raise InputError(
            f"{method.name} charges for the KL to the policy as the run began with it, and this object was trained "
            "since; give a policy that is loaded anew, whose weights the resumed run then restores."
        )
    duration = spread(updates=updates, steps=steps, evaluations=evaluations, checkpoints=checkpoints)
    settings = settings or checks.fitting(method, optimize.Optimize())
    require_environment()
    accelerator = make_accelerator(policy, mixed_precision=mixed_precision)
    require(policy, task, method, settings, accelerator)
    settings = checks.resolved(method, settings)
    if out is None:
        unsaved = Unsaved(method.name, accelerator)
        return train_phase(policy, task, method, settings, duration=duration, phase=unsaved, seed=seed)
    described = Described(
        policy={
            "kind": type(policy).__name__,
            "trained_parameters": sum(p.numel() for p in policy.parameters() if p.requires_grad),
            "temperature": getattr(policy, "temperature", 1.0),
        },
        task=task.describe(),
        method={"name": method.name, **asdict(method)},
        optimize=settings,
        duration=duration,
        mixed_precision=mixed_precision,
        seed=seed,
    )
    extendable = {"duration.updates", "duration.steps", "duration.eval_every", "duration.checkpoint_every"}

    def inputs() -> dict[str, str]:
        own = task.inputs() | code_sums("task", task) | code_sums("method", method) | code_sums("policy", policy)
        return own | getattr(policy, "inputs", dict)()

    run = Run(
        out,
        described,
        resume=resume,
        accelerator=accelerator,
        extendable=extendable,
        inputs=inputs,
        any_processes=task.shared_state,
        accept_changes=accept_changes,
    )
    # Also after an error, which a notebook outlives.
    with closing(run):
        phase = run.phase(method.name)
        result = train_phase(policy, task, method, settings, duration=duration, phase=phase, seed=seed)
        conclude(run, {f"{name}_before": value for name, value in result.before.items()} | result.after)
    return result


def train_phase(
    policy: Any,
    task: Task,
    method: Method,
    settings: optimize.Optimize,
    *,
    duration: Duration,
    phase: Phase | Unsaved,
    seed: int,
) -> Result:
    """One part of a run that has several, such as cloning before a policy gradient; see `train`."""
    accelerator = phase.accelerator
    require(policy, task, method, settings, accelerator)
    settings = checks.resolved(method, settings)
    here = Here(accelerator, seed, method, settings, phase.folder)
    task.prepare(policy, here)
    try:
        with no_exit("code of the task, the method or the policy"):
            learn(policy, task, method, settings, duration=_in_updates(duration, task), phase=phase, here=here)
    finally:
        task.close()
        _TRAINED.add(policy)
    evaluated = [row for row in phase.rows() if any(name.startswith("eval_") for name in row)]
    before, after = (
        {name: value for name, value in row.items() if name.startswith("eval_")}
        for row in ((evaluated[0], evaluated[-1]) if evaluated else ({}, {}))
    )
    return Result(before, after, phase.folder)


@dataclass(frozen=True, kw_only=True)
class Described:
    """What config.json says of a run that `train` made."""

    policy: dict[str, Any]
    task: dict[str, Any]
    method: dict[str, Any]
    optimize: optimize.Optimize
    duration: Duration
    mixed_precision: str
    seed: int


def spread(*, updates: int, steps: int, evaluations: int, checkpoints: int) -> Duration:
    """So many evaluations and checkpoints, evenly over the run."""
    target = steps or updates
    every = [-(-target // number) if number else 0 for number in (evaluations, checkpoints)]
    return Duration(updates=updates, steps=steps, eval_every=every[0], checkpoint_every=every[1])


def _in_updates(duration: Duration, task: Task) -> Duration:
    """Where rollouts are of one size, updates are counted, not steps."""
    size = task.steps_per_update
    if not (duration.steps and size):
        return duration
    return replace(
        duration,
        updates=-(-duration.steps // size),
        steps=0,
        eval_every=_at_least_one(duration.eval_every, size),
        checkpoint_every=_at_least_one(duration.checkpoint_every, size),
    )


def _at_least_one(steps: int, size: int) -> int:
    """Updates in so many steps; 0 stays 0, which is off."""
    return max(steps // size, 1) if steps else 0


def make_accelerator(policy: Any, *, mixed_precision: str) -> Accelerator:
    """Accelerate's state of this process; networks of control stay on the CPU, where their environments are."""
    cpu = policy.memoryless
    state = AcceleratorState._shared_state
    if state and PartialState().num_processes == 1:
        other_device = torch.cuda.is_available() and (PartialState().device.type == "cpu") != cpu
        if other_device or state["_mixed_precision"] != mixed_precision:
            # Another run of this process, such as of a notebook, was of another kind.
            AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision=mixed_precision, **({"cpu": True} if cpu else {}))
    end_in_order()
    return accelerator


def require_parts(policy: Any, task: Any, method: Any, settings: Any) -> None:
    """Refuses what is no policy, task, method or settings, such as a class in place of an object."""
    if not isinstance(policy, nn.Module) or not hasattr(policy, "memoryless"):
        raise InputError(
            f"policy is {_shown(policy)}, which is no policy; take what rlhf.load_policy or a task's policy() gives."
        )
    if not isinstance(task, Task):
        raise InputError(f"task is {_shown(task)}, which is no task; take rlhf.Prompts(...), rlhf.Envs(...), ...")
    if settings is not None and not isinstance(settings, optimize.Optimize):
        raise InputError(f"settings is {_shown(settings)}; take rlhf.Optimize(...).")
    if not isinstance(method, Method):
        hint = f"; write {method.__name__}()" if isinstance(method, type) and issubclass(method, Method) else ""
        raise InputError(f"method is {method!r}, which is no method{hint}.")


def _shown(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"{type(value).__name__} {value!r:.60}"


def require(policy: Any, task: Task, method: Method, settings: optimize.Optimize, accelerator: Accelerator) -> None:
    """Refuses what does not fit, before anything is loaded or written.

    Raises:
        InputError: With what was given, what is needed, and what to do.
    """
    require_parts(policy, task, method, settings)
    require_processes(accelerator)
    if policy.memoryless and accelerator.mixed_precision != "no":
        raise InputError(
            f"mixed precision is {accelerator.mixed_precision}, but control computes in its weights' own; set it to no."
        )
    require_accelerator(accelerator)
    layers = all(len(parts) > 1 for parts in getattr(policy, "shardable", [[policy]]))
    require_shardable(accelerator, method.name, layers=layers, shardable=method.shardable)
    settings = checks.resolved(method, settings)
    checks.require_settings(method, settings, group_size=task.group_size)
    checks.require_policy(method, memoryless=policy.memoryless, has_critic=policy.has_critic)
    checks.require_rate(settings, has_critic=policy.has_critic)
    if method.needs_episodes and not task.whole_episodes:
        raise InputError(
            f"{method.name} with these settings learns from whole episodes, and rows of this task are fragments; set "
            "episodes (the number of whole episodes in each update)."
        )
    task.require(policy, method, settings, accelerator)
