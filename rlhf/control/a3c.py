"""Asynchronous advantage actor-critic (Mnih et al., 2016, algorithm S3; https://arxiv.org/abs/1602.01783).

Workers with environments of their own copy the shared weights, act for a few steps, and apply the gradient of the very
loss of `algorithms/a2c.py` to the shared weights without a lock. Adam's moments are shared as well (the paper shares
those of RMSProp). Which worker comes first is up to the machine, so a run cannot be repeated exactly, nor resumed:
nothing here writes checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.multiprocessing as mp
from accelerate import Accelerator
from torch import Tensor, nn

from rlhf import optimize
from rlhf.algorithms import a2c
from rlhf.algorithms.checks import require_settings, resolved
from rlhf.control import collect
from rlhf.control.envs import make_envs
from rlhf.control.policy import ControlPolicy, PolicyConfig
from rlhf.core.random import derive_seed
from rlhf.errors import InputError
from rlhf.loop import describe
from rlhf.rollout import Batch, Rollout, single_steps


class Job(NamedTuple):
    """What every worker is told; `steps` are those of all workers together."""

    env_id: str
    steps: int
    collect: collect.CollectSteps
    method: a2c.A2C
    optimize: optimize.Optimize
    seed: int


class Board(NamedTuple):
    """What the processes share beside weights and moments."""

    steps: Any
    """Counter of the steps done."""
    running: Any
    """Event; workers pause while it is not set."""
    pauses: Any
    """Counter of the pauses that are over, by which a worker knows its own from the next."""
    reports: Any
    """Queue of metrics, one of each worker at each pause and at its end."""


class SharedOptimizer:
    """Steps the shared parameters by the gradients of a local copy.

    Args:
        moments: Of the shared parameters, in their order, as from `shared_moments`.
    """

    def __init__(
        self, shared: nn.Module, local: nn.Module, moments: list[dict[str, Tensor]], config: optimize.Optimize
    ) -> None:
        self._pairs = list(zip(shared.parameters(), local.parameters(), strict=True))
        self._optimizer = optimize.make_optimizer(shared, config)
        self._optimizer.state.update({pair[0]: own for pair, own in zip(self._pairs, moments, strict=True)})
        # Those of the copy, which the gradient loop knows, at the learning rates that it sets.
        copies = {id(pair[0]): pair[1] for pair in self._pairs}
        self.param_groups = [
            group | {"params": [copies[id(parameter)] for parameter in group["params"]]}
            for group in self._optimizer.param_groups
        ]

    def zero_grad(self) -> None:
        for _, local in self._pairs:
            local.grad = None

    def step(self) -> None:
        for shared, local in self._pairs:
            shared.grad = local.grad
        for group, own in zip(self._optimizer.param_groups, self.param_groups, strict=True):
            group["lr"] = own["lr"]
        self._optimizer.step()


def train(
    policy: ControlPolicy, job: Job, *, num_workers: int, eval_every_steps: int, log: Callable[[dict[str, float]], None]
) -> None:
    """Trains `policy` in place.

    Args:
        log: Called with steps, seconds of training and the workers' mean metrics, while the workers pause: before
            training, each time `eval_every_steps` more are done, and at the end.

    Raises:
        InputError: The settings ask for what asynchronous updates cannot give.
        torch.multiprocessing.ProcessRaisedException: A worker failed; the others are stopped.
    """
    check(policy.config, job, num_workers=num_workers, eval_every_steps=eval_every_steps)
    job = job._replace(optimize=resolved(job.method, job.optimize))
    policy.share_memory()
    context = mp.get_context("spawn")
    board = Board(context.Value("q", 0), context.Event(), context.Value("q", 0), context.SimpleQueue())
    arguments = (policy, shared_moments(policy), board, job)
    workers = mp.start_processes(work, arguments, nprocs=num_workers, join=False, start_method="spawn")
    try:
        # Workers that are ready wait; the clock starts when all are.
        _reports(board, workers, num_workers)
        log({"steps": 0, "seconds/train": 0.0})
        seconds, due, ended = 0.0, eval_every_steps, False
        while not ended:
            start = time.perf_counter()
            resume(board)
            while not ended and board.steps.value < due:
                ended = workers.join(timeout=0.01)
            board.running.clear()
            reports = _reports(board, workers, num_workers)
            seconds += time.perf_counter() - start
            steps = board.steps.value
            due = (steps // eval_every_steps + 1) * eval_every_steps
            ended = ended or steps >= job.steps
            log({"steps": steps, "seconds/train": seconds, "steps_per_second": steps / seconds, **_mean(reports)})
        resume(board)
        while not workers.join(timeout=0.1):
            pass
    finally:
        for process in workers.processes:
            process.terminate()


def check(policy: PolicyConfig, job: Job, *, num_workers: int, eval_every_steps: int) -> None:
    """Refuses what asynchronous updates cannot give."""
    for name, number in (("num_workers", num_workers), ("steps", job.steps), ("eval_every_steps", eval_every_steps)):
        if number < 1:
            raise InputError(f"{name} is {number}; it must be at least 1.")
    require_settings(job.method, resolved(job.method, job.optimize), group_size=1)
    if job.method.critic.epochs:
        raise InputError("A3C trains policy and critic together; set critic.epochs to 0, or use A2C.")
    if job.method.kl_coef:
        raise InputError(f"method.kl_coef is {job.method.kl_coef}, but A3C has no reference policy; set it to 0.")
    if job.collect.episodes:
        raise InputError("A3C's workers act in fragments; set collect.episodes to 0.")
    if job.collect.lag:
        raise InputError(
            f"collect.lag is {job.collect.lag}, but A3C's workers act with the weights that they have just copied; set "
            "it to 0."
        )
    if policy.critic == "action":
        raise InputError("policy.critic is 'action', but A3C needs the values of states; choose 'state'.")
    if policy.normalise_observations or job.collect.normalise_rewards:
        raise InputError("A3C shares weights only: normalise_observations and normalise_rewards are not offered.")


def work(number: int, policy: ControlPolicy, moments: list[dict[str, Tensor]], board: Board, job: Job) -> None:
    """One worker: copy the weights, act, apply the gradient; until the steps of all workers are done."""
    torch.set_num_threads(1)
    accelerator, seed = Accelerator(cpu=True), derive_seed(job.seed, "a3c worker", number)
    envs = make_envs(job.env_id, job.collect.num_envs)
    collector = collect.EnvCollector(
        envs, config=job.collect, gamma=job.method.gamma, seed=seed, accelerator=accelerator
    )
    local = ControlPolicy(policy.spaces, policy.config, seed=0).to(policy.weight.dtype)
    optimizer: Any = SharedOptimizer(policy, local, moments, job.optimize)
    learner = optimize.Learner(
        policy=local, optimizer=optimizer, config=job.optimize, accelerator=accelerator, seed=seed
    )
    loss = job.method.objective({})
    report: Callable[[], dict[str, float]] = dict
    update = num_pauses = 0
    while board.steps.value < job.steps:
        if not board.running.is_set():
            board.reports.put(report())
            num_pauses += 1
            wait(board, num_pauses)
            continue
        local.load_state_dict(policy.state_dict())
        rollout, acted, _ = collector.collect(local, update)
        batch, cells = job.method.estimate(rollout, {})
        progress = min(board.steps.value / job.steps, 1.0)
        learner = replace(learner, update_index=update, progress=progress)
        learned = optimize.update(learner, single_steps(batch), loss)
        report = partial(_report, rollout, batch, cells, acted | learned, accelerator)
        with board.steps.get_lock():
            board.steps.value += int(rollout.mask.sum())
        update += 1
    board.reports.put(report())


def resume(board: Board) -> None:
    """Ends a pause."""
    board.pauses.value += 1
    board.running.set()


def wait(board: Board, num_pauses: int) -> None:
    """Until so many pauses are over; the next may begin before this worker has seen that."""
    while board.pauses.value < num_pauses:
        board.running.wait(timeout=0.01)


def shared_moments(policy: nn.Module) -> list[dict[str, Tensor]]:
    """Adam's state of each parameter, at its start and in shared memory."""
    return [
        {
            "step": torch.zeros(()).share_memory_(),
            "exp_avg": torch.zeros_like(parameter).detach().share_memory_(),
            "exp_avg_sq": torch.zeros_like(parameter).detach().share_memory_(),
        }
        for parameter in policy.parameters()
    ]


def _reports(board: Board, workers: Any, num_workers: int) -> list[dict[str, float]]:
    """One of each worker: when all are there, none is in the middle of an update."""
    reports: list[dict[str, float]] = []
    while len(reports) < num_workers:
        ended = workers.join(timeout=0.01)
        while not board.reports.empty():
            reports.append(board.reports.get())
        if ended:
            break
    return reports


def _report(
    rollout: Rollout, batch: Batch, cells: dict[str, Tensor], metrics: dict[str, float], accelerator: Accelerator
) -> dict[str, float]:
    """What a worker says of its last update, which needs no time during the others."""
    return describe(rollout, batch, cells, accelerator) | metrics


def _mean(reports: list[dict[str, float]]) -> dict[str, float]:
    """Means over workers, `_max` ones by maximum, of what all report; counters of one worker say nothing of all."""
    shared = set.intersection(*(set(report) for report in reports)) - {"env_steps", "episodes", "steps"}
    columns = {name: [report[name] for report in reports] for name in sorted(shared)}
    return {name: max(x) if name.endswith("_max") else sum(x) / len(x) for name, x in columns.items()}
