"""A hundred answers of reward functions that are wrong, odd, or worse: each is refused by name, or accepted by rule.

They are in reward_answers.toml; in a body, `n` is the number of samples. Expected: R refused, status 2, one line; U the
user's own exception with their line, status 1; A accepted; A= accepted, and the run is that of a function that returns
ones; A? and R? either, but clean; K Ctrl-C, status 130; X anything but status 0, with their line where it is 1.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests.attacks import rig

pytestmark = pytest.mark.attack

HEAD = "def reward(completions, completion_ids, **columns):\n    n = len(completions)\n    "


def test_every_answer_of_a_reward_function_is_dealt_with(jobs: dict[str, rig.Job], tmp_path: Path) -> None:
    job, whole, here, tally = jobs["lm"], tmp_path / "ones", tmp_path / "here", rig.Tally("answers of reward functions")
    answers = tomllib.loads(Path(__file__).with_name("reward_answers.toml").read_text(encoding="utf-8"))["answer"]
    plan = [(answer["expected"], answer["name"], written(answer)) for answer in answers]
    plan.append(("U", "a file in Latin-1", b'"""\xe9"""\n'))
    assert answered(job, whole, f"{HEAD}return [1.0] * n\n".encode()).status == 0
    for expected, name, text in plan:
        done = answered(job, here, text)
        same = done.status == 0 and not different(here, whole)
        tally.add(
            outcome(done), good=fits(expected, done, same=same), what=(expected, name, done.status, done.last[:200])
        )
    tally.require_all_good()


def written(answer: dict[str, str]) -> bytes:
    """The file in which the function stands."""
    if "file" in answer:
        return answer["file"].encode()
    head = HEAD if "body" in answer else f"async {HEAD}"
    return f"{head}{answer.get('body') or answer['async_body']}\n".encode()


def answered(job: rig.Job, folder: Path, text: bytes) -> rig.Attempt:
    rig.fresh(folder)
    (folder / "mine.py").write_bytes(text)
    (folder / "neighbour.py").write_text("x = 1.0\n")
    return rig.attempt(job.with_options("--reward", "mine.py:reward"), folder, resume=False, seconds=60)


def different(here: Path, whole: Path) -> list[str]:
    """But for the configurations, which know the reward's code by its checksum."""
    changed = rig.differences(here / "run", whole / "run")
    return [name for name in changed if not name.endswith("config.json")]


def outcome(done: rig.Attempt) -> str:
    named = {0: "accepted", 1: "their own exception", 2: "refused", 3: "not finite", 130: "Ctrl-C", None: "hung"}
    return named.get(done.status, f"status {done.status}")


def fits(expected: str, done: rig.Attempt, *, same: bool) -> bool:
    own = "mine.py" in done.log
    return {
        "R": done.status == 2 and not done.traceback and "reward" in done.log,
        "U": done.status == 1 and done.traceback and own,
        "A": done.status == 0,
        "A=": same,
        "A?": done.status in (0, 2) and not (done.status == 2 and done.traceback),
        "R?": done.status in (0, 2, 3) and not done.traceback,
        "K": done.status == 130,
        "X": done.status not in (0, None) and (done.status != 1 or own),
    }[expected]
