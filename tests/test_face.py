"""The package as one types it: `import rlhf`, and the two examples of the README, also from an installed wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch

import rlhf
from rlhf.runs import summary
from rlhf.runs.log import read_lines
from tests.documented import ROOT, control_example, language_example, write_prompts
from tests.lm.words import ASSISTANT, TEMPLATE, USER, A, B, C, D, E, F, G, word_tokenizer
from tests.lm.worlds import word_policy
from tests.recipes.small import save_model

HEAVY = ("torch", "transformers", "gymnasium", "peft")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "gpt2")


def ran(*command: str, folder: Path, path: Path = ROOT, status: int = 0) -> subprocess.CompletedProcess[str]:
    """A command in this folder, with the package of `path`."""
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done


def loaded_by(code: str, folder: Path) -> set[str]:
    """Which of HEAVY a fresh interpreter has imported after this code."""
    shown = f"{code}\nimport sys\nprint('loaded', *(name for name in {HEAVY} if name in sys.modules))"
    return set(ran(sys.executable, "-c", shown, folder=folder).stdout.splitlines()[-1].split()[1:])


def test_importing_the_package_imports_nothing_heavy(tmp_path):
    assert loaded_by("import rlhf", tmp_path) == set()


def test_control_needs_no_transformers(tmp_path):
    assert loaded_by(control_example(), tmp_path) == {"torch", "gymnasium"}
    assert (tmp_path / "runs" / "cartpole" / "report.html").exists()


def test_a_language_model_needs_no_gymnasium(tmp_path):
    names = ["Prompts", "load_policy", "GRPO", "train", "Optimize", "answer", "Demonstrations", "BehaviourCloning"]
    assert loaded_by(f"import rlhf; {', '.join(f'rlhf.{name}' for name in names)}", tmp_path) == {
        *("torch", "transformers", "peft")
    }


def test_every_name_of_the_face_is_there():
    assert dir(rlhf) == sorted(rlhf.__all__)
    assert len(set(rlhf.__all__)) == len(rlhf.__all__)
    for name in rlhf.__all__:
        value = getattr(rlhf, name)
        assert value.__name__ == name
        assert value.__module__.startswith("rlhf.")


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(AttributeError, match="module 'rlhf' has no attribute 'GRP0'; it has ") as raised:
        _ = rlhf.GRP0
    assert set(re.findall(r"\w+", str(raised.value).partition("; it has ")[2])) == set(rlhf.__all__)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Drawing takes longer than all the rest.
    monkeypatch.setattr(summary, "write_report", lambda folder: None)
    return tmp_path


def test_the_examples_are_short():
    for code, most in ((language_example(Path("model")), 10), (control_example(), 6)):
        lines = code.strip().splitlines()
        assert len(lines) <= most
        assert max(map(len, lines)) <= 120


def test_the_example_on_a_language_model_runs(model, folder):
    write_prompts(folder)
    names: dict[str, object] = {}
    exec(language_example(model), names)
    rows = read_lines(folder / "runs" / "mine" / "grpo" / "metrics.jsonl")
    assert [row["update"] for row in rows] == [0, 1, 2]
    assert rows[0]["eval_score_mean"] < 0.0
    # The reward is minus a hundredth of the letters, so it is what the samples say.
    for sample in read_lines(folder / "runs" / "mine" / "grpo" / "samples.jsonl"):
        assert sample["score"] == pytest.approx(-len(sample["response"]) / 100)
    assert (folder / "runs" / "mine" / "grpo" / "final" / "policy" / "model" / "adapter_model.safetensors").exists()


def test_the_example_on_cartpole_runs(folder):
    exec(control_example(), {})
    rows = read_lines(folder / "runs" / "cartpole" / "ppo" / "metrics.jsonl")
    assert [row["steps"] for row in rows] == [0, 512, 1024, 1536, 2048]


def test_act_takes_the_likeliest_action():
    task = rlhf.Envs("CartPole-v1")
    policy = task.policy(seed=3)
    observations = list(np.random.default_rng(0).uniform(-2.0, 2.0, size=(16, 4)))
    with torch.no_grad():
        # Nothing was seen yet, so nothing is normalised away.
        likeliest = [int(policy.actor(torch.tensor(each, dtype=torch.float32)).argmax()) for each in observations]
    assert [rlhf.act(policy, each) for each in observations] == likeliest
    assert set(likeliest) == {0, 1}


def test_act_gives_what_step_takes():
    for name in ("CartPole-v1", "Pendulum-v1"):
        env = gymnasium.make(name)
        observation, _ = env.reset(seed=0)
        action = rlhf.act(rlhf.Envs(name).policy(), observation)
        assert env.action_space.contains(action)
        env.step(action)


def greedy(policy: object, tokens: list[int], *, most: int) -> list[int]:
    """The likeliest token each time, the whole text read again for each."""
    answer: list[int] = []
    with torch.no_grad():
        while len(answer) < most and (not answer or answer[-1] not in policy.stop_tokens):
            answer.append(int(policy.model(input_ids=torch.tensor([tokens + answer])).logits[0, -1].argmax()))
    return answer


def decoded(policy: object, tokens: list[int]) -> str:
    return policy.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    """A model whose likeliest tokens change with what it reads."""
    return save_model(tmp_path_factory.mktemp("model") / "llama", "llama")


PROMPTS = {"a b": [A, B], "c d": [C, D], "e f g": [E, F, G]}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_answer_continues_a_text_by_the_likeliest_tokens(prompt, varied):
    policy = rlhf.load_policy(str(varied))
    answer = rlhf.answer(policy, prompt, max_new_tokens=6)
    whole = PROMPTS[prompt] + greedy(policy, PROMPTS[prompt], most=6)
    assert prompt + answer == decoded(policy, whole)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_answer_to_a_chat_model_is_that_to_a_users_message(prompt, varied):
    policy = rlhf.load_policy(str(varied))
    plain = rlhf.answer(policy, prompt, max_new_tokens=6)
    policy.tokenizer = word_tokenizer(template=TEMPLATE)
    expected = decoded(policy, greedy(policy, [USER, *PROMPTS[prompt], ASSISTANT], most=6))
    assert rlhf.answer(policy, prompt, max_new_tokens=6) == expected != plain
    assert rlhf.answer(policy, [{"role": "user", "content": prompt}], max_new_tokens=6) == expected


def test_answer_draws_by_its_seed_alone(model):
    policy = rlhf.load_policy(str(model))
    answers = [rlhf.answer(policy, "a b", max_new_tokens=6, seed=seed) for seed in range(8)]
    torch.manual_seed(5)
    assert [rlhf.answer(policy, "a b", max_new_tokens=6, seed=seed) for seed in range(8)] == answers
    assert len(set(answers)) > 4


def test_answer_without_a_tokenizer_says_what_to_do():
    with pytest.raises(rlhf.InputError, match=r"no tokenizer; load it with rlhf\.load_policy"):
        rlhf.answer(word_policy(), "a b")
    with pytest.raises(rlhf.InputError, match=r"SimpleNamespace, which is no language model"):
        rlhf.answer(SimpleNamespace(tokenizer=None), "a b")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with nothing but what the wheel puts there; a copy is built, so that the checkout stays as it is."""
    pytest.importorskip("setuptools", minversion="77")
    place = tmp_path_factory.mktemp("wheel")
    source, target = place / "source", place / "installed"
    for name in ("rlhf", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    ran(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(place), str(source), folder=place)
    (wheel,) = place.glob("rlhf-*.whl")
    ran(*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel), folder=place)
    return target


