"""Two processes (gloo) that share out whole episodes collect and learn what one does; a group stays on one of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rlhf.algorithms.grpo import GRPO
from rlhf.control.collect import CollectSteps
from rlhf.control.envs import make_many
from rlhf.control.episode_collect import EpisodeCollector
from rlhf.control.tasks import Envs
from rlhf.errors import InputError
from rlhf.optimize import Optimize
from tests.control.episodes_two_processes import METHODS
from tests.processes import run


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """One launch of each kind computes every case; starting processes is what takes long."""
    folder = tmp_path_factory.mktemp("processes")
    for processes in (1, 2):
        run("tests/control/episodes_two_processes.py", folder / str(processes), processes=processes)
    return [load_file(folder / str(processes) / "result.safetensors") for processes in (1, 2)]


def test_there_really_are_two_processes(results: list[dict[str, Tensor]]) -> None:
    assert [int(result["processes"]) for result in results] == [1, 2]


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_learn_from_episodes_like_one(results: list[dict[str, Tensor]], method: str) -> None:
    one, two = (result[method] for result in results)
    assert float(one[:50].norm()) > 1e-2
    torch.testing.assert_close(two, one, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_right_after_acting_scoring_repeats_its_probabilities(results: list[dict[str, Tensor]], method: str) -> None:
    assert all(float(result[f"{method} first ratio error"]) <= 1e-9 for result in results)


TWO = SimpleNamespace(num_processes=2, process_index=1, device=torch.device("cpu"))


def collector_on_two(*, episodes: int, episodes_per_start: int) -> EpisodeCollector:
    return EpisodeCollector(
        make_many("CartPole-v1", episodes // 2),
        config=CollectSteps(episodes=episodes, episodes_per_start=episodes_per_start),
        gamma=1.0,
        seed=0,
        accelerator=TWO,
    )


def test_ranks_take_whole_groups_in_order() -> None:
    collector = collector_on_two(episodes=8, episodes_per_start=2)
    assert collector.sample_ids.tolist() == [4, 5, 6, 7]
    assert collector.groups.tolist() == [2, 2, 3, 3]


def test_a_group_that_would_be_split_is_refused() -> None:
    with pytest.raises(InputError, match=r"splits a group of 4 .* make episodes a multiple of 8"):
        collector_on_two(episodes=12, episodes_per_start=4)


def test_episodes_that_processes_cannot_share_are_refused() -> None:
    task = Envs("CartPole-v1", episodes=9, episodes_per_start=3)
    with pytest.raises(InputError, match="episodes is 9, which 2 processes cannot share evenly; make it a multiple"):
        task.require(task.policy(), GRPO(), Optimize(), TWO)
