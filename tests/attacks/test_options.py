"""Wrong command lines: status 2, no traceback, no folder, the option that was meant; and odd values of every number.

Others are in wrong_commands.txt.
"""

from __future__ import annotations

import random
import re
import resource
import shlex
import sys
from pathlib import Path

import pytest

from tests.attacks import rig
from tests.recipes.small import REWARDS

pytestmark = pytest.mark.attack

# With what makes each of them shorter still.
RECIPES = {
    "custom_reward.py": ("--improve.train.updates", "1"),
    "cartpole.py": ("--steps", "128"),
    "arithmetic.py": ("--clone.train.updates", "1", "--improve.train.updates", "1"),
}
VALUES = (
    *("nan", "inf", "-inf", "-1", "0", "1e400", "abc", "", "99999999999999999999999999", "1e-400", "٣", "1_0", "0x10"),
    *("1,5", "true", "None", "-0.0"),
)
NOT_FINITE = ("nan", "inf", "-inf", "1e400")
# So many of them for each option, others for the next.
TRIED = 8
# What the kinds of values are called in the help.
OPTION = re.compile(r"(--[a-z][\w.-]+(?:, --[\w.-]+)?) ?((?:INT|FLOAT|STR|PATH|\{[^}]*\}(?:\|\w+)?|\[[^\]]*\]+)?)")
FRAME = re.compile(r"[│╭╰─╮╯]")
# Values with which a run takes long (a bound of a million) are given up after so many seconds.
PATIENCE = 8.0


def options(job: rig.Job, folder: Path) -> dict[str, str]:
    """The options of a recipe and the kind of each, by its help."""
    said = rig.attempt(rig.Job(job.recipe, ("--help",)), rig.fresh(folder), resume=False).log
    return {name.split(",")[0]: kind for name, kind in OPTION.findall(said) if "_" not in name and name != "--help"}


def small(recipe: str, jobs: dict[str, rig.Job]) -> rig.Job:
    return next(job for job in jobs.values() if job.recipe == recipe).with_options(*RECIPES[recipe])


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_typo_is_refused_and_the_option_that_was_meant_is_offered(
    recipe: str, jobs: dict[str, rig.Job], tmp_path: Path
) -> None:
    job, here, draw = small(recipe, jobs), tmp_path / "here", random.Random(recipe)
    names, tally = options(job, here), rig.Tally(f"typos in options, {recipe}")
    for name in names:
        wrong = misspelt(name, draw)
        if wrong in names:
            continue
        done = rig.attempt(job.with_options(wrong, "1"), rig.fresh(here), resume=False)
        refused = done.status == 2 and not done.traceback and not (here / "run").exists()
        offered = name in FRAME.sub(" ", done.log).replace(wrong, "")
        outcome = "refused" if not refused or not offered else "refused, the right one offered"
        tally.add(outcome, good=refused, what=(wrong, done.status, done.last))
    tally.require_all_good()


def test_a_wrong_command_is_refused(jobs: dict[str, rig.Job], tmp_path: Path) -> None:
    model, here, tally = jobs["lm"].arguments[1], tmp_path / "here", rig.Tally("wrong command lines")
    for line in Path(__file__).with_name("wrong_commands.txt").read_text(encoding="utf-8").splitlines()[1:]:
        recipe, *given = shlex.split(line)
        arguments = [word.replace("MODEL", model).replace("REWARDS", str(REWARDS)) for word in given]
        own_folder = _without_output_dir if "--output-dir" in given else None
        job = rig.Job(recipe, tuple(arguments))
        done = rig.attempt(job, rig.fresh(here), resume=False, seconds=PATIENCE, before=own_folder)
        refused = done.status == 2 and not done.traceback and not (here / "run").exists()
        tally.add("refused" if refused else "not", good=refused, what=(line, done.status, done.last[:200]))
    tally.require_all_good()


def _without_output_dir() -> None:
    """That of the rig would count, being the last."""
    del sys.argv[-2:]


def misspelt(name: str, draw: random.Random) -> str:
    """One letter of the last part of a name dropped, doubled or replaced."""
    head, dot, last = name[2:].rpartition(".")
    at = draw.randrange(1, len(last))
    new = draw.choice((last[:at] + last[at + 1 :], last[:at] + last[at] + last[at:], last[:at] + "x" + last[at + 1 :]))
    return f"--{head}{dot}{new if new != last else new + 'x'}"


@pytest.mark.parametrize("recipe", list(RECIPES)[:2])
def test_an_odd_value_runs_or_is_refused(recipe: str, jobs: dict[str, rig.Job], tmp_path: Path) -> None:
    job, here, tally = small(recipe, jobs), tmp_path / "here", rig.Tally(f"odd values of numbers, {recipe}")
    numbers = [name for name, kind in options(job, here).items() if "INT" in kind or "FLOAT" in kind]
    for place, name in enumerate(numbers):
        for value in (VALUES[(place * TRIED + each) % len(VALUES)] for each in range(TRIED)):
            done = rig.attempt(
                job.with_options(f"{name}={value}"), rig.fresh(here), resume=False, seconds=PATIENCE, before=_limited
            )
            left = done.status == 2 and (here / "run").exists()
            refused = done.status == 2 and not done.traceback and not left
            # 3: the numbers that came of it were not finite. None: it took what it was told to.
            ran = done.status in (0, 3, None) and value not in NOT_FINITE and not done.traceback
            outcome = "refused" if refused else "ran" if ran else "neither"
            tally.add(outcome, good=refused or ran, what=(name, value, done.status, done.last[:200]))
    tally.require_all_good()


def _limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (9 << 30, 9 << 30))