@pytest.mark.slow
def test_the_examples_run_from_an_installed_wheel(installed, model, tmp_path):
    write_prompts(tmp_path)
    where = "import rlhf\nprint('from', rlhf.__file__)\n"
    for code in (language_example(model), control_example()):
        done = ran(sys.executable, "-c", where + code, folder=tmp_path, path=installed)
        assert done.stdout.splitlines()[0] == f"from {installed / 'rlhf' / '__init__.py'}"
    for run in ("mine", "cartpole"):
        assert (tmp_path / "runs" / run / "report.html").exists()


@pytest.mark.slow
def test_the_console_command_runs_from_an_installed_wheel(installed, model, tmp_path):
    command = str(installed / "bin" / "rlhf")
    usage = ran(command, folder=tmp_path, path=installed).stdout
    recipes = {path.stem for path in (ROOT / "recipes").glob("*.py")} - {"__init__", "__main__"}
    assert {line.split()[0] for line in usage.splitlines() if line.startswith("  ")} == recipes
    wrong = ran(command, "custom-rewrd", folder=tmp_path, path=installed, status=2)
    assert "there is no recipe custom-rewrd. Did you mean custom_reward?" in wrong.stderr
    write_texts = "".join(f'{{"text": "{word} b c"}}\n' for word in "abcdefg" * 6)
    (tmp_path / "texts.jsonl").write_text(write_texts)
    options = ("--model", str(model), "--data", "texts.jsonl", "--passes", "1", "--evaluations", "1")
    ran(command, "sft", *options, folder=tmp_path, path=installed)
    assert (tmp_path / "runs" / "sft" / "clone" / "final" / "policy" / "model" / "model.safetensors").exists()
    ran(command, "sft", *options, folder=tmp_path, path=installed, status=2)
