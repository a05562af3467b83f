"""Methods by name: ours, and those in a user's own file."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.algorithms.choices import find_method, methods
from rlhf.algorithms.clone import BehaviourCloning
from rlhf.algorithms.grpo import GRPO
from rlhf.algorithms.ppo_kl import PPOKL
from rlhf.errors import InputError

OWN = """
from dataclasses import dataclass
from rlhf.algorithms.base import Method
from rlhf.algorithms.ppo import PPO

@dataclass(frozen=True, kw_only=True)
class MySofterPPO(PPO):
    softness: float = 0.25

@dataclass(frozen=True, kw_only=True)
class Named(Method):
    name = "another_name"

@dataclass(frozen=True, kw_only=True)
class Unrelated:
    clip: float = 0.2

class Undecorated(PPO):
    softness: float = 0.25

def function():
    pass

number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_methods.py"
    path.write_text(OWN)
    return path


@pytest.mark.parametrize(("name", "kind"), [("grpo", GRPO), ("ppo_kl", PPOKL), ("clone", BehaviourCloning)])
def test_our_methods_are_found_by_their_names(name: str, kind: type) -> None:
    assert find_method(name) is kind
    assert kind.name == name


def test_every_name_stands_for_the_class_that_bears_it() -> None:
    assert len(methods()) == 21
    assert {name: kind.name for name, kind in methods().items()} == {name: name for name in methods()}
    assert list(methods()) == sorted(methods())


def test_a_class_of_ones_own_is_found_in_its_file(file: Path) -> None:
    kind = find_method(f"{file}:MySofterPPO")
    assert kind(softness=0.5, clip=0.3).softness == 0.5
    assert kind.name == "my_softer_ppo"
    assert find_method(f"{file}:Named").name == "another_name"


def test_a_class_of_ones_own_does_not_join_ours(file: Path) -> None:
    before = methods()
    find_method(f"{file}:Named")
    assert methods() == before


@pytest.mark.parametrize(
    ("wrong", "right"), [("pppo", "ppo"), ("reinforce_p", "reinforce_pp"), ("dicrete_sac", "discrete_sac")]
)
def test_a_wrong_name_is_answered_by_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(InputError, match=rf"no method {wrong}; choose one of a2c, .*Did you mean {right}\?"):
        find_method(wrong)


def test_a_name_like_no_other_is_answered_by_all_of_them() -> None:
    with pytest.raises(InputError, match=r"no method xyzzy; .*, or give your own as path/to/file.py:Class\.$"):
        find_method("xyzzy")


def test_a_wrong_class_is_answered_by_the_nearest_of_its_file(file: Path) -> None:
    with pytest.raises(InputError, match=r"my_methods.py has no Class 'MySofterPO'; did you mean 'MySofterPPO'"):
        find_method(f"{file}:MySofterPO")


@pytest.mark.parametrize("name", ["Unrelated", "function", "Undecorated"])
def test_what_is_no_method_is_refused(file: Path, name: str) -> None:
    """A class without the decorator has none of the settings that it writes down."""
    with pytest.raises(InputError, match=f"{name} is no method; give a frozen, keyword-only dataclass"):
        find_method(f"{file}:{name}")


def test_what_is_no_class_at_all_is_refused(file: Path) -> None:
    with pytest.raises(InputError, match=r"number in my_methods\.py is int 3, not a Class"):
        find_method(f"{file}:number")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no file .*missing\.py"):
        find_method(f"{tmp_path / 'missing.py'}:Mine")
