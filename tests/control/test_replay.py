from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rlhf.control.collect import CollectSteps
from rlhf.control.envs import make_envs, spaces_of
from rlhf.control.policy import PolicyConfig
from rlhf.control.replay import Replay, ReplayBuffer, ReplayCollector, _even
from rlhf.control.twin_policy import TwinPolicy
from rlhf.core.random import uniforms
from rlhf.errors import InputError
from rlhf.rollout import Rollout
from rlhf.runs.state import load_state, save_state
from tests.control.worlds import CPU, Walk, vector


def column(start: int, steps: int, envs: int = 2) -> dict[str, torch.Tensor]:
    """`(N, T)`: step t of environment i is 100 i + t."""
    return {"x": torch.arange(start, start + steps) + 100 * torch.arange(envs).unsqueeze(1)}


def content(buffer: ReplayBuffer) -> list[int]:
    slots = torch.arange(buffer.filled).repeat_interleave(2)
    return sorted(buffer.take(slots, torch.arange(2).repeat(buffer.filled))["x"].tolist())


def policy_for(envs: SyncVectorEnv, **config: bool) -> TwinPolicy:
    return TwinPolicy(spaces_of(envs), PolicyConfig(hidden_sizes=(8,), critic="action", **config), seed=0)


def collector_of(envs: SyncVectorEnv, *, steps: int, rows: int = 64, **replay: int) -> ReplayCollector:
    config = CollectSteps(num_envs=envs.num_envs, steps=steps)
    options = {"config": config, "replay": Replay(**replay), "num_rows": rows}
    return ReplayCollector(envs, **options, seed=0, accelerator=CPU)


def seen_steps(rollout: Rollout) -> set[tuple[float, float, float, bool]]:
    """(x, x', reward, terminal) of every row of a walk."""
    cells = (rollout.inputs["observations"], rollout.next_inputs["observations"], rollout.rewards, rollout.terminals)
    return set(zip(*(cell.flatten().tolist() for cell in cells), strict=True))


@pytest.mark.parametrize("lengths", [[2, 3], [4, 4], [3, 1, 4, 2], [9], [5, 5, 5]])
def test_buffer_keeps_the_latest_steps(lengths: list[int]) -> None:
    buffer, taken = ReplayBuffer(5), 0
    for length in lengths:
        buffer.add(column(taken, length))
        taken += length
        kept = range(max(taken - 5, 0), taken)
        assert content(buffer) == sorted([*kept, *(100 + t for t in kept)])


@pytest.mark.parametrize("before", [3, 7])
def test_buffer_goes_on_from_its_state_as_if_nothing_had_happened(before: int, tmp_path: Path) -> None:
    """Slot by slot, also once the ring has begun to overwrite; only what is filled is saved."""
    buffer, other = ReplayBuffer(5), ReplayBuffer(5)
    buffer.add(column(0, before))
    save_state(tmp_path, buffer.state_dict())
    state = load_state(tmp_path)
    assert len(state["columns"]["x"]) == min(before, 5)
    other.load_state_dict(state)
    for one in (buffer, other):
        one.add(column(before, 4))
    slots, envs = torch.arange(5), torch.zeros(5, dtype=torch.int64)
    assert torch.equal(buffer.take(slots, envs)["x"], other.take(slots, envs)["x"])
    with pytest.raises(InputError, match="slots"):
        ReplayBuffer(2).load_state_dict(state)


def test_collector_knows_a_terminal_state_from_a_time_limit() -> None:
    """Each step of a walk with its own next state, never the first one of the next episode; limits are not terminal."""
    for ends, last in (({"terminal": 3}, True), ({"limit": 3}, False), ({"terminal": 3, "limit": 3}, True)):
        envs = vector(Walk(**ends))
        rollout = collector_of(envs, steps=7, random_steps=0).collect(policy_for(envs), 0).rollout
        assert seen_steps(rollout) == {(0, 1, 1, False), (1, 2, 2, False), (2, 3, 3, last)}
        assert rollout.mask.all()


def test_collector_counts_its_steps_and_acts_at_random_first() -> None:
    envs = vector(Walk(terminal=3), Walk(terminal=4))
    collector, policy = collector_of(envs, steps=4, random_steps=5), policy_for(envs)
    first, second = (collector.collect(policy, update).metrics for update in range(2))
    # Three even steps in each of two environments make at least five, then four by the policy.
    assert (first["steps"], first["env_steps"], first["replay_size"]) == (14, 14, 14)
    assert (second["steps"], second["env_steps"], second["replay_size"]) == (8, 22, 22)
    assert first["episodes"] == 2 + 1
    assert first["return_mean"] == pytest.approx((6 + 6 + 10) / 3)


