"""A resumed run is the same run: what changed under its name is refused by name, and accepted on request."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from recipes import cartpole, custom_reward
from rlhf.runs import summary
from tests.recipes.small import ARGUMENTS, OWN_METHOD, files, outcome, save_model

COMMAND = (
    *("--model", "m", "--data", "p.jsonl", "--reward", "mine.py:reward", "--method", "own.py:MyMethod"),
    *("--output-dir", "run", *ARGUMENTS),
)
ENVIRONMENT = """
import gymnasium

from world_of_changes import LIMIT

class World(gymnasium.Env):
    observation_space, action_space = gymnasium.spaces.Box(-1, 1, (1,)), gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.low, {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.low, float(action), self.steps == LIMIT, False, {}
"""


def write_inputs(folder: Path) -> None:
    save_model(folder / "m")
    (folder / "p.jsonl").write_text("".join(json.dumps({"prompt": f"a {word}"}) + "\n" for word in "abcdefgabc"))
    (folder / "mine.py").write_text(
        "from beside_of_changes import SCALE\n\n"
        "def reward(responses):\n    return [SCALE * len(text) for text in responses]\n"
    )
    (folder / "beside_of_changes.py").write_text("SCALE = 2.0\n")
    (folder / "own.py").write_text(OWN_METHOD)
    (folder / "world.py").write_text(ENVIRONMENT)
    (folder / "world_of_changes.py").write_text("LIMIT = 5\n")


CONTROL = (
    *("--env-id", "world.py:World", "--steps", "256", "--collect.num-envs", "2", "--collect.steps", "16"),
    *("--optimize.minibatches", "1", "--evaluate.episodes", "2", "--output-dir", "run"),
)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Finished runs of both recipes, beside all that they were started from."""
    folders = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary, "write_report", lambda folder: None)
        for recipe, command in ((custom_reward, COMMAND), (cartpole, CONTROL)):
            folder = tmp_path_factory.mktemp("begun")
            write_inputs(folder)
            patch.chdir(folder)
            assert outcome(patch, recipe, *command) == 0
            folders[recipe] = folder
    return folders


def append(path: str, text: str) -> None:
    with Path(path).open("a") as file:
        file.write(text)


CHANGES = [
    (custom_reward, "p.jsonl", json.dumps({"prompt": "b"}) + "\n", "data: p.jsonl"),
    (custom_reward, "mine.py", "# changed\n", "reward reward: mine.py"),
    (custom_reward, "beside_of_changes.py", "SCALE = 3.0\n", "reward reward: beside_of_changes.py"),
    (custom_reward, "own.py", "# changed\n", "method: own.py"),
    (custom_reward, "m/tokenizer.json", " ", "model: tokenizer.json"),
    (custom_reward, "m/config.json", " ", "model: config.json"),
    (custom_reward, "m/model.safetensors", "", "model: model.safetensors"),
    (custom_reward, "m/chat_template.jinja", "{{ messages }}", "model: chat_template.jinja"),
    (cartpole, "world.py", "# changed\n", "environment: world.py"),
    (cartpole, "world_of_changes.py", "LIMIT = 7\n", "environment: world_of_changes.py"),
]


@pytest.mark.parametrize(("recipe", "file", "text", "name"), CHANGES, ids=[change[3] for change in CHANGES])
def test_what_changed_under_its_name_is_refused_by_name(recipe, file, text, name, begun, tmp_path, monkeypatch, capsys):
    shutil.copytree(begun[recipe], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    if file.endswith(".safetensors"):
        # Another weight, not a broken file.
        content = Path(file).read_bytes()
        Path(file).write_bytes(content[:-4] + content[-8:-4])
    else:
        append(file, text)
    before = files(Path("run"))
    assert outcome(monkeypatch, recipe, *(COMMAND if recipe is custom_reward else CONTROL), "--resume") == 2
    error = capsys.readouterr().err
    assert "run was started from other files, data or code:" in error
    assert f"  {name}: " in error
    assert files(Path("run")) == before


def test_accepted_change_is_recorded_and_is_then_what_the_run_is_made_from(begun, tmp_path, monkeypatch, capsys):
    shutil.copytree(begun[custom_reward], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(summary, "write_report", lambda folder: None)
    before = json.loads(Path("run/config.json").read_text())
    append("mine.py", "# changed\n")
    more = (*COMMAND, "--resume", "--improve.train.updates", "3")
    assert outcome(monkeypatch, custom_reward, *more, "--accept-changes") == 0
    after = json.loads(Path("run/config.json").read_text())
    (change,) = after["accepted_changes"]
    name = "reward reward: mine.py"
    assert (change["input"], change["before"], change["after"]) == (name, before["inputs"][name], after["inputs"][name])
    assert {key for key in before["inputs"] if before["inputs"][key] != after["inputs"][key]} == {name}
    assert outcome(monkeypatch, custom_reward, *more) == 0
    assert json.loads(Path("run/config.json").read_text())["accepted_changes"] == [change]


def test_changes_are_accepted_on_resume_only(tmp_path, monkeypatch, capsys):
    write_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert outcome(monkeypatch, custom_reward, *COMMAND, "--accept-changes") == 2
    assert "--accept-changes is for runs that go on" in capsys.readouterr().err
    assert not Path("run").exists()
