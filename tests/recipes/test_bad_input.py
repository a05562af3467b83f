"""Bad input ends in one clear message and an exit status, before any weights load, and costs nothing that is there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from recipes import cartpole, custom_reward, sft
from rlhf.runs import summary
from rlhf.runs.log import read_lines
from tests.recipes.small import ARGUMENTS, REWARDS, files, outcome, run, small_config

ROOT = Path(__file__).parent.parent.parent

REWARD_FILE = """
import math

def short(completions):
    return [1.0]

def texts(completions):
    return ["good" for _ in completions]

def nothing(completions):
    pass

def nan(completions):
    return [math.nan for _ in completions]

def wants_answers(completions, answer):
    return [0.0 for _ in completions]

def tokens(completion_ids):
    return [[1.0] * (len(ids) + 1) for ids in completion_ids]
"""


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """The folder the recipe is started in, with data and reward functions to choose from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(summary, "write_report", lambda folder: None)
    words = "abcdefgabc"
    rows = {
        "texts.jsonl": [{"text": f"a {word}"} for word in words],
        "empty.jsonl": [{"prompt": f"a {word}" if i != 3 else " "} for i, word in enumerate(words)],
        "long.jsonl": [{"prompt": "a " * (1 if i != 3 else 60)} for i in range(10)],
        "few.jsonl": [{"prompt": f"a {word}"} for word in words[:5]],
    }
    for name, data in rows.items():
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in data))
    Path("broken.jsonl").write_text('{"prompt": "a"}\n{"prompt"\n')
    Path("rewards.py").write_text(REWARD_FILE)
    return tmp_path


def arguments(model: Path) -> list[str]:
    return ["--model", str(model), *ARGUMENTS, "--output-dir", "run"]


BEFORE_LOADING = {
    "unknown option": (["--improve.optimize.lerning-rate", "1"], "--improve.optimize.learning-rate"),
    "no number": (["--temperature", "warm"], "warm"),
    "out of range": (["--improve.method.clip", "0"], "clip is 0.0; it must be positive"),
    "temperature": (["--temperature", "0"], "temperature is 0.0; it must be positive."),
    "length": (["--max-new-tokens", "0"], "max_new_tokens is 0; it must be at least 1."),
    "minibatches": (
        ["--improve.optimize.minibatches", "9"],
        "a rollout has 8 rows, which make no 9 parts; lower minibatches",
    ),
    "data file": (["--data", "nowhere.jsonl"], "there is no data file"),
    "data format": (["--data", "broken.jsonl"], "broken.jsonl, line 2: not JSON"),
    "column": (["--data", "texts.jsonl"], "texts.jsonl has no column 'prompt'; its columns are text."),
    "renamed column": (["--data", "texts.jsonl", "--prompt-column", "txt"], "has no column 'txt' to rename"),
    "empty prompt": (["--data", "empty.jsonl"], "empty.jsonl: row 3 has an empty prompt."),
    "context": (
        ["--data", "long.jsonl"],
        "long.jsonl: row 3: 60 prompt tokens and max_new_tokens 6 exceed the model's context of 64",
    ),
    "few prompts": (["--data", "few.jsonl"], "there are 1 prompts, fewer than prompts_per_rollout (4)"),
    "nothing held out": (
        ["--held-out", "0"],
        "held_out is 0 and there are 48 prompts; hold out at least one to evaluate on",
    ),
    "all held out": (
        ["--held-out", "48"],
        "held_out is 48 and there are 48 prompts; hold out at least one to evaluate on, and leave some to train on",
    ),
    "reward syntax": (["--reward", "rewards.py"], "must be given as path/to/file.py:function."),
    "reward file": (["--reward", "reward.py:short"], "there is no file"),
    "reward function": (["--reward", "rewards.py:shrt"], "did you mean 'short'?"),
    "reward column": (["--reward", "rewards.py:wants_answers"], "asks for 'answer', which is neither one of"),
    "reward weights": (
        ["--reward", "rewards.py:short", "--reward-weights", "1", "2"],
        "2 reward weights for 1 functions; give one per function.",
    ),
    "resume": (["--resume"], "there is no run in run to resume; leave out --resume to start one."),
}


@pytest.mark.parametrize("case", BEFORE_LOADING)
def test_bad_input_is_refused_before_the_weights_load(case, inputs, model_without_weights, monkeypatch, capsys):
    options, message = BEFORE_LOADING[case]
    assert outcome(monkeypatch, custom_reward, *arguments(model_without_weights), *options) == 2
    errors = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert message in errors
    assert "Traceback" not in errors
    assert not (inputs / "run").exists()


def test_a_model_that_is_not_there_is_refused_before_there_is_a_run(inputs, monkeypatch, capsys):
    assert outcome(monkeypatch, custom_reward, *arguments(inputs / "no-model")) == 2
    assert "error: there is no folder" in capsys.readouterr().err
    assert not (inputs / "run").exists()


def test_a_kl_charge_is_refused_where_there_is_no_reference(inputs, monkeypatch, capsys):
    options = ["--method.kl-coef", "0.1", "--output-dir", "run"]
    assert outcome(monkeypatch, cartpole, *options) == 2
    assert "kl_coef charges for the KL to a reference policy" in " ".join(capsys.readouterr().err.split())
    assert not (inputs / "run").exists()