@pytest.mark.parametrize(("env_id", "mean", "edge"), [("CartPole-v1", 0.5, 1.0), ("Pendulum-v1", 0.0, 2.0)])
def test_first_actions_are_even_over_the_space(env_id: str, mean: float, edge: float) -> None:
    """Whatever the policy would do: here one action with certainty, which the step after the 500 random ones takes."""
    envs = make_envs(env_id, 4)
    policy = policy_for(envs)
    with torch.no_grad():
        policy.actor.biases[-1][..., 0] = 50.0
    collector = collector_of(envs, steps=1, random_steps=2000)
    collector.collect(policy, 0)
    slots, rows = torch.arange(500).repeat_interleave(4), torch.arange(4).repeat(500)
    actions = collector.buffer.take(slots, rows)["actions"].double()
    assert float(actions.max()) == pytest.approx(edge, abs=0.02)
    assert float(actions.min()) == pytest.approx(2 * mean - edge, abs=0.02)
    # Five standard errors of the mean.
    assert float(actions.mean()) == pytest.approx(mean, abs=5 * edge / 3.0**0.5 / 2000**0.5)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_first_actions_are_where_the_policy_is(env_id: str) -> None:
    spaces = spaces_of(make_envs(env_id, 1))
    draws = torch.full((3, 1), 0.5, dtype=torch.float64)
    assert _even(spaces, draws, torch.empty(1, device="meta")).device.type == "meta"


def test_rows_are_drawn_evenly_by_the_update_and_their_number_alone() -> None:
    envs = vector(Walk(), Walk())
    collector, policy = collector_of(envs, steps=3, rows=600, random_steps=0), policy_for(envs)
    rollout = collector.collect(policy, 5).rollout
    expected = (uniforms(0, "replayed steps", 5, torch.arange(600), 1).squeeze(1) * 6).floor()
    # Slot t holds the step from x = t of both environments.
    assert rollout.inputs["observations"].flatten().tolist() == (expected // 2).tolist()
    assert rollout.sample_ids.tolist() == list(range(600))
    counts = expected.long().bincount(minlength=6)
    assert int(counts.min()) > 70


def test_two_processes_draw_the_rows_of_one() -> None:
    """Each holds its own environment and hands out that part of the global draw."""

    class Rank:
        num_processes, device = 2, CPU.device

        def __init__(self, process_index: int) -> None:
            self.process_index = process_index

        def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
            return tensor

    def rows(envs: SyncVectorEnv, accelerator: object) -> dict[int, tuple[float, float]]:
        config, replay = CollectSteps(num_envs=2, steps=6), Replay(random_steps=4)
        options = {"config": config, "replay": replay, "num_rows": 40, "seed": 0, "accelerator": accelerator}
        rollout = ReplayCollector(envs, **options).collect(policy_for(envs), 0).rollout
        cells = (rollout.inputs["observations"], rollout.rewards)
        values = zip(*(cell.flatten().tolist() for cell in cells), strict=True)
        return dict(zip(rollout.sample_ids.tolist(), values, strict=True))

    whole = rows(vector(Walk(terminal=3), Walk(terminal=5)), CPU)
    parts = [rows(vector(Walk(terminal=end)), Rank(i)) for i, end in enumerate((3, 5))]
    assert min(len(part) for part in parts) > 0
    assert not set(parts[0]) & set(parts[1])
    assert parts[0] | parts[1] == whole


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_collector_resumes_exactly(env_id: str, tmp_path: Path) -> None:
    """The ring has wrapped, episodes are open, moments of observations move."""
    rollouts = []
    for resumed in (False, True):
        envs = make_envs(env_id, 2)
        policy, collector = (
            policy_for(envs, normalise_observations=True),
            collector_of(envs, steps=9, capacity=40, random_steps=10),
        )
        for update in range(3):
            collector.collect(policy, update)
        if resumed:
            save_state(tmp_path, collector.state_dict())
            collector = collector_of(make_envs(env_id, 2), steps=9, capacity=40, random_steps=10)
            collector.load_state_dict(load_state(tmp_path))
        rollouts.append([collector.collect(policy, update) for update in (3, 4)])
    for whole, other in zip(*rollouts, strict=True):
        assert whole.metrics == other.metrics
        for name in ("inputs", "next_inputs"):
            ours, theirs = getattr(whole.rollout, name), getattr(other.rollout, name)
            assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        assert torch.equal(whole.rollout.rewards, other.rollout.rewards)


def test_observations_are_normalised_by_the_moments_of_now() -> None:
    """What is remembered is raw, so that old steps are seen as new ones are."""
    envs = vector(Walk(), Walk())
    collector = collector_of(envs, steps=4, random_steps=0)
    policy = policy_for(envs, normalise_observations=True)
    for update in range(2):
        collector.collect(policy, update)
    mean, std = policy.normalizer.mean.clone(), policy.normalizer.std()
    raw = {float((x - mean) / std) for x in range(12)}
    # Drawn after the moments have moved, as the policy will see observations from now on.
    seen = collector._draw(policy, 2).inputs["observations"].flatten().tolist()
    assert all(min(abs(x - y) for y in raw) < 1e-5 for x in seen)


def test_collector_refuses_what_has_no_meaning_here() -> None:
    envs = vector(Walk(), mode=AutoresetMode.SAME_STEP)
    with pytest.raises(InputError, match="resets itself"):
        collector_of(envs, steps=1)
    options = {"replay": Replay(), "num_rows": 1, "seed": 0, "accelerator": CPU}
    with pytest.raises(InputError, match="normalise_rewards"):
        ReplayCollector(vector(Walk()), config=CollectSteps(num_envs=1, normalise_rewards=True), **options)
    for field in ("capacity", "random_steps"):
        with pytest.raises(InputError, match=field):
            Replay(**{field: -1})
