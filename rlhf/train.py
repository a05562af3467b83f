"""The outer loop, written once: collect, estimate, update, evaluate, log, checkpoint, stop."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from rlhf import optimize
from rlhf.errors import InputError
from rlhf.reduce import MetricSums, advantage_metrics, global_moments, global_sum
from rlhf.rollout import Batch, Collected, PolicyOutput, Rollout, single_steps
from rlhf.runs.evaluate import Evaluation
from rlhf.runs.run import Phase, Restored
from rlhf.runs.stop import StopSignals


class Policy(Protocol):
    """A module that scores actions; `memoryless` ones may be scored action by action."""

    memoryless: bool

    def __call__(self, inputs: dict[str, Tensor]) -> PolicyOutput: ...

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


class Algorithm(Protocol):
    """A file of `rlhf/algorithms`: pure functions of `(B, T)` tensors. `adapt` runs after each update.

    One whose step is of another kind than `optimize.update` also has an `update(learner, rollout, batch, state,
    config)`, which gets the batch as the policy scores it (step by step if it is memoryless), and returns metrics and
    the next state. Recipes ask for three constants: `WHITEN`, the only `whiten` of `optimize.Config` that it goes with;
    `SINGLE_STEP`, where no ratio in the loss makes later optimizer steps on a batch right; `CORRECTS_LAG`, where its
    estimates correct for actors that are not the learner.
    """

    def initial_state(self, config: Any) -> dict[str, Tensor]: ...

    def estimate(self, rollout: Rollout, state: dict[str, Tensor], config: Any) -> tuple[Batch, dict[str, Tensor]]: ...

    def loss(
        self, output: PolicyOutput, batch: Batch, state: dict[str, Tensor], config: Any
    ) -> tuple[Tensor, dict[str, Tensor]]: ...

    def adapt(self, state: dict[str, Tensor], metrics: dict[str, float], config: Any) -> dict[str, Tensor]: ...


class Collector(Protocol):
    """Acts. Its state, one per rank, is part of every checkpoint."""

    def collect(self, policy: Any, update: int) -> Collected: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Config:
    """How long to train, and what to leave behind."""

    updates: int = 0
    """Updates in all; a finished run with a larger number is extended. 0: `steps` says when to end."""
    steps: int = 0
    """Actions in all, for updates of uneven size: schedules and intervals then count actions. 0: they count updates."""
    eval_every: int = 10
    """Updates between evaluations; there is one before the first and one after the last. 0: only these two."""
    checkpoint_every: int = 10
    """Updates between checkpoints; there is one before the first and one after the last. 0: only these two."""
    record_samples: int = 8
    """Training samples written to samples.jsonl at each update."""

    def __post_init__(self) -> None:
        if max(self.updates, self.steps) < 1:
            raise InputError(f"updates is {self.updates}; it must be at least 1.")
        if self.updates and self.steps:
            raise InputError(f"updates is {self.updates} and steps {self.steps}; give one and leave the other 0.")
        for name in ("updates", "steps", "eval_every", "checkpoint_every", "record_samples"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must not be negative.")

    @property
    def target(self) -> int:
        """Where the run ends, in the unit that it counts in."""
        return self.steps or self.updates


def train(
    *,
    policy: nn.Module,
    algorithm: Algorithm,
    algorithm_config: Any,
    optimize_config: optimize.Config,
    collector: Collector,
    evaluate: Callable[[Any], Evaluation],
    phase: Phase,
    accelerator: Accelerator,
    config: Config,
    seed: int,
) -> None:
    """Trains `policy` in place until `config.target`, or goes on from the phase's newest good checkpoint.

    A phase that is finished only loads its final policy.

    Raises:
        Stopped: SIGTERM or Ctrl-C came; the update in hand is done and saved.
        NonFiniteError: A number turned NaN or infinite; the last good checkpoint is left as it is.
    """
    if policy.memoryless and accelerator.mixed_precision != "no":
        raise InputError(
            f"mixed precision is {accelerator.mixed_precision}, but control computes in its weights' own; set it to no."
        )
    unit = "steps" if config.steps else "updates"
    if phase.finished(config.target, unit):
        policy.load(phase.final_policy)  # type: ignore[operator]
        return
    optimizer = optimize.make_optimizer(policy, optimize_config)
    restored = phase.restore()
    state, update, steps = algorithm.initial_state(algorithm_config), 0, 0
    if restored is not None:
        state, update, steps = _take_up(restored, policy, optimizer, collector, accelerator)
    # Accelerate's wrapper looks for optional packages at every step (7 % of an update on control), and only serves
    # fp16 scaling, which is not offered; the optimizer inside is this very one.
    wrapped, _ = accelerator.prepare(policy, optimizer)
    learner = optimize.Learner(
        policy=wrapped, optimizer=optimizer, config=optimize_config, accelerator=accelerator, seed=seed
    )

    def save(update: int) -> None:
        content = {"optimizer": optimizer.state_dict(), "algorithm": state, "steps": steps}
        content["collector"] = _per_rank(collector.state_dict(), accelerator)
        phase.save(update, content, {"policy": policy.save})  # type: ignore[dict-item]

    with StopSignals(accelerator) as signals:
        if restored is None:
            _log_evaluation(phase, evaluate(policy), update=0, steps=0, row={})
            save(0)
        done = steps if config.steps else update
        while done < config.target:
            learner = replace(learner, update_index=update, progress=done / config.target)
            state, row, samples = _collect_and_learn(learner, collector, algorithm, algorithm_config, state)
            steps += row["steps"]
            row["steps"] = steps
            update, before, stopped = update + 1, done, signals.requested()
            done = steps if config.steps else update
            last = done >= config.target
            phase.record([{"update": update, "kind": "training", **s} for s in samples[: config.record_samples]])
            if last or _passed(config.eval_every, before, done):
                with _timed(row, "seconds/evaluate"):
                    evaluation = evaluate(policy)
                _log_evaluation(phase, evaluation, update=update, steps=steps, row=row)
            else:
                phase.log({"update": update, **row})
            if last or stopped or _passed(config.checkpoint_every, before, done):
                save(update)
            if stopped and not last:
                signals.stop()
        phase.finish(config.target, {"policy": policy.save})  # type: ignore[dict-item]
        # A signal during the last update is meant for what would come after this phase.
        if signals.requested():
            signals.stop()


def _passed(interval: int, before: int, now: int) -> bool:
    """Whether a multiple of `interval` was reached on the way; never if it is 0."""
    return interval > 0 and now // interval > before // interval


def _per_rank(state: dict[str, Any], accelerator: Accelerator) -> list[dict[str, Any]]:
    return gather_object([state]) if accelerator.num_processes > 1 else [state]


def _take_up(
    restored: Restored,
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    collector: Collector,
    accelerator: Accelerator,
) -> tuple[dict[str, Tensor], int, int]:
    """Puts everything back as it was saved; returns the algorithm's state, updates done and steps taken."""
    per_rank = restored.state["collector"]
    if len(per_rank) != accelerator.num_processes:
        raise InputError(
            f"the checkpoint was written by {len(per_rank)} processes and this run has {accelerator.num_processes}; "
            "resume it with as many as before."
        )
    policy.load(restored.folders / "policy")  # type: ignore[operator]
    optimizer.load_state_dict(restored.state["optimizer"])
    collector.load_state_dict(per_rank[accelerator.process_index])
    return restored.state["algorithm"], restored.update, restored.state["steps"]


