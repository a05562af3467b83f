"""The outer loop, written once: collect, estimate, update, evaluate, log, checkpoint, stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from rlhf.algorithms import alike
from rlhf.algorithms.actor_critic import stepping_only
from rlhf.algorithms.base import Method
from rlhf.deferred import deferred
from rlhf.errors import InputError, NonFiniteError
from rlhf.runs.stop import StopSignals
from rlhf.settings import CountOrNone, Settings, TotalOrNone

with deferred():
    import torch
    from accelerate import Accelerator
    from accelerate.utils import gather_object
    from torch import Tensor, nn

    from rlhf import acting, optimize
    from rlhf.reduce import MetricSums, advantage_metrics, anywhere, global_moments, global_sum
    from rlhf.rollout import Batch, PolicyOutput, Rollout, single_steps
    from rlhf.runs.clock import seconds_spent
    from rlhf.runs.memory import peak_memory
    from rlhf.runs.pulse import pulse
    from rlhf.runs.run import Phase, Restored, Unsaved
    from rlhf.sharded import (
        load_optimizer,
        local,
        put_together,
        require_unsharded,
        shard,
        shards,
        weights_of,
        whole,
    )
    from rlhf.task import Here, Task


class Policy(Protocol):
    """A module that scores actions; `memoryless` ones may be scored action by action.

    One that tasks of your own act with also needs what they ask of it; methods with a critic ask for
    `critic_parameters()`, those that fit it first for `state_values(inputs)` where episodes are cut. One that FSDP2 may
    spread over processes names its layers, and itself last: `shardable`.
    """

    memoryless: bool
    has_critic: bool

    def __call__(self, inputs: dict[str, Tensor]) -> PolicyOutput: ...

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Duration(Settings):
    """How long to train, and what to leave behind."""

    updates: TotalOrNone = 0
    """Updates in all; a finished run with a larger number is extended. 0: `steps` says when to end."""
    steps: TotalOrNone = 0
    """Actions in all, for updates of uneven size: schedules and intervals then count actions. 0: they count updates."""
    eval_every: TotalOrNone = 10
    """Updates between evaluations; there is one before the first and one after the last. 0: only these two."""
    checkpoint_every: TotalOrNone = 10
    """Updates between checkpoints; there is one before the first and one after the last. 0: only these two."""
    record_samples: CountOrNone = 8
    """Training samples written to samples.jsonl at each update."""

    def __post_init__(self) -> None:
        if max(self.updates, self.steps) < 1:
            raise InputError(f"updates is {self.updates}; it must be at least 1.")
        if self.updates and self.steps:
            raise InputError(f"updates is {self.updates} and steps {self.steps}; give one and leave the other 0.")

    @property
    def target(self) -> int:
        """Where the run ends, in the unit that it counts in."""
        return self.steps or self.updates


def learn(
    policy: Any,
    task: Task,
    method: Method,
    settings: optimize.Optimize,
    *,
    duration: Duration,
    phase: Phase | Unsaved,
    here: Here,
) -> None:
    """The outer loop: trains `policy` until `duration.target`, or goes on from the phase's newest good checkpoint.

    A phase that is finished only loads its final policy.

    Raises:
        Stopped: SIGTERM or Ctrl-C came; the update in hand is done and saved.
        NonFiniteError: A number turned NaN or infinite; the last good checkpoint is left as it is.
    """
    accelerator = here.accelerator
    unit = "steps" if duration.steps else "updates"
    if phase.finished(duration.target, unit):
        require_unsharded(policy)
        phase.load_final(policy.load)
        return
    lag = acting.Lag(task.lag)
    restored = phase.restore()
    state, update, steps = {**method.initial_state(), "paid": torch.tensor(False)}, 0, 0
    if restored is not None:
        _require_as_many(restored, task, accelerator)
        require_unsharded(policy)
        policy.load(restored.folders / "policy")
    phase.require_space(*_sizes(policy))
    wrapped, optimizer = _prepared(policy, settings, accelerator)
    if restored is not None:
        state, update, steps = _take_up(restored, optimizer, task, lag, accelerator)
    learner = optimize.Learner(
        policy=wrapped, optimizer=optimizer, config=settings, accelerator=accelerator, seed=here.seed
    )

    def save(update: int) -> None:
        content = {"optimizer": put_together(optimizer.state_dict()), "method": state, "steps": steps}
        content["task"] = _per_rank({"task": task.state_dict(), "lag": lag.state_dict()}, accelerator)
        phase.save(update, content, {"policy": _writer(policy)})

    with (
        StopSignals(accelerator) as signals,
        pulse(accelerator, saved=phase.folder is not None) as life,
        _own_forward(accelerator, wrapped),
        _stop_noted(phase),
    ):
        if restored is None:
            life.at("the evaluation before update 1")
            _evaluate(policy, task, here, phase, {"update": 0, "steps": 0})
            life.at("the checkpoint before update 1")
            save(0)
        done, told = steps if duration.steps else update, False
        cost = optimize.affordable(policy, settings.micro_batch_cost)
        while done < duration.target:
            life.at(f"update {update + 1}")
            learner = replace(learner, update_index=update, progress=done / duration.target)
            state, row, samples = _collect_and_learn(learner, task, lag, here, state)
            steps += row["steps"]
            row["steps"] = steps
            update, before, stopped = update + 1, done, signals.requested()
            done = steps if duration.steps else update
            if row.get("scores_alike") and not told:
                told = True
                phase.say(alike.words(method, update))
            if row.get("micro_batch_cost", cost) < cost:
                cost = int(row["micro_batch_cost"])
                phase.say(optimize.words(settings.micro_batch_cost, cost, update))
            last = done >= duration.target
            evaluates = last or _passed(duration.eval_every, before, done)
            saves = last or stopped or _passed(duration.checkpoint_every, before, done)
            if evaluates or saves:
                _require_finite(policy, update, accelerator)
            phase.record([{"update": update, "kind": "training", **s} for s in samples[: duration.record_samples]])
            if evaluates:
                life.at(f"the evaluation after update {update}")
                _evaluate(policy, task, here, phase, {"update": update, "steps": steps, **row})
            else:
                _log(phase, {"update": update, **row})
            if saves:
                life.at(f"the checkpoint after update {update}")
                save(update)
            if stopped and not last:
                signals.stop()
        life.at("writing the final policy")
        phase.finish(duration.target, {"policy": _writer(policy)})
        # A signal during the last update is meant for what would come after this phase.
        if signals.requested():
            signals.stop()


def _prepared(
    policy: Any, settings: optimize.Optimize, accelerator: Accelerator
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The policy as its updates call it, and what steps it."""
    if shards(accelerator):
        # Nothing but autocast is Accelerate's then.
        accelerator.prepare_model(policy, evaluation_mode=True)
        shard(policy, accelerator)
        return policy, optimize.make_optimizer(policy, settings)
    # Accelerate's wrapper looks for optional packages at every step (7 % of an update on control), and only serves
    # fp16 scaling, which is not offered; the optimizer inside is this very one.
    optimizer = optimize.make_optimizer(policy, settings)
    wrapped, _ = accelerator.prepare(policy, optimizer)
    return wrapped, optimizer


