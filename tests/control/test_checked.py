from __future__ import annotations

import random
import re
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from rlhf.control import checked
from rlhf.control.envs import make_env, make_envs
from rlhf.control.evaluate import Evaluator
from rlhf.control.policy import ControlPolicy
from rlhf.control.settings import EvaluateEpisodes, PolicyConfig
from rlhf.control.tasks import Envs
from rlhf.control.trial import tried
from rlhf.errors import InputError
from rlhf.rollout import NonFiniteError
from tests.control.worlds import CPU, Forgetful, Walk, collector_of


class Odd(gymnasium.Env):
    """Three steps that pay 1 each; what it gives is changed on the way out by `habits`."""

    observation_space: Any = spaces.Box(-9.0, 9.0, (1,), np.float32)
    action_space: Any = spaces.Discrete(2)

    def __init__(self, *, given: Any = None, last: int = 3, **habits: Any) -> None:
        self.habits, self.given, self.last, self.x = habits, given, last, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.x = 0
        return (self._habit("observation", np.zeros(1, np.float32)), {}) if self.given != "bare" else np.zeros(2)

    def step(self, action: Any) -> Any:
        self.x += 1
        seen = self._habit("observation", np.full(1, self.x, np.float32))
        over = self._habit("terminated", self.x == self.last)
        reward = self._habit("reward", 1.0)
        if self.given == "four":
            return seen, reward, over, {}
        return seen, reward, over, self._habit("truncated", False), self._habit("info", {})

    def _habit(self, name: str, value: Any) -> Any:
        return self.habits.get(name, lambda x: x)(value)


def makes(**habits: Any) -> Any:
    return lambda: Odd(**habits)


def limited(**habits: Any) -> Any:
    """As `gymnasium.make` gives what was registered with a time limit."""
    return lambda: TimeLimit(Odd(**habits), 3)


def metrics_of(env: Any) -> dict[str, float]:
    """Of an evaluation with two greedy episodes and two sampled ones."""
    policy = ControlPolicy(tried(env), PolicyConfig(), seed=0)
    config = EvaluateEpisodes(episodes=2, sampled_episodes=2)
    return Evaluator(env, config=config, seed=0, accelerator=CPU)(policy).metrics


READABLE = {
    "flags of int": {"terminated": int, "truncated": int},
    "flags of numpy": {"terminated": np.bool_, "truncated": np.int64},
    "flags in arrays": {"terminated": lambda x: np.array([x])},
    "a reward in an array": {"reward": lambda x: np.array([x])},
    "a reward of int": {"reward": int},
    "a reward of float32": {"reward": np.float32},
    "observations of float64": {"observation": lambda x: x.astype(np.float64)},
    "observations of int": {"observation": lambda x: x.astype(np.int64)},
    "observations in lists": {"observation": lambda x: x.tolist()},
}


@pytest.mark.parametrize("habits", READABLE.values(), ids=READABLE)
def test_what_can_be_read_in_one_way_is_read_so_in_evaluation_and_in_training(habits: dict[str, Any]) -> None:
    metrics = metrics_of(makes(**habits))
    assert metrics["eval_length_mean"] == metrics["eval_sampled_length_mean"] == 3
    assert metrics["eval_return_mean"] == metrics["eval_sampled_return_mean"] == 3.0
    envs = make_envs(makes(**habits), 2)
    rollout = collector_of(envs, 6).collect(ControlPolicy(tried(Odd), PolicyConfig(), seed=0), 0).rollout
    assert rollout.rewards.tolist() == [[1.0] * 6] * 2
    assert rollout.terminals.tolist() == [[False, False, True] * 2] * 2
    assert rollout.inputs["observations"].flatten().tolist() == [0.0, 1.0, 2.0] * 4


REFUSED = {
    "gym's step": ({"given": "four"}, "step that gives a tuple of 4 values"),
    "gym's reset": ({"given": "bare"}, r"reset that gives an array of shape \(2,\)"),
    "two flags": ({"terminated": lambda x: [x, x]}, "a list of 2 values .* as terminated at step 1"),
    "a flag of 2": ({"truncated": lambda _: 2}, "int 2 as truncated"),
    "no flag": ({"terminated": lambda _: None}, "NoneType None as terminated"),
    "a flag of NaN": ({"terminated": lambda _: np.nan}, "float nan as terminated"),
    "two rewards": ({"reward": lambda x: np.array([x, x])}, r"paid an array of shape \(2,\)"),
    "no reward": ({"reward": lambda _: None}, "paid NoneType None at step 1"),
    "a reward in words": ({"reward": str}, "paid str '1.0'"),
    "no infos": ({"info": lambda _: None}, "step that gives a tuple of 5 values .*NoneType"),
    "infos in a list": ({"info": lambda _: []}, "step that gives"),
    "wide observations": ({"observation": lambda x: np.tile(x, 2)}, r"shape \(2,\) .* does not fit"),
    "observations in a row": ({"observation": lambda x: x[None]}, r"shape \(1, 1\)"),
    "scalar observations": ({"observation": lambda x: x[0]}, "does not fit"),
    "observations in words": ({"observation": lambda x: np.array(["a"])}, "type <U1"),
    "complex observations": ({"observation": lambda x: x.astype(np.complex64)}, "complex64"),
    "no observation": ({"observation": lambda _: None}, "NoneType"),
    "an observation of NaN": ({"observation": lambda x: x * np.nan}, "nan.* not finite"),
    "an infinite observation": ({"observation": lambda x: x + np.inf}, "inf.* not finite"),
    "a reward of NaN": ({"reward": lambda _: np.nan}, "paid nan at step 1"),
    "an infinite reward": ({"reward": lambda _: np.float32(-np.inf)}, "paid -inf at step 1"),
    "a raise": ({"reward": lambda _: 1 / 0}, "cannot be played: ZeroDivisionError: .*test_checked.py, line"),
}


