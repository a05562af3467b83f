"""One thread a process, the versions that were tested, and which warnings are errors."""

from __future__ import annotations

import os
from collections.abc import Generator
from importlib.metadata import requires, version
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

from tests.warning_rule import our_warnings_are_errors

# Test workers share the cores, and initial weights (a QR) round with the number of threads. Also for the programs that
# tests start.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


def pytest_report_header() -> str:
    needed = [requirement for requirement in map(Requirement, requires("rlhf") or ()) if requirement.marker is None]
    return "versions: " + ", ".join(f"{each.name} {version(each.name)}" for each in needed)


# These run inside pytest's own, which collect warnings without judging them.
@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    with our_warnings_are_errors():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, Any, Any]:
    with our_warnings_are_errors():
        return (yield)