def _writer(policy: Any) -> Callable[[Path], object]:
    """Writes the policy; where it is spread over processes, all of them give what they hold of it now."""
    weights = weights_of(policy)
    return policy.save if weights is None else partial(policy.save, state_dict=weights)


@contextmanager
def _own_forward(accelerator: Accelerator, wrapped: nn.Module) -> Iterator[None]:
    """Afterwards the policy computes in its own precision again, for whatever it is used for next."""
    try:
        yield
    finally:
        if accelerator.mixed_precision != "no":
            policy = accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
            # Else Accelerate takes it for prepared in the next phase, which would compute in float32.
            vars(policy).pop("_is_accelerate_prepared", None)
            # It takes decorators off as well, down to the function, and with ours the policy's own precision.
            vars(policy).pop("forward", None)


@contextmanager
def _stop_noted(phase: Phase | Unsaved) -> Iterator[None]:
    """A number that is not finite, again, right after a checkpoint tells against that checkpoint."""
    try:
        yield
    except NonFiniteError as error:
        phase.stopped(str(error))
        raise


def _sizes(policy: nn.Module) -> tuple[int, int]:
    """Bytes of a checkpoint, which also has Adam's two moments, and of a final policy; what is frozen may add to it."""
    weights = sum(tensor.numel() * tensor.element_size() for tensor in policy.parameters() if tensor.requires_grad)
    return 3 * weights, weights


