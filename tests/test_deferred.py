"""A wrong option, a wrong value and --help are answered before torch is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "accelerate", "peft", "datasets", "gymnasium", "matplotlib")
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py") if not path.stem.startswith("_"))
NEEDED = {
    "custom_reward": ["--model", "m"],
    "dpo": ["--model", "m", "--data", "d"],
    "loop": ["--model", "m"],
    "movie_reviews": ["--data", "d"],
    "plan": ["--model", "m"],
    "reward_model": ["--model", "m", "--data", "d"],
    "rlhf_pipeline": ["--model", "m", "--pairs", "p"],
    "sft": ["--model", "m", "--data", "d"],
}


def answer(*command: str) -> tuple[int, str, list[str]]:
    """Exit status, what was said, and which heavy packages it took."""
    code = (
        "import atexit, runpy, sys\n"
        f"sys.argv = {list(command)!r}\n"
        f"atexit.register(lambda: print('LOADED', [n for n in {HEAVY!r} if n in sys.modules], file=sys.stderr))\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    said, _, loaded = done.stderr.rpartition("LOADED ")
    return done.returncode, done.stdout + said, eval(loaded)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_wrong_option_is_answered_without_torch(recipe: str) -> None:
    wrong, meant = ("--gpu", "--gpus") if recipe == "plan" else ("--sead", "--seed")
    status, said, loaded = answer(f"recipes/{recipe}.py", *NEEDED.get(recipe, []), wrong, "3")
    assert (status, loaded) == (2, []), said
    assert meant in said


def test_help_is_answered_without_torch() -> None:
    status, said, loaded = answer("recipes/custom_reward.py", "--help")
    assert (status, loaded) == (0, []), said
    assert "--improve.method.clip FLOAT" in said


@pytest.mark.parametrize(
    "options",
    [
        ("--model", "m", "--improve.method.gamma", "nan"),
        ("--model", "m", "--seed", "-1"),
        ("--model", "m", "--method", "grop"),
        ("--model", "m", "--method", "trpo", "--improve.method.max-kl", "inf"),
        ("--model", "m", "--improve.optimize.epochs", "1e400"),
    ],
    ids=lambda options: options[-1],
)
def test_a_wrong_value_of_a_method_is_answered_without_torch(options: tuple[str, ...]) -> None:
    status, said, loaded = answer("recipes/custom_reward.py", *options)
    assert (status, loaded) == (2, []), said


def test_deferred_names_are_what_they_stand_for_once_used(tmp_path: Path) -> None:
    (tmp_path / "room.py").write_text(
        "from __future__ import annotations\n"
        "from rlhf.deferred import deferred\n"
        "with deferred():\n"
        "    import decimal\n"
        "    from collections import abc\n"
        "    from fractions import Fraction as Ratio\n"
        "def half(x: Ratio) -> Ratio:\n"
        "    return Ratio(x, 2)\n"
    )
    code = (
        "import sys, room\n"
        "print('fractions' in sys.modules, 'decimal' in sys.modules)\n"
        "print(isinstance(1, room.Ratio), room.half(1), type(room.Ratio).__name__)\n"
        "from rlhf.deferred import settle\n"
        # As tests and libraries mark a module as one that cannot be imported.
        "sys.modules['no_module'] = None\n"
        "settle()\n"
        "print(room.decimal is sys.modules['decimal'], room.abc is sys.modules['collections.abc'])\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, tmp_path)))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.split("\n")[:3] == ["False False", "False 1/2 ABCMeta", "True True"], done.stderr