@pytest.mark.parametrize("make", [makes, limited])
@pytest.mark.parametrize(("habits", "message"), REFUSED.values(), ids=REFUSED)
def test_what_breaks_the_contract_is_refused_before_anything_is_made_of_it(
    make: Any, habits: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as refused:
        Envs(make(**habits))
    assert "<lambda>" in str(refused.value).split(" ", 1)[0]
    assert len(str(refused.value)) < 350
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("habits", [{"reward": lambda _: np.nan}, {"observation": lambda x: x * np.inf}])
def test_numbers_that_turn_infinite_later_stop_training_and_name_the_environment(habits: dict[str, Any]) -> None:
    late = {name: lambda x, habit=habit: x if clock.x < 100 else habit(x) for name, habit in habits.items()}
    clock = Odd(last=200, **late)
    policy = ControlPolicy(tried(lambda: Odd()), PolicyConfig(), seed=0)
    envs = make_envs(lambda: clock, 1)
    with pytest.raises(NonFiniteError, match=r"lambda.* at step 100 of an episode"), np.errstate(invalid="ignore"):
        collector_of(envs, 150).collect(policy, 0)


def test_flat_observations_are_checked_part_by_part() -> None:
    class Parts(Odd):
        observation_space = spaces.Dict({"at": spaces.Box(-1, 1, (2,)), "kind": spaces.Discrete(3)})

    good = {"at": np.array([0.5, 2.0]), "kind": 1}
    env = make_env(lambda: Parts(observation=lambda _: good))
    assert env.reset(seed=0)[0].tolist() == [0.5, 2.0, 0, 1, 0]
    assert env.reset(seed=0)[0].dtype == env.observation_space.dtype
    for bad in ({"at": good["at"]}, {**good, "kind": 3}, {**good, "kind": -1}, {**good, "at": np.zeros(3)}, (1, 2)):
        with pytest.raises(InputError, match="does not fit its observation_space"):
            make_env(lambda bad=bad: Parts(observation=lambda _: bad)).reset(seed=0)


@pytest.mark.parametrize(
    "space",
    [spaces.Tuple([spaces.Discrete(2)]), spaces.Dict({}), spaces.MultiDiscrete([2, 2]), spaces.Text(3), None, 3],
)
def test_actions_of_other_kinds_are_refused_by_name(space: Any) -> None:
    class Other(Odd):
        action_space = space

    with pytest.raises(InputError, match=r"Other.*(supported are Discrete|no action_space)"):
        Envs(Other)


@pytest.mark.parametrize("space", [spaces.Sequence(spaces.Discrete(2)), None, (4,)])
def test_observations_of_other_kinds_are_refused_by_name(space: Any) -> None:
    class Other(Odd):
        observation_space = space

    with pytest.raises(InputError, match=r"Other.*(no fixed size|no observation_space)"):
        Envs(Other)


def test_a_reset_without_seed_or_options_is_refused() -> None:
    class Old(Odd):
        def reset(self) -> Any:  # type: ignore[override]  # as gym had it
            return np.zeros(1, np.float32)

    with pytest.raises(InputError, match="Old has a reset that does not take seed and options"):
        make_env(Old)


def test_an_environment_without_an_end_is_refused_early_and_a_time_limit_admits_it() -> None:
    with pytest.raises(InputError, match=f"after {checked.MAX_STEPS} steps and declares no time limit") as refused:
        Envs("Endless-v0")
    assert str(refused.value).count("Endless-v0") == 1
    assert len(str(refused.value)) < 350
    assert metrics_of("Endless-v0,max_episode_steps=7")["eval_length_mean"] == 7
    assert metrics_of(lambda: TimeLimit(Walk(), 7))["eval_length_mean"] == 7


def test_an_episode_that_a_better_policy_never_ends_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "MAX_STEPS", 20)
    policy = ControlPolicy(tried(makes(last=15)), PolicyConfig(), seed=0)
    config = EvaluateEpisodes(episodes=3, sampled_episodes=0)
    with pytest.raises(InputError, match="not ended an episode after 20 steps"):
        Evaluator(makes(last=25), config=config, seed=0, accelerator=CPU)(policy)


DRAWS = {
    "np.random": lambda x: x + np.random.rand(),
    "Python's random": lambda x: x + random.random(),
    "torch's generator": lambda x: x + float(torch.rand(())),
}


@pytest.mark.parametrize("generator", DRAWS)
@pytest.mark.parametrize("where", ["reward", "observation"])
def test_draws_from_generators_of_the_process_are_refused(generator: str, where: str) -> None:
    with pytest.raises(InputError, match=f"draws from {re.escape(generator)}, of the whole process"):
        Envs(makes(**{where: DRAWS[generator]}))


def test_draws_that_come_late_in_an_episode_end_the_first_evaluation() -> None:
    class Late(Odd):
        def step(self, action: Any) -> Any:
            if self.x == 90:
                random.random()
            return super().step(action)

    with pytest.raises(InputError, match="draws from Python's random"):
        metrics_of(lambda: TimeLimit(Late(last=100), 200))


def test_randomness_of_another_source_and_what_an_episode_leaves_behind_are_refused() -> None:
    own = np.random.default_rng()
    for make in (makes(reward=lambda x: x + own.random()), lambda: TimeLimit(Forgetful(), 5)):
        with pytest.raises(InputError, match=r"other numbers at step [01] when an episode is played again"):
            Envs(make)


def test_a_function_that_gives_one_environment_again_and_again_is_refused() -> None:
    env = Odd()
    with pytest.raises(InputError, match="one and the same environment"):
        Envs(lambda: env)
    assert Envs(env).spaces == Envs(Odd).spaces
