"""NaN and infinity in weights, Adam's state, rollouts and adapted numbers: stopped before anything is saved."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.attacks import rig

pytestmark = pytest.mark.attack

STOPPED = 3
BAD = (math.nan, math.inf, -math.inf)
Act = Callable[[Any], None]


def in_weights(which: int, bad: float) -> Act:
    def act(learner: Any) -> None:
        with torch.no_grad():
            list(learner.module.parameters())[which].view(-1)[0] = bad

    return act


def in_adam(which: str, bad: float) -> Act:
    def act(learner: Any) -> None:
        for state in learner.optimizer.state.values():
            state[which].view(-1)[0] = bad

    return act


def once(owner: str, name: str, spoil: Callable[[Any, tuple[Any, ...]], Any]) -> Act:
    """Has the next result of this function of ours, and no later one, spoiled; `spoil` gets it and the arguments."""

    def act(learner: Any) -> None:
        holder: Any = resolve_name(owner)
        real = getattr(holder, name)

        def spoiled(*arguments: Any, **settings: Any) -> Any:
            setattr(holder, name, real)
            return spoil(real(*arguments, **settings), arguments)

        setattr(holder, name, spoiled)

    return act


def in_rollout(which: str, bad: float) -> Act:
    def spoil(result: tuple[Any, Any], arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        rollout, seen = result
        return replace(rollout, **{which: with_one(getattr(rollout, which), rollout.mask, bad)}), seen

    return once("rlhf.acting", "completed", spoil)


def in_advantages(bad: float) -> Act:
    def spoil(result: tuple[Any, Any], arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        batch, cells = result
        return batch._replace(advantages=with_one(batch.advantages, batch.mask, bad)), cells

    return once("rlhf.algorithms.ppo:PPO", "estimate", spoil)


def in_gradient(bad: float) -> Act:
    def spoil(metrics: Any, arguments: tuple[Any, ...]) -> Any:
        next(p.grad for p in arguments[0].parameters() if p.grad is not None).view(-1)[0] = bad
        return metrics

    return once("rlhf.optimize", "gradient", spoil)


def in_kl_coef(bad: float) -> Act:
    return once("rlhf.algorithms.ppo:PPO", "adapt", lambda state, _: {**state, "kl_coef": torch.tensor(bad).double()})


def with_one(tensor: Tensor, mask: Tensor, bad: float) -> Tensor:
    """A copy that is bad where the policy first acted."""
    copy, (row, column) = tensor.clone(), mask.nonzero()[0].tolist()
    copy[row, column] = bad
    return copy


AFTER: dict[str, Callable[[float], Act]] = {
    "the first weight": lambda bad: in_weights(0, bad),
    "the last weight": lambda bad: in_weights(-1, bad),
    "Adam's first moment": lambda bad: in_adam("exp_avg", bad),
    "Adam's second moment": lambda bad: in_adam("exp_avg_sq", bad),
}
BEFORE = AFTER | {
    "a weight between": lambda bad: in_weights(5, bad),
    "the gradient": in_gradient,
    "advantages": in_advantages,
    "the KL coefficient": in_kl_coef,
    **{
        f"{name} of a rollout": partial(in_rollout, name)
        for name in ("rewards", "logprobs", "behaviour_logprobs", "values", "next_values", "ref_logprobs")
    },
}


def acting_at(update: int, *, after: bool) -> Callable[[Act], Callable[[], None]]:
    """What an attempt calls first, given what it does: before or after this update, that gets the learner."""

    def of(act: Act) -> Callable[[], None]:
        def install() -> None:
            import rlhf.loop

            learn: Any = rlhf.loop._collect_and_learn

            def wrapped(learner: Any, *arguments: Any) -> Any:
                if learner.update_index == update and not after:
                    act(learner)
                result = learn(learner, *arguments)
                if learner.update_index == update and after:
                    act(learner)
                return result

            rlhf.loop._collect_and_learn = wrapped

        return install

    return of


def test_what_is_not_finite_before_an_update_is_never_saved(jobs: dict[str, rig.Job], tmp_path: Path) -> None:
    tally = rig.Tally("not finite in an update, short lm")
    for update in (1, 2):
        attack(jobs["short lm"], BEFORE, acting_at(update, after=False), tmp_path, tally, what=f"in update {update}")
    tally.require_all_good()


@pytest.mark.parametrize("name", ["short cartpole", "sac", "short lm", "lora"])
def test_what_is_not_finite_after_the_last_step_is_never_saved(
    name: str, jobs: dict[str, rig.Job], tmp_path: Path
) -> None:
    tally = rig.Tally(f"not finite after a step, {name}")
    last = updates_of(jobs[name], tmp_path / "whole") - 1
    for update in (last // 2, last):
        attack(jobs[name], AFTER, acting_at(update, after=True), tmp_path, tally, what=f"after update {update}")
    tally.require_all_good()


def attack(
    job: rig.Job,
    places: dict[str, Callable[[float], Act]],
    acting: Callable[[Act], Callable[[], None]],
    base: Path,
    tally: rig.Tally,
    *,
    what: str,
) -> None:
    """Puts each bad number in each place; the run stops or goes on as if nothing had been, and saves none of it."""
    whole, here = base / "whole", base / "here"
    if not whole.exists():
        assert rig.attempt(job, whole).status == 0
    for place, make in places.items():
        for bad in BAD:
            rig.fresh(here)
            done = rig.attempt(job, here, before=acting(make(bad)))
            saved = not_finite(here / "run")
            told = (place, bad, what, done.status, done.last[:200], saved[:2])
            if done.traceback or saved or done.status != STOPPED:
                outcome = "saved" if saved else "went on" if done.status == 0 else f"status {done.status}"
                tally.add(outcome, good=False, what=told)
                continue
            again = rig.attempt(job, here)
            changed = rig.differences(here / "run", whole / "run") if again.status == 0 else ["did not end"]
            outcome = "differ" if changed else "stopped in one line, resumed to the same"
            tally.add(outcome, good=not changed, what=(*told, again.status, again.last[:200], changed[:4]))


def updates_of(job: rig.Job, whole: Path) -> int:
    """How many updates it takes; the run is left in `whole`."""
    assert rig.attempt(job, whole).status == 0
    return max(
        json.loads(line)["update"]
        for path in whole.glob("run/*/metrics.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    )


@pytest.mark.parametrize("option", [("adam-eps", "0"), ("learning-rate", "1e30"), ("weight-decay", "1e30")], ids=str)
def test_settings_that_lead_there_save_nothing_either(
    option: tuple[str, str], jobs: dict[str, rig.Job], tmp_path: Path
) -> None:
    job = jobs["lm"].with_options(f"--improve.optimize.{option[0]}", option[1])
    done = rig.attempt(job, tmp_path)
    assert done.status in (0, 2, 3)
    assert not done.traceback
    assert not not_finite(tmp_path / "run")


def not_finite(run: Path) -> list[str]:
    """Tensors on the disk that hold NaN or infinity."""
    return [
        f"{path.relative_to(run)}: {name}"
        for path in run.rglob("*.safetensors")
        for name, tensor in load_file(path).items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
