"""The lock holds what pyproject.toml asks for."""

from __future__ import annotations

import tomllib

import pytest
from packaging.requirements import Requirement

from tests.warning_rule import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# torch is the Makefile's; the package itself stands in its own extra.
ASKED = [
    requirement
    for requirement in map(Requirement, PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"])
    if requirement.name not in ("torch", "rlhf")
]


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line.split(";")[0].strip().split("==") for line in lines if not line.startswith("#")]
    return dict(pins)  # type: ignore[arg-type]


@pytest.mark.parametrize("requirement", ASKED, ids=lambda requirement: requirement.name)
def test_the_lock_pins_a_version_that_the_range_allows(requirement: Requirement) -> None:
    assert locked()[requirement.name] in requirement.specifier, "run `make lock`"


def test_torch_and_what_it_needs_for_cuda_are_left_to_the_makefile() -> None:
    assert not [name for name in locked() if name.startswith(("torch", "triton", "cuda", "nvidia"))]
