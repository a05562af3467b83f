"""Every value of every setting, generated from what the fields declare: it is within its bounds, or refused by name."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import numpy as np
import pytest

import recipes
import recipes.settings
import rlhf.algorithms
import rlhf.control
import rlhf.lm
from rlhf.algorithms.dpo import DPO
from rlhf.algorithms.ppo import PPO
from rlhf.control.load import load_control_policy
from rlhf.control.settings import EvaluateEpisodes
from rlhf.control.tasks import Envs
from rlhf.errors import InputError
from rlhf.lm.load import ModelConfig, load_policy
from rlhf.lm.prompts import Prompts
from rlhf.lm.settings import CollectResponses
from rlhf.optimize import Optimize
from rlhf.settings import Interval, NamesPath, Settings, _declared
from rlhf.training import train

# What a class without defaults is made with.
NEEDED: dict[str, dict[str, Any]] = {
    "rlhf.lm.engine.Sampling": {"max_new_tokens": 4},
    "rlhf.lm.load.ModelConfig": {"model": "gpt2"},
    "rlhf.lm.calibration.Planned": {
        "model": ModelConfig(model="gpt2"),
        "method": PPO(),
        "collect": CollectResponses(),
        "optimize": Optimize(),
        "mixed_precision": "no",
        "prompt_tokens": 4,
        "max_new_tokens": 4,
        "response_tokens": 4,
        "processes": 1,
    },
    "rlhf.loop.Duration": {"updates": 1},
    "rlhf.control.stack.StackedMethod": {"method": PPO(), "seeds": (0,)},
    "recipes.custom_reward.Config": {"model": "gpt2"},
    "recipes.loop.Config": {"model": "gpt2"},
    "recipes.plan.Config": {"model": "gpt2"},
    "recipes.movie_reviews.Config": {"data": "reviews"},
    "recipes.sft.Config": {"model": "gpt2", "data": "rows.jsonl"},
    "recipes.dpo.Config": {"model": "gpt2", "data": "pairs.jsonl"},
    "recipes.reward_model.Config": {"model": "gpt2", "data": "pairs.jsonl"},
    "recipes.rlhf_pipeline.Config": {"model": "gpt2", "pairs": "pairs.jsonl"},
    "recipes.settings.preferences.Compared": {
        "model": "gpt2",
        "data": "pairs.jsonl",
        "output_dir": Path("runs/x"),
        "method": DPO(),
        "optimize": Optimize(),
    },
}
# Numbers of which every finite one means something.
UNBOUNDED = {"initial_log_std", "solved", "SAC.target_entropy"}


def every_class() -> list[type[Any]]:
    for package in (rlhf.algorithms, rlhf.control, rlhf.lm, recipes, recipes.settings):
        for module in pkgutil.iter_modules(package.__path__):
            if module.name != "__main__":
                importlib.import_module(f"{package.__name__}.{module.name}")
    found: list[type[Any]] = []
    waiting: list[type[Any]] = [Settings]
    while waiting:
        below = waiting.pop().__subclasses__()
        found += below
        waiting += below
    ours = [kind for kind in found if kind.__module__.startswith(("rlhf.", "recipes."))]
    return sorted(
        {kind for kind in ours if dataclasses.is_dataclass(kind)}, key=lambda kind: (kind.__module__, kind.__qualname__)
    )


def base(kind: type[Any]) -> Any:
    return kind(**NEEDED.get(f"{kind.__module__}.{kind.__qualname__}", {}))


def arms(hint: Any) -> list[Any]:
    """The types that a field may have, without what bounds them."""
    if get_origin(hint) is Annotated:
        return arms(get_args(hint)[0])
    if get_origin(hint) in (Literal, tuple) or not get_args(hint):
        return [hint]
    return [arm for argument in get_args(hint) for arm in arms(argument)]


def interval(hint: Any) -> Interval | None:
    for argument in get_args(hint):
        if isinstance(argument, Interval):
            return argument
        if (found := interval(argument)) is not None and get_origin(hint) is not tuple:
            return found
    return None


def paths(hint: Any) -> list[Any]:
    """Path and Location, alone or with None; what is in a list is expanded by whoever opens it."""
    found = [hint, *(get_args(hint) if get_origin(hint) is not tuple else ())]
    return [one for one in found if one is Path or NamesPath() in get_args(one)]


def refused(hint: Any) -> list[Any]:
    """Values that no field of this type may have."""
    kinds, values = arms(hint), []
    none = [] if type(None) in kinds else [None]
    if float in kinds:
        values = [math.inf, -math.inf, math.nan, 1e39, -1e39, 10**400, "0.5", True, [0.5], *none]
    elif int in kinds:
        values = [10**30, -(10**30), 2**63, 0.5, 8.0, math.nan, "8", True, (8,), *none]
    elif bool in kinds:
        values = ["yes", 1, 0.0, *none]
    elif str in kinds or Path in kinds:
        values = ["a\0b", "x" * 5000, 5, 0.5, ["a"], *none]
    elif get_origin(kinds[0]) is Literal:
        values = ["nonsense", "", 1, *none]
    elif get_origin(kinds[0]) is tuple:
        inner = get_args(kinds[0])[0]
        values = [5, "ab", *none, *([value] for value in refused(inner))]
    bounds = interval(hint)
    if bounds is not None:
        values += [bounds.low - 1] + ([] if bounds.low_in else [bounds.low])
        values += [bounds.high * 2] + ([] if bounds.high_in else [bounds.high])
    if NamesPath() in get_args(hint) or Path in kinds:
        values += ["folder/" + "n" * 300]
    return values


FIELDS = [(kind, field.name) for kind in every_class() for field in dataclasses.fields(kind)]


def test_the_walk_meets_the_settings_of_every_part() -> None:
    names = {kind.__name__ for kind in every_class()}
    assert {"PPO", "SAC", "Critic", "Optimize", "Duration", "CollectSteps", "CollectResponses", "Config"} <= names
    assert {"Replay", "EvaluateEpisodes", "PolicyConfig", "Dagger", "ModelConfig", "Sampling", "Precision"} <= names
    assert len(FIELDS) > 200


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda x: x if isinstance(x, str) else x.__qualname__)
def test_a_value_beyond_what_its_field_declares_is_refused_by_name(kind: type[Any], name: str) -> None:
    usual = base(kind)
    for value in refused(_declared(kind)[name]):
        with pytest.raises(InputError, match=rf"^{name} is .*; it must .*\.$"):
            dataclasses.replace(usual, **{name: value})


@pytest.mark.parametrize("kind", every_class(), ids=lambda kind: kind.__qualname__)
def test_every_number_declares_its_bounds(kind: type[Any]) -> None:
    for name, hint in _declared(kind).items():
        if {int, float} & set(arms(hint)) and not {name, f"{kind.__name__}.{name}"} & UNBOUNDED:
            assert interval(hint) is not None, name


def test_bounds_that_belong_are_kept() -> None:
    assert PPO(gamma=0.0).gamma == 0.0
    assert PPO(gamma=1).gamma == 1
    assert Optimize(adam_beta2=0.0, weight_decay=0.0, target_kl=0.0).adam_beta2 == 0.0
    with pytest.raises(InputError, match=r"adam_beta2 is 1\.0; it must lie in \[0, 1\)\."):
        Optimize(adam_beta2=1.0)


def test_a_class_of_ones_own_passes_the_gate_before_its_own_check() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Mine(PPO):
        mine: float = 1.0

        def __post_init__(self) -> None:
            assert math.isfinite(self.mine)

    assert Mine(mine=2.0).mine == 2.0
    with pytest.raises(InputError, match="mine is nan; it must be finite"):
        Mine(mine=math.nan)


def reward(responses: list[str], **_: Any) -> list[float]:
    return [0.0 for _ in responses]


ROWS = [{"prompt": f"{number}"} for number in range(8)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Prompts(ROWS, reward, max_new_tokens=4, held_out=None), "held_out is None; it must"),
        (lambda: Prompts(ROWS, reward, max_new_tokens=4, held_out=True), "held_out is True; it must"),
        (lambda: Prompts(ROWS, reward, max_new_tokens=4, reward_weights=2.0), "reward_weights is 2.0; it must"),
        (lambda: Prompts(ROWS, reward, max_new_tokens=4, reward_weights=[math.nan]), "reward_weights is .*finite"),
        (lambda: Prompts(ROWS, reward, max_new_tokens="4"), "max_new_tokens is '4'; it must"),
        (lambda: Prompts(ROWS, reward, max_new_tokens=4, allow_none="no"), "allow_none is 'no'; it must"),
        (lambda: Prompts(ROWS, reward, max_new_tokens=4, stop_strings=5), "stop_strings is 5; it must"),
        (lambda: Envs("CartPole-v1", num_envs="8"), "num_envs is '8'; it must be a whole number"),
        (lambda: Envs("CartPole-v1", steps=2.5), "steps is 2.5; it must be a whole number"),
        (lambda: Envs("CartPole-v1").policy(seed="0"), "seed is '0'; it must be a whole number"),
        (lambda: Envs("CartPole-v1").policy(hidden_sizes=64), "hidden_sizes is 64; it must be a list"),
        (lambda: load_policy("gpt2", temperature=math.inf), "temperature is inf; it must be finite"),
        (lambda: load_policy("gpt2", lora_rank=-1), "lora_rank is -1; it must not be negative"),
        (lambda: load_policy(5), "model is 5; it must be text"),
    ],
)
def test_arguments_from_python_pass_the_same_gate(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"updates": 1.5}, "updates is 1.5; it must be a whole number"),
        ({"updates": -1}, "updates is -1; it must not be negative"),
        ({"updates": 1, "evaluations": math.nan}, "evaluations is nan; it must be a whole number"),
        ({"updates": 1, "checkpoints": -2}, "checkpoints is -2; it must not be negative"),
        ({"updates": 1, "seed": None}, "seed is None; it must be a whole number"),
        ({"updates": 1, "resume": "yes"}, "resume is 'yes'; it must be True or False"),
        ({"updates": 1, "out": 5}, "out is 5; it must be"),
        ({"updates": 1, "out": "a\0b"}, "out is .*; it must hold no NUL"),
        ({"updates": 1, "mixed_precision": "fp16"}, "mixed_precision is 'fp16'; it must be 'no' or 'bf16'"),
    ],
)
def test_train_refuses_arguments_by_name(wrong: dict[str, Any], message: str) -> None:
    task = Envs("CartPole-v1")
    with pytest.raises(InputError, match=message):
        train(task.policy(), task, PPO(), **wrong)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


PATHS = [(kind, name) for kind, name in FIELDS if paths(_declared(kind)[name])]


@pytest.mark.parametrize(("kind", "name"), PATHS, ids=lambda x: x if isinstance(x, str) else x.__module__)
def test_every_path_may_begin_at_home(kind: type[Any], name: str, home: Path) -> None:
    """No shell expands the ~ of --model=~/m."""
    changes = {"critic": "separate"} if name == "critic_model" else {}
    of_type = Path if Path in arms(_declared(kind)[name]) else str
    made = dataclasses.replace(base(kind), **changes, **{name: of_type("~/a/b")})
    assert getattr(made, name) == of_type(home / "a/b")
    assert getattr(dataclasses.replace(base(kind), **changes, **{name: of_type("a/~")}), name) == of_type("a/~")
    with pytest.raises(InputError, match=f"{name} is .*~nobody-of-this-name/x.*; it must begin with a home folder"):
        dataclasses.replace(base(kind), **changes, **{name: of_type("~nobody-of-this-name/x")})


def test_what_is_given_in_python_may_begin_at_home(home: Path) -> None:
    task = Envs("CartPole-v1", num_envs=2, steps=4, evaluate=EvaluateEpisodes(episodes=1, sampled_episodes=0))
    train(task.policy(), task, PPO(), updates=1, out="~/run")
    assert (home / "run" / "result.json").exists()
    assert load_control_policy(Path("~/run/ppo/final/policy")).spaces == task.spaces
    assert not (home / "~").exists()


@pytest.mark.parametrize("name", ["a/b", "", "../up", "x" * 101, "two words"])
def test_the_name_of_a_method_is_one_of_a_folder(name: str) -> None:
    with pytest.raises(InputError, match=r"the name of method Mine is .*; a folder bears it"):
        type("Mine", (PPO,), {"name": name})


def test_numbers_of_numpy_are_kept_as_pythons_own(tmp_path: Path) -> None:
    acting = {"num_envs": np.int64(2), "steps": np.int32(4)}
    task = Envs("CartPole-v1", **acting, evaluate=EvaluateEpisodes(episodes=np.int8(1), sampled_episodes=0))
    policy = task.policy(seed=np.uint8(3), hidden_sizes=[np.int64(4)])
    settings = Optimize(learning_rate=np.float32(0.5))
    assert type(settings.learning_rate) is float
    assert settings.learning_rate == 0.5
    train(policy, task, PPO(gamma=np.float64(0.5)), settings, updates=np.int64(1), out=tmp_path / "run")
    assert (tmp_path / "run" / "result.json").exists()
    assert type(Prompts(ROWS, reward, max_new_tokens=4, held_out=np.int64(1)).held_out) is int
