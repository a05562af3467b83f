"""`sys.exit` in code of the user's that runs inside a training is an error, whoever's turn it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import pytest

import rlhf
from rlhf.control.evaluate import EvaluateEpisodes
from rlhf.errors import UserExit
from rlhf.files import load_from_file


class Exits(gymnasium.Env):
    steps, last = 0, 0
    observation_space, action_space = gymnasium.spaces.Box(-1, 1, (1,)), gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.observation_space.low, {}

    def step(self, action: Any) -> Any:
        Exits.steps += 1
        if Exits.steps > Exits.last:
            sys.exit()
        return self.observation_space.low, 1.0, True, False, {}


@dataclass(frozen=True, kw_only=True)
class ExitingMethod(rlhf.PPO):
    def estimate(self, rollout: Any, state: Any) -> Any:
        sys.exit(0)


class ExitingTask(rlhf.Envs):
    def collect(self, policy: Any, update: int, here: Any) -> Any:
        raise SystemExit


def envs(kind: type[rlhf.Envs] = rlhf.Envs, env: Any = "CartPole-v1") -> rlhf.Envs:
    return kind(env, num_envs=2, steps=8, evaluate=EvaluateEpisodes(episodes=1, sampled_episodes=0))


@pytest.mark.parametrize(
    ("task", "method"),
    [
        (lambda: envs(env=Exits), rlhf.PPO()),
        (envs, ExitingMethod()),
        (lambda: envs(ExitingTask), rlhf.PPO()),
    ],
    ids=["environment", "method", "task"],
)
def test_exit_inside_a_training_is_an_error(
    task: Callable[[], rlhf.Envs], method: rlhf.Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not yet where environments are tried.
    monkeypatch.setattr(Exits, "last", 1000)
    made = task()
    monkeypatch.setattr(Exits, "last", 0)
    with pytest.raises(UserExit, match=r"called exit\(0?\), which no run does") as error:
        rlhf.train(made.policy(), made, method, rlhf.Optimize(minibatches=1), updates=1)
    assert isinstance(error.value.__cause__, SystemExit)


def test_exit_of_an_environment_that_is_tried_is_an_error() -> None:
    with pytest.raises(UserExit, match="environment Exits called exit"):
        envs(env=Exits)


def test_exit_while_a_file_is_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import sys\n\ndef f():\n    return 1\n\nsys.exit(f())\n")
    with pytest.raises(UserExit, match=r"method file .*mine.py called exit\(1\)"):
        load_from_file(f"{tmp_path}/mine.py:f", what="method", kind="Class")
