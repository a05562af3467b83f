"""What code of the user's sets for a whole process is its own: the run goes on in its folder, dtype, threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.control.envs import make_env
from rlhf.lm.rewards import Rewards, load_reward
from tests.lm.test_rewards import samples

CHANGES = """os.chdir(FOLDER)
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)
torch.set_num_threads(3)
"""
SECRET = "open('secret.txt').read()"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes a file of user code, in which FOLDER holds what only a path relative to it finds."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "secret.txt").write_text("7")
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        path = tmp_path / "mine.py"
        path.write_text(f"import os\nimport torch\nimport gymnasium\nFOLDER = {str(theirs)!r}\n{text}")
        return path

    return write


def require_as_it_was(here: str) -> None:
    tensor = torch.ones(1, requires_grad=True) * 2
    assert (os.getcwd(), torch.get_default_dtype(), tensor.requires_grad) == (here, torch.float32, True)
    assert torch.get_num_threads() != 3


def indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


@pytest.mark.parametrize(
    "text",
    [
        f"{CHANGES}def reward(completions):\n    return [float({SECRET})] * 3\n",
        f"def reward(completions):\n{indented(CHANGES)}    return [float({SECRET})] * 3\n",
        f"async def reward(completions):\n{indented(CHANGES)}    return [float({SECRET})] * 3\n",
    ],
    ids=["as it is read", "as it is called", "async"],
)
def test_reward_leaves_the_process_as_it_was(file: Callable[[str], Path], text: str) -> None:
    here = os.getcwd()
    function = load_reward(f"{file(text)}:reward")
    require_as_it_was(here)
    for _ in range(2):
        assert Rewards([function])(samples()).scores.tolist() == [7.0] * 3
        require_as_it_was(here)


def test_reward_that_raises_leaves_the_process_as_it_was(file: Callable[[str], Path]) -> None:
    here = os.getcwd()
    text = f"def reward(completions):\n{indented(CHANGES)}    1 / 0\n"
    function = load_reward(f"{file(text)}:reward")
    with pytest.raises(ZeroDivisionError):
        Rewards([function])(samples())
    require_as_it_was(here)


def test_environment_that_is_made_leaves_the_process_as_it_was(file: Callable[[str], Path]) -> None:
    here = os.getcwd()
    text = f"def Mine(**_: object):\n{indented(CHANGES)}    return gymnasium.make('CartPole-v1')\n"
    make_env(f"{file(text)}:Mine")
    require_as_it_was(here)


def test_working_folder_that_is_gone_stops_no_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    def reward(completions: list[str]) -> list[Any]:
        return [1.0] * len(completions)

    assert Rewards([reward])(samples()).scores.tolist() == [1.0] * 3