def test_a_model_without_a_tokenizer_is_refused(inputs, model, monkeypatch, capsys):
    bare = inputs / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((model / name).read_bytes())
    assert outcome(monkeypatch, custom_reward, *arguments(bare)) == 2
    assert "holds no tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("short", "reward function short returned 1 scores for 2 samples; return one per sample."),
        ("texts", "reward function texts returned str 'good' for sample 0; return a number."),
        ("nothing", "reward function nothing returned NoneType None; return a list with one entry per sample."),
        ("nan", "reward function nan returned nan for sample 0; return finite numbers"),
        ("tokens", "token rewards for sample 0, whose response has"),
    ],
)
def test_a_reward_is_tried_before_the_weights_load_and_there_is_a_run(
    function, message, inputs, model_without_weights, monkeypatch, capsys
):
    options = [*arguments(model_without_weights), "--reward", f"rewards.py:{function}"]
    assert outcome(monkeypatch, custom_reward, *options) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[-1].startswith("error: ")
    assert message in errors[-1]
    assert not (inputs / "run").exists()


@pytest.mark.parametrize("recipe", [custom_reward, sft], ids=lambda recipe: recipe.__name__)
def test_weights_that_do_not_load_leave_no_folder_in_the_way(recipe, inputs, model_without_weights, monkeypatch):
    rows = {custom_reward: "few.jsonl", sft: "texts.jsonl"}[recipe]
    options = ["--model", str(model_without_weights), "--data", rows, "--held-out", "1", "--output-dir", "run"]
    options += ["--improve.collect.prompts-per-rollout", "2"] if recipe is custom_reward else ["--rows-per-update", "2"]
    assert outcome(monkeypatch, recipe, *options) == 2
    assert not (inputs / "run").exists()


FAILING = '''
from pathlib import Path

def mine(completions):
    """Fails from the third call on, until somebody repairs it."""
    calls = Path("calls")
    calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
    if len(calls.read_text()) > 3 and not Path("repaired").exists():
        raise LookupError("the scores are gone")
    return [float(len(completion)) for completion in completions]
'''


def test_an_error_of_the_users_code_shows_its_own_lines_and_the_run_can_go_on(inputs, model, monkeypatch):
    (inputs / "mine.py").write_text(FAILING)
    options = [*arguments(model), "--reward", "mine.py:mine"]
    with pytest.raises(LookupError, match="the scores are gone") as raised:
        outcome(monkeypatch, custom_reward, *options)
    assert raised.traceback[-1].path == inputs / "mine.py"
    assert [row["update"] for row in read_lines(inputs / "run" / "ppo" / "metrics.jsonl")] == [0]
    (inputs / "repaired").touch()
    assert outcome(monkeypatch, custom_reward, *options, "--resume") == 0
    assert [row["update"] for row in read_lines(inputs / "run" / "ppo" / "metrics.jsonl")] == [0, 1, 2]


@pytest.fixture
def old_run(inputs, model):
    """A finished run in `run`, and what its files are."""
    run(custom_reward.main, small_config(model, Path("run")))
    return files(inputs / "run")


def test_nothing_of_a_run_is_lost_to_bad_input(old_run, inputs, model, monkeypatch, capsys):
    counting = [*arguments(model), "--improve.method.kl-coef", "0.05", "--improve.optimize.minibatches", "2"]
    counting += ["--improve.optimize.epochs", "2", "--reward", f"{REWARDS}:count_a"]
    cases = [
        ([], "run already holds another run; --resume, if offered, continues it, another --output-dir starts anew."),
        (["--resume", "--seed", "1"], "seed: 0 -> 1"),
        (["--resume", "--data", "texts.jsonl"], "has no column 'prompt'"),
        (["--resume", "--improve.train.updates", "1"], "improve.train.updates: 2 -> 1 (it may only grow)"),
        (["--output-dir", "rewards.py"], "--output-dir rewards.py is a file; name a folder."),
    ]
    for options, message in cases:
        assert outcome(monkeypatch, custom_reward, *counting, *options) == 2
        assert message in capsys.readouterr().err
        assert files(inputs / "run") == old_run


def test_a_folder_of_something_else_is_left_alone(inputs, model_without_weights, monkeypatch, capsys):
    (inputs / "run").mkdir()
    (inputs / "run" / "thesis.txt").write_text("all my work")
    assert outcome(monkeypatch, custom_reward, *arguments(model_without_weights)) == 2
    assert "is not empty and holds no run" in capsys.readouterr().err
    assert files(inputs / "run") == {"thesis.txt": b"all my work"}


def test_a_damaged_checkpoint_is_passed_over_and_named(old_run, inputs, model, capsys):
    weights = inputs / "run" / "ppo" / "checkpoints" / "00000002" / "policy" / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    run(custom_reward.main, small_config(model, Path("run"), updates=3, resume=True))
    assert re.search(r"00000002 is damaged.*sha256.*Using the older .*00000001", capsys.readouterr().out)
    rows = read_lines(inputs / "run" / "ppo" / "metrics.jsonl")
    assert [row["update"] for row in rows] == [0, 1, 2, 3]


def test_an_unknown_environment_is_suggested(inputs, monkeypatch, capsys):
    assert outcome(monkeypatch, cartpole, "--env-id", "CartPol-v1", "--output-dir", "run") == 2
    assert "CartPole" in capsys.readouterr().err
    assert not (inputs / "run").exists()


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "recipes" / "custom_reward.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_the_script_says_one_line_for_bad_input(inputs, model_without_weights):
    ended = script(*arguments(model_without_weights), "--data", "texts.jsonl")
    assert ended.returncode == 2
    assert ended.stderr == "error: texts.jsonl has no column 'prompt'; its columns are text.\n"


def test_the_script_ends_with_1_and_the_traceback_of_a_reward_function_that_raises(inputs, model):
    (inputs / "mine.py").write_text("def mine(completions):\n    return 1 / 0  # a mistake\n")
    ended = script(*arguments(model), "--reward", "mine.py:mine")
    assert ended.returncode == 1
    assert 'mine.py", line 2, in mine' in ended.stderr
    assert ended.stderr.rstrip().endswith("ZeroDivisionError: division by zero")