def _require_finite(policy: nn.Module, update: int, accelerator: Accelerator) -> None:
    """Weights and running statistics, which no checkpoint takes if the last step made them NaN; nor are they evaluated.

    What a checkpoint holds beside them is looked at when it is written.
    """
    broken = [
        name
        for name, tensor in policy.state_dict().items()
        if torch.is_tensor(tensor) and not bool(torch.isfinite(local(tensor)).all())
    ]
    if anywhere(accelerator, bool(broken)):
        raise NonFiniteError(f"{broken[0] if broken else 'a weight'} is not finite after update {update}.")


def _passed(interval: int, before: int, now: int) -> bool:
    """Whether a multiple of `interval` was reached on the way; never if it is 0."""
    return interval > 0 and now // interval > before // interval


def _per_rank(state: dict[str, Any], accelerator: Accelerator) -> list[dict[str, Any]]:
    return gather_object([state]) if accelerator.num_processes > 1 else [state]


def _require_as_many(restored: Restored, task: Task, accelerator: Accelerator) -> None:
    per_rank = restored.state["task"]
    if len(per_rank) != accelerator.num_processes and not task.shared_state:
        raise InputError(
            f"the checkpoint was written by {len(per_rank)} processes and this run has {accelerator.num_processes}; "
            "resume it with as many as before."
        )


def _take_up(
    restored: Restored, optimizer: torch.optim.Optimizer, task: Task, lag: acting.Lag, accelerator: Accelerator
) -> tuple[dict[str, Tensor], int, int]:
    """Puts back all but the weights as it was saved; returns the method's state, updates done and steps taken."""
    load_optimizer(optimizer, restored.state["optimizer"])
    per_rank = restored.state["task"]
    own = per_rank[accelerator.process_index % len(per_rank)]
    task.load_state_dict(own["task"])
    lag.load_state_dict(own["lag"])
    return restored.state["method"], restored.update, restored.state["steps"]


def _collect_and_learn(
    learner: optimize.Learner, task: Task, lag: acting.Lag, here: Here, state: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any], list[dict[str, Any]]]:
    """One update: the method's next state, what to log (`steps` are those of this update), and the samples."""
    policy, accelerator, index, method = learner.module, learner.accelerator, learner.update_index, here.method
    state = {**state, "progress": torch.tensor(learner.progress), "update": torch.tensor(index)}
    seconds: dict[str, Any] = {}
    with _timed(seconds, "collect"), whole(policy):
        with lag.acting(policy):
            rollout, metrics, samples = task.collect(policy, index, here)
        if not int(global_sum(accelerator, rollout.mask.sum())):
            # Not even a step of weight decay or momentum.
            return state, metrics | {"steps": 0}, samples
        seen: dict[str, float] = {}
        if method.compares:
            rollout, seen = acting.completed(
                policy,
                rollout,
                accelerator=accelerator,
                micro_batch_cost=here.settings.micro_batch_cost,
                importance_cap=learner.config.importance_cap,
                importance_floor=learner.config.importance_floor,
                weighs=not method.corrects_lag,
                lags=lag.updates > 0,
            )
        elif rollout.logprobs is None:
            rollout = rollout.unscored()
        if rollout.ref_logprobs is not None and task.at_reference(policy):
            # Two passes round differently, and a charge for that would be whitened into a step.
            rollout = replace(rollout, ref_logprobs=rollout.logprobs)
        if method.needs_reference and rollout.ref_logprobs is None:
            raise InputError(
                f"{method.name} charges for the KL to a reference, and the task gives none; fill `ref_logprobs` of its "
                "rollouts, or set kl_coef to 0."
            )
        # The second time with weights that have moved, which what acts may not have got.
        if index < 2 and not lag.updates:
            acting.require_same_policy(seen, rounding=task.rounding, mixed_precision=accelerator.mixed_precision)
    with _timed(seconds, "update"):
        batch, cells = method.estimate(rollout, state)
        # A task that hands over other steps than it took says itself how many it took.
        metrics = describe(rollout, batch, cells, accelerator) | seen | metrics
        if method.compares:
            state |= alike.seen(method, rollout, batch, state["paid"], accelerator)
            metrics |= alike.share_of_groups(rollout, accelerator) | {"scores_alike": float(not state["teaches"])}
        with _stepping(method, learner, state):
            learned, state = method.update(learner, rollout, framed(method, policy, rollout, batch), state)
        metrics |= learned
    state = method.adapt(state, metrics)
    # With several seeds side by side there is one each: their mean.
    metrics |= {name: float(state[name].double().mean()) for name in method.initial_state()}
    return state, metrics | _speed(metrics["steps"], seconds) | _memory(accelerator), samples


