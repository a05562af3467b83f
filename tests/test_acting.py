"""Actors that lag: who acted, who is scored, how that is weighed, and that a resumed run has the same actors."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlhf import optimize
from rlhf.acting import Lag, completed
from rlhf.algorithms import a2c, ppo, reinforce
from rlhf.algorithms.actor_critic import Critic
from rlhf.algorithms.base import Method
from rlhf.algorithms.checks import fitting
from rlhf.algorithms.choices import methods
from rlhf.control.collect import CollectSteps, EnvCollector
from rlhf.control.envs import make_envs, spaces_of
from rlhf.control.policy import ControlPolicy, PolicyConfig
from rlhf.errors import InputError
from rlhf.loop import Duration, framed
from rlhf.rollout import Batch, PolicyOutput, Rollout, single_steps
from rlhf.runs.log import read_lines
from rlhf.runs.run import Run
from rlhf.training import train_phase
from tests.batches import make_rollout
from tests.episodes import QPolicy
from tests.given import Given
from tests.learners import learner_of
from tests.lm.worlds import word_collector, word_policy
from tests.tabular import TabularPolicy
from tests.whole_loops import RunConfig

CPU = Accelerator(cpu=True)


def control(*, critic: str = "state", steps: int = 40) -> tuple[ControlPolicy, EnvCollector]:
    envs = make_envs("CartPole-v1", 3)
    policy = ControlPolicy(spaces_of(envs), PolicyConfig(critic=critic), seed=0).double()
    config = CollectSteps(num_envs=3, steps=steps)
    return policy, EnvCollector(envs, config=config, gamma=0.9, seed=0, accelerator=CPU)


def collected(lag: Lag, collector: Any, policy: Any, update: int) -> Rollout:
    """By actors that lag, and scored by the learner."""
    with lag.acting(policy):
        rollout = collector.collect(policy, update).rollout
    options = {"micro_batch_cost": 50, "importance_cap": 2.0, "importance_floor": 0.0, "weighs": False, "lags": True}
    return completed(policy, rollout, accelerator=CPU, **options)[0]


@torch.no_grad()
def move(policy: torch.nn.Module, seed: int) -> None:
    for i, tensor in enumerate(policy.parameters()):
        generator = torch.Generator().manual_seed(100 * seed + i)
        tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))


@pytest.mark.parametrize("critic", ["state", "action"])
def test_without_lag_nothing_changes(critic: str) -> None:
    """Rescoring is what acting had found: values of final observations of cut episodes and fragments too."""
    plain = control(critic=critic)
    policy, collector = control(critic=critic)
    for update in range(2):
        a = plain[1].collect(plain[0], update).rollout
        b = collected(Lag(0), collector, policy, update)
        for name in ("behaviour_logprobs", "logprobs", "values", "next_values", "rewards"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=1e-12)


def test_without_lag_nothing_changes_on_language() -> None:
    policy = word_policy(temperature=0.8)
    a = word_collector().collect(policy, 0).rollout
    b = collected(Lag(0), word_collector(), policy, 0)
    for name in ("behaviour_logprobs", "logprobs", "values", "next_values"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=1e-5)


def test_actors_lag_and_the_learner_is_scored() -> None:
    policy, collector = control()
    lag, own = Lag(2), []
    for update in range(4):
        own.append(copy.deepcopy(policy))
        rollout = collected(lag, collector, policy, update)
        acted = own[max(update - 2, 0)](rollout.inputs).logprobs
        torch.testing.assert_close(rollout.behaviour_logprobs, acted.detach(), rtol=0, atol=1e-12)
        torch.testing.assert_close(rollout.logprobs, policy(rollout.inputs).logprobs.detach(), rtol=0, atol=1e-12)
        torch.testing.assert_close(rollout.values, policy(rollout.inputs).values.detach(), rtol=0, atol=1e-12)
        for now, then in zip(policy.parameters(), own[-1].parameters(), strict=True):
            assert torch.equal(now, then)
        move(policy, update)


def test_lagging_actors_are_part_of_the_checkpoint() -> None:
    policy, collector = control()
    lag = Lag(2)
    for update in range(3):
        collected(lag, collector, policy, update)
        move(policy, update)
    state = copy.deepcopy((collector.state_dict(), lag.state_dict()))
    expected = collected(lag, collector, policy, 3)
    resumed, (_, again) = Lag(2), control()
    again.load_state_dict(state[0])
    resumed.load_state_dict(state[1])
    rollout = collected(resumed, again, policy, 3)
    assert torch.equal(rollout.behaviour_logprobs, expected.behaviour_logprobs)
    assert torch.equal(rollout.rewards, expected.rewards)


def test_a_negative_lag_is_refused() -> None:
    with pytest.raises(InputError, match="lag is -1"):
        Lag(-1)


@dataclass(frozen=True, kw_only=True)
class Recorded(ppo.PPO):
    """PPO that keeps what it was given: rollouts with their estimates, and every batch that its loss saw."""

    estimated: list[tuple[Rollout, Batch]] = field(default_factory=list)
    seen: list[Batch] = field(default_factory=list)

    def estimate(self, rollout: Rollout, state: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        batch, metrics = super().estimate(rollout, state)
        self.estimated.append((rollout, batch))
        return batch, metrics

    def loss(self, output: PolicyOutput, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        self.seen.append(batch)
        return super().loss(output, batch, state)


# Exceeded where the policy has moved a little.
CAP = 1.02
WORLDS = {"control": control, "language": lambda: (word_policy(), word_collector())}


def learned(folder: Path, world: str, *, lag: int) -> tuple[Recorded, list[dict[str, Any]]]:
    """Four updates of two epochs, whole batches at a time, and what was logged of each."""
    method, (policy, collector) = Recorded(), WORLDS[world]()
    train_phase(
        policy,
        Given(collector, lag=lag),
        method,
        optimize.Optimize(learning_rate=0.01, epochs=2, whiten="none", importance_cap=CAP),
        duration=Duration(updates=4, eval_every=0, checkpoint_every=0),
        phase=Run(folder, RunConfig(name=world), resume=False, accelerator=CPU).phase("ppo"),
        seed=0,
    )
    return method, read_lines(folder / "ppo" / "metrics.jsonl")[1:]


def by_sample(batches: list[Batch], cells: list[Tensor]) -> dict[int, list[float]]:
    """What was acted of each row."""
    return {
        int(number): values[mask].tolist()
        for batch, tensor in zip(batches, cells, strict=True)
        for number, values, mask in zip(batch.sample_ids, tensor, batch.mask, strict=True)
        if bool(mask.any())
    }


@pytest.mark.parametrize("world", WORLDS)
def test_advantages_are_weighed_by_learner_over_actor_and_the_ratios_logged(world: str, tmp_path: Path) -> None:
    method, rows = learned(tmp_path / "run", world, lag=2)
    steps = len(method.seen) // len(rows)
    for update, ((rollout, batch), row) in enumerate(zip(method.estimated, rows, strict=True)):
        log_ratios = rollout.logprobs - rollout.behaviour_logprobs
        ratios = log_ratios.exp()
        weighed = batch._replace(advantages=batch.advantages * ratios.clamp(max=CAP))
        weighed = single_steps(weighed) if world == "control" else weighed
        seen = method.seen[steps * update : steps * (update + 1)]
        mine, own = by_sample([weighed], [weighed.advantages]), by_sample(seen, [each.advantages for each in seen])
        assert mine.keys() == own.keys()
        assert all(own[number] == pytest.approx(mine[number], rel=1e-12, abs=1e-12) for number in mine)
        if update:
            assert row["mismatch"] == pytest.approx(float(log_ratios[rollout.mask].abs().mean()), rel=1e-9)
            assert row["importance_max"] == pytest.approx(float(ratios[rollout.mask].max()), rel=1e-9)
            cut = (ratios[rollout.mask] > CAP).double().mean()
            assert row["importance_cut_fraction"] == pytest.approx(float(cut), rel=1e-9)
            assert 0.0 < row["importance_cut_fraction"] < 1.0
        # The first actor is the learner, whose scores are repeated.
        assert update or row.get("mismatch", 0.0) < 1e-12


@pytest.mark.parametrize("world", WORLDS)
def test_without_lag_nothing_is_weighed(world: str, tmp_path: Path) -> None:
    method, rows = learned(tmp_path / "run", world, lag=0)
    assert all(rollout.importance is None for rollout, _ in method.estimated)
    names = {name for row in rows for name in row}
    assert "ratio_max" in names
    assert not {name for name in names if name.startswith(("mismatch", "importance"))}


WEIGHED: dict[str, Method] = {
    **{name: kind() for name, kind in methods().items() if kind.compares and not kind.corrects_lag},
    "a2c, critic first": a2c.A2C(critic=Critic(epochs=2)),
    "reinforce, value": reinforce.Reinforce(baseline="value"),
}


@pytest.mark.parametrize("name", WEIGHED)
def test_no_method_follows_actions_that_weigh_nothing(name: str) -> None:
    """And every method follows them where they weigh 1, as if the learner itself had acted."""
    method, moved = WEIGHED[name], []
    state = method.initial_state() | {"progress": torch.tensor(0.0), "update": torch.tensor(0)}
    for weight in (None, 1.0, 0.0):
        policy: nn.Module = QPolicy(4, 3) if method.critic_of == "actions" else TabularPolicy(4, 3)
        start = policy.logits.detach().clone()
        rollout = make_rollout(policy, rows=9, steps=5)
        importance = None if weight is None else torch.full_like(rollout.rewards, weight)
        rollout = replace(rollout, importance=importance, groups=torch.arange(9) // 3)
        settings = fitting(method, optimize.Optimize(learning_rate=0.01, epochs=1, whiten="none"))
        batch = framed(method, policy, rollout, method.estimate(rollout, state)[0])
        method.update(learner_of(policy, settings), rollout, batch, state)
        moved.append(policy.logits.detach() - start)
    assert float(moved[0].norm()) > 1e-3
    assert torch.equal(moved[0], moved[1])
    assert float(moved[2].norm()) == 0.0