def _collect_and_learn(
    learner: optimize.Learner, collector: Collector, algorithm: Algorithm, config: Any, state: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any], list[dict[str, Any]]]:
    """One update: the algorithm's next state, what to log (`steps` are those of this update), and the samples."""
    policy, accelerator, index = learner.module, learner.accelerator, learner.update_index
    state = {**state, "progress": torch.tensor(learner.progress), "update": torch.tensor(index)}
    seconds: dict[str, Any] = {}
    with _timed(seconds, "collect"), accelerator.autocast():
        rollout, metrics, samples = collector.collect(policy, index)
    with _timed(seconds, "update"):
        batch, cells = algorithm.estimate(rollout, state, config)
        # A collector that hands over other steps than it took says itself how many it took.
        metrics = describe(rollout, batch, cells, accelerator) | metrics
        if policy.memoryless:
            batch = single_steps(batch)
        if hasattr(algorithm, "update"):
            learned, state = algorithm.update(learner, rollout, batch, state, config)
        else:
            learned = optimize.update(learner, batch, partial(algorithm.loss, state=state, config=config))
        metrics |= learned
    state = algorithm.adapt(state, metrics, config)
    # With several seeds side by side there is one each: their mean.
    metrics |= {name: float(state[name].double().mean()) for name in algorithm.initial_state(config)}
    return state, metrics | _speed(metrics["steps"], seconds) | _memory(accelerator), samples


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
    return {"memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


@contextmanager
def _timed(seconds: dict[str, Any], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _log_evaluation(phase: Phase, evaluation: Evaluation, *, update: int, steps: int, row: dict[str, float]) -> None:
    phase.record([{"update": update, "kind": "evaluation", **sample} for sample in evaluation.samples])
    phase.log({"update": update, "steps": steps, **row, **evaluation.metrics})