@contextmanager
def _stepping(method: Method, learner: optimize.Learner, state: dict[str, Tensor]) -> Iterator[None]:
    """An update that fits the critic alone leaves every other parameter as it is, also those that the two share."""
    if not (method.compares and method.fits_critic_only(state)):
        yield
        return
    has_critic = method.critic_of != "none" and learner.module.has_critic
    own = learner.module.critic_parameters() if has_critic else []
    with stepping_only(learner.optimizer, own):
        yield


def framed(method: Method, policy: Policy, rollout: Rollout, batch: Batch) -> Batch:
    """The batch in the rows that the method's loss sees: single steps, whole rows, or rows in blocks.

    Raises:
        InputError: The method keeps groups together, and the rollout has none.
    """
    if method.rows == "steps":
        return single_steps(batch) if policy.memoryless else batch
    if method.rows == "episodes":
        return batch
    if rollout.groups is None:
        raise InputError(
            f"{method.name} sees rows in groups, and those of this task are in none; give the rollout `groups`."
        )
    order = torch.argsort(rollout.groups, stable=True)
    return batch.rows(order)._replace(blocks=rollout.groups[order])


def describe(rollout: Rollout, batch: Batch, cells: dict[str, Tensor], accelerator: Accelerator) -> dict[str, float]:
    """What the estimates look like, over all ranks; explained variance is 0 where the returns do not vary."""
    sums = MetricSums()
    sums.add(cells, rollout.mask, rollout.dones)
    _, spread = global_moments(accelerator, batch.returns, batch.mask)
    _, unexplained = global_moments(accelerator, batch.returns - batch.values, batch.mask)
    return (
        sums.reduce(accelerator)
        | advantage_metrics(accelerator, batch.advantages, batch.mask)
        | {
            "steps": int(global_sum(accelerator, batch.mask.sum())),
            "explained_variance": float(1.0 - unexplained / spread) if spread > 0 else 0.0,
        }
    )


def _speed(steps: float, seconds: dict[str, float]) -> dict[str, float]:
    speed = {f"seconds/{name}": value for name, value in seconds.items()}
    speed |= {f"steps_per_second/{name}": steps / value for name, value in seconds.items()}
    return speed | {"steps_per_second": steps / sum(seconds.values())}


def _memory(accelerator: Accelerator) -> dict[str, float]:
    """Peak memory of this process in GiB: of the accelerator where there is one, else of the host."""
    if accelerator.device.type == "cuda":
        return {"memory_gib": torch.cuda.max_memory_allocated(accelerator.device) / 2**30}
    return {"memory_gib": peak_memory() / 2**30}


@contextmanager
def _timed(seconds: dict[str, Any], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _evaluate(policy: Any, task: Task, here: Here, phase: Phase | Unsaved, row: dict[str, Any]) -> None:
    """Evaluates, and logs the result behind what the row has."""
    with _timed(row, "seconds/evaluate"), whole(policy):
        evaluation = task.evaluate(policy, here)
    phase.record([{"update": row["update"], "kind": "evaluation", **sample} for sample in evaluation.samples])
    _log(phase, {**row, **evaluation.metrics})


def _log(phase: Phase | Unsaved, row: dict[str, float]) -> None:
    """With what was done since the last row and is timed by no other name, such as loading and checkpoints."""
    phase.log({**row, "seconds/other": phase.clock.lap() - seconds_spent([row])})
