"""NaN and infinity in weights, Adam's state, rollouts and adapted numbers: stopped before anything is saved."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.attacks import rig

pytestmark = pytest.mark.attack

BAD = (math.nan, math.inf, -math.inf)
Act = Callable[[Any], None]


def in_weights(which: str, bad: float) -> Act:
    def act(learner: Any) -> None:
        with torch.no_grad():
            next(p for name, p in learner.module.named_parameters() if which in name).view(-1)[0] = bad

    return act


def in_adam(which: str, bad: float) -> Act:
    def act(learner: Any) -> None:
        for state in learner.optimizer.state.values():
            state[which].view(-1)[0] = bad

    return act


PLACES: dict[str, Callable[[float], Act]] = {
    "the embedding": lambda bad: in_weights("wte", bad),
    "the value head": lambda bad: in_weights("value_head.weight", bad),
    "the last norm": lambda bad: in_weights("ln_f.weight", bad),
    "Adam's first moment": lambda bad: in_adam("exp_avg", bad),
    "Adam's second moment": lambda bad: in_adam("exp_avg_sq", bad),
}


def acting_at(update: int, act: Act, *, after: bool) -> Callable[[], None]:
    """What an attempt calls first: before or after this update, `act` gets the learner."""

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


@pytest.mark.parametrize("after", [False, True], ids=["before an update", "after its last step"])
def test_what_is_not_finite_is_never_saved(after: bool, jobs: dict[str, rig.Job], tmp_path: Path) -> None:
    job, whole, here = jobs["lm"], tmp_path / "whole", tmp_path / "here"
    tally = rig.Tally(f"not finite {'after' if after else 'before'} an update")
    assert rig.attempt(job, whole).status == 0
    for place, make in PLACES.items():
        for bad in BAD:
            for update in (1, 2, 5):
                rig.fresh(here)
                done = rig.attempt(job, here, before=acting_at(update, make(bad), after=after))
                saved = not_finite(here / "run")
                what = (place, bad, update, done.status, done.last[:200], saved[:2])
                if done.traceback or saved or done.status not in (0, 3):
                    tally.add("saved" if saved else f"status {done.status}", good=False, what=what)
                    continue
                again = rig.attempt(job, here) if done.status else done
                changed = rig.differences(here / "run", whole / "run") if again.status == 0 else ["did not end"]
                outcome = "differ" if changed else "stopped, then resumed to the same"
                tally.add(outcome, good=not changed, what=(*what, again.status, again.last[:200], changed[:4]))
    tally.require_all_good()


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
