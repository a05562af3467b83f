"""What a loss sees: single steps, whole rows, or rows in groups, as its method says; with methods of the test's own."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlhf import optimize
from rlhf.algorithms.base import Method, Whitening
from rlhf.algorithms.choices import methods
from rlhf.algorithms.ppo import PPO
from rlhf.budget import micro_batches
from rlhf.control.collect import CollectSteps, EnvCollector
from rlhf.control.envs import make_envs, spaces_of
from rlhf.control.policy import ControlPolicy, PolicyConfig
from rlhf.errors import InputError
from rlhf.loop import Duration, framed
from rlhf.rollout import Batch, PolicyOutput, Rollout, batch_of
from rlhf.runs.evaluate import Evaluation
from rlhf.runs.log import read_lines
from rlhf.runs.run import Run
from rlhf.training import train_phase
from tests.batches import make_rollout
from tests.episodes import STATE
from tests.given import Given
from tests.learners import learner_of
from tests.tabular import TabularPolicy

CPU = Accelerator(cpu=True)


@dataclass(frozen=True, kw_only=True)
class GSPO(Method):
    """Group sequence policy optimisation (Zheng et al., 2025; https://arxiv.org/abs/2507.18071), by the row's return:
    the clipped ratio is that of a row, per action.
    """

    rows: ClassVar = "episodes"

    clip: float = 0.2

    def estimate(self, rollout: Rollout, state: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        scores = rollout.rewards.sum(1, keepdim=True)
        return batch_of(rollout, advantages=scores.expand_as(rollout.rewards)), {}

    def loss(self, output: PolicyOutput, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        log_ratios = (output.logprobs - batch.logprobs).masked_fill(~batch.mask, 0.0)
        # Where one process runs more micro-batches than another, the other's last have no action.
        lengths = batch.mask.sum(1, keepdim=True).clamp(min=1)
        ratios = torch.exp(log_ratios.sum(1, keepdim=True) / lengths).expand_as(log_ratios)
        clipped = ratios.clamp(1.0 - self.clip, 1.0 + self.clip)
        terms = -torch.minimum(ratios * batch.advantages, clipped * batch.advantages)
        return terms, {"row_ratio": ratios.detach()}


@dataclass(frozen=True, kw_only=True)
class Pairs(Method):
    """Of the two rows of a group the one that was paid more is to be the likelier: -log sigmoid of the difference, on
    the first action of both, which are half a pair each.
    """

    rows: ClassVar = "groups"
    whitens: ClassVar[tuple[Whitening, ...]] = ("none",)

    def estimate(self, rollout: Rollout, state: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        scores = rollout.rewards.sum(1, keepdim=True)
        halves = torch.zeros_like(rollout.rewards)
        halves[:, 0] = 0.5
        batch = batch_of(rollout, advantages=scores.expand_as(rollout.rewards), weights=halves, units=halves)
        return batch, {}

    def loss(self, output: PolicyOutput, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        moved = (output.logprobs - batch.logprobs).masked_fill(~batch.mask, 0.0).sum(1).view(-1, 2)
        scores = batch.advantages[:, 0].view(-1, 2)
        margins = (moved[:, 0] - moved[:, 1]) * (scores[:, 0] - scores[:, 1]).sign()
        cells = margins.repeat_interleave(2).unsqueeze(1).expand_as(output.logprobs)
        return -nn.functional.logsigmoid(cells), {"margin": cells}


def cartpole(*, steps: int = 40) -> tuple[ControlPolicy, EnvCollector]:
    envs = make_envs("CartPole-v1", 3)
    policy = ControlPolicy(spaces_of(envs), PolicyConfig(), seed=0).double()
    return policy, EnvCollector(envs, config=CollectSteps(num_envs=3, steps=steps), gamma=0.9, seed=0, accelerator=CPU)


@torch.no_grad()
def move(policy: nn.Module, size: float = 0.1) -> None:
    for i, parameter in enumerate(policy.parameters()):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i), dtype=parameter.dtype)
        parameter.add_(size * noise)


def test_a_ratio_of_whole_rows_is_a_rows_and_not_an_actions_on_control() -> None:
    """exp of the mean of log(new / old) over the row's actions, one by one; a ControlPolicy has no memory."""
    policy, collector = cartpole()
    assert policy.memoryless
    rollout = collector.collect(policy, 0).rollout
    mask = rollout.mask.clone()
    mask[1, 30:] = mask[2, 10] = False
    rollout, method = replace(rollout, mask=mask), GSPO()
    batch = framed(method, policy, rollout, method.estimate(rollout, STATE)[0])
    assert batch.mask.shape == rollout.mask.shape == (3, 40)
    assert batch.blocks is None
    move(policy)
    output = policy(batch.inputs)
    metrics = method.objective(STATE)(output, batch)[1]
    distinct = set()
    for row in range(3):
        logs = [
            float(output.logprobs[row, t].detach() - rollout.logprobs[row, t])
            for t in range(40)
            if rollout.mask[row, t]
        ]
        expected = math.exp(sum(logs) / len(logs))
        for t in range(40):
            assert float(metrics["row_ratio"][row, t]) == pytest.approx(expected, rel=1e-12)
        distinct.add(round(expected, 6))
        # It is not that of any one action.
        assert max(abs(math.exp(log) - expected) for log in logs) > 1e-3
    assert len(distinct) == 3


# Of GSPO the loss sees whole rows, and so do those that learn from preferences.
ACTED = [
    kind for name, kind in methods().items() if not kind.replays and name not in ("gspo", "dpo", "kto", "reward_model")
]


@pytest.mark.parametrize("kind", ACTED)
def test_our_methods_see_single_steps_of_a_policy_without_memory(kind: type[Method]) -> None:
    """Step (b, t) is row b T + t, with what was in its cell; a policy that remembers keeps its rows."""
    policy, collector = cartpole(steps=7)
    rollout = replace(collector.collect(policy, 0).rollout, groups=torch.zeros(3, dtype=torch.int64))
    method = kind()
    assert method.rows == "steps"
    whole, _ = method.estimate(rollout, method.initial_state() | STATE)
    batch = framed(method, policy, rollout, whole)
    assert batch.mask.shape == (21, 1)
    assert torch.equal(batch.advantages.view(3, 7), whole.advantages)
    assert torch.equal(batch.sample_ids.view(3, 7), rollout.sample_ids.unsqueeze(1) * 7 + torch.arange(7))
    assert batch.costs.tolist() == [1] * 21
    torch.testing.assert_close(policy(batch.inputs).logprobs.view(3, 7), policy(rollout.inputs).logprobs)
    policy.memoryless = False
    assert framed(method, policy, rollout, whole) is whole


SEEN: list[tuple[int, ...]] = []


@dataclass(frozen=True, kw_only=True)
class Watched(GSPO):
    def loss(self, output: PolicyOutput, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        SEEN.append(tuple(batch.mask.shape))
        return super().loss(output, batch, state)


@dataclass(frozen=True, kw_only=True)
class WatchedPPO(PPO):
    def loss(self, output: PolicyOutput, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        SEEN.append(tuple(batch.mask.shape))
        return super().loss(output, batch, state)


@dataclass(frozen=True, kw_only=True)
class Settings:
    epochs: int = 2


@pytest.mark.parametrize(("method", "shape"), [(Watched(), (1, 40)), (WatchedPPO(), (40, 1))])
def test_the_loop_hands_on_the_rows_that_the_method_asks_for(method: Method, shape: tuple, tmp_path: Path) -> None:
    """In two epochs of three minibatches of three rows of 40 steps, and what the method itself logs is logged."""
    SEEN.clear()
    policy, collector = cartpole()
    train_phase(
        policy,
        Given(collector, lambda policy: Evaluation({"eval_return_mean": 0.0}, [])),
        method,
        optimize.Optimize(epochs=2, minibatches=3),
        duration=Duration(updates=1),
        phase=Run(tmp_path / "run", Settings(), resume=False, accelerator=CPU, extendable=set()).phase(method.name),
        seed=0,
    )
    sizes = [size for size in SEEN if size[0]]
    assert len(sizes) == 6
    assert all(size[1] == shape[1] for size in sizes)
    rows = read_lines(tmp_path / "run" / method.name / "metrics.jsonl")
    assert ("row_ratio" in rows[-1]) is isinstance(method, GSPO)


def in_groups(numbers: list[int], *, steps: int = 3) -> tuple[TabularPolicy, Rollout]:
    policy = TabularPolicy(4, 3)
    return policy, replace(make_rollout(policy, rows=len(numbers), steps=steps), groups=torch.tensor(numbers))


# Pairs that lie apart, with numbers that are not counted from 0.
APART = [7, 3, 9, 3, 40, 7, 9, 12, 40, 12]
UNEVEN = [5, 5, 5, 1, 1, 8, 5, 2, 2, 2, 8]


def blocks_of(numbers: list[int]) -> dict[int, list[int]]:
    """The sample ids of each group."""
    return {number: [100 + i for i, other in enumerate(numbers) if other == number] for number in set(numbers)}


def framed_pairs(policy: TabularPolicy, rollout: Rollout) -> Batch:
    method = Pairs()
    return framed(method, policy, rollout, method.estimate(rollout, STATE)[0])


@pytest.mark.parametrize("numbers", [APART, UNEVEN])
def test_rows_of_a_group_are_framed_side_by_side(numbers: list[int]) -> None:
    """Whole rows with all that belongs to each, as in the rollout, though the policy has no memory."""
    policy, rollout = in_groups(numbers)
    batch = framed_pairs(policy, rollout)
    assert batch.mask.shape == rollout.mask.shape
    assert batch.blocks.tolist() == sorted(numbers)
    for row, sample in enumerate((batch.sample_ids - 100).tolist()):
        assert batch.blocks[row] == numbers[sample]
        assert torch.equal(batch.logprobs[row], rollout.logprobs[sample])
        assert torch.equal(batch.mask[row], rollout.mask[sample])
        assert torch.equal(batch.inputs["states"][row], rollout.inputs["states"][sample])


def epochs_of(batch: Batch, settings: optimize.Optimize, seed: int) -> list[list[Batch]]:
    learner = learner_of(TabularPolicy(4, 3), settings, seed=seed)
    parts = list(optimize.minibatches(learner, batch, settings.passes, settings.minibatches))
    size = len(parts) // settings.epochs
    return [parts[start : start + size] for start in range(0, len(parts), size)]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("epochs", "num_parts"), [(1, 1), (1, 2), (3, 2), (2, 3), (4, 4)])
@pytest.mark.parametrize("numbers", [APART, UNEVEN])
def test_groups_stay_together_in_minibatches(numbers: list[int], epochs: int, num_parts: int, seed: int) -> None:
    """And every row occurs once an epoch, beside the others of its group."""
    policy, rollout = in_groups(numbers)
    settings = optimize.Optimize(epochs=epochs, minibatches=num_parts)
    groups = blocks_of(numbers)
    found = epochs_of(framed_pairs(policy, rollout), settings, seed)
    assert len(found) == epochs
    for parts in found:
        assert len(parts) == num_parts
        assert sorted(sample for part in parts for sample in part.sample_ids.tolist()) == [
            100 + i for i in range(len(numbers))
        ]
        for part in parts:
            pieces = part.sample_ids.split(part.blocks.unique_consecutive(return_counts=True)[1].tolist())
            assert sorted(piece.tolist() for piece in pieces) == sorted(
                groups[number] for number in set(part.blocks.tolist())
            )
    counts = {len(set(part.blocks.tolist())) for part in found[0]}
    assert max(counts) - min(counts) <= 1


def test_groups_come_in_another_order_in_each_epoch_and_by_each_seed() -> None:
    policy, rollout = in_groups(APART)
    settings = optimize.Optimize(epochs=4, minibatches=5)
    orders = [
        tuple(int(part.blocks[0]) for part in parts)
        for seed in range(3)
        for parts in epochs_of(framed_pairs(policy, rollout), settings, seed)
    ]
    assert len(set(orders)) > 8


@pytest.mark.parametrize("num_parts", [1, 2])
def test_a_row_without_an_action_stays_with_its_group(num_parts: int) -> None:
    """Unless no row of the group has one: then it has nothing to step on."""
    numbers = [7, 3, 9, 3, 7, 9]
    policy, rollout = in_groups(numbers)
    acted = torch.tensor([False, True, False, True, True, False])
    rollout = replace(rollout, mask=rollout.mask & acted.unsqueeze(1))
    for parts in epochs_of(framed_pairs(policy, rollout), optimize.Optimize(epochs=3, minibatches=num_parts), 0):
        assert sorted(part.sample_ids.tolist() for part in parts) in (
            [[100, 104], [101, 103]] if num_parts == 2 else [[100, 104, 101, 103]],
            [[101, 103, 100, 104]],
        )


@pytest.mark.parametrize("numbers", [APART, UNEVEN])
@pytest.mark.parametrize("seed", [0, 1])
def test_groups_stay_together_in_micro_batches_of_any_budget(numbers: list[int], seed: int) -> None:
    """In order, none twice; a part costs no more than the budget, unless it is one group."""
    policy, rollout = in_groups(numbers, steps=5)
    costs = torch.randint(1, 9, (len(numbers),), generator=torch.Generator().manual_seed(seed))
    batch = framed_pairs(policy, replace(rollout, costs=costs))
    for part in epochs_of(batch, optimize.Optimize(epochs=1, minibatches=2), seed)[0]:
        for budget in range(1, int(part.costs.sum()) + 2):
            pieces = micro_batches(part.costs, budget, part.blocks)
            assert torch.cat(pieces).tolist() == list(range(len(part.costs)))
            seen = [set(part.blocks[piece].tolist()) for piece in pieces]
            assert sum(len(names) for names in seen) == len(set(part.blocks.tolist()))
            for piece, names in zip(pieces, seen, strict=True):
                assert int(part.costs[piece].sum()) <= budget or len(names) == 1


def gradient(policy: nn.Module, rows: Batch, filler: Batch, budget: int) -> Tensor:
    """Of the sum over the rows, not over their units."""
    policy.zero_grad()
    loss = Pairs().objective(STATE)
    optimize.gradient(policy, rows, filler, loss, accelerator=CPU, micro_batch_cost=budget)
    return policy.logits.grad.clone() * rows.units.sum()


@pytest.mark.parametrize("budget", [1, 7, 10_000])
@pytest.mark.parametrize("num_parts", [2, 3, 5])
def test_gradients_of_minibatches_of_pairs_add_up_to_that_of_all(num_parts: int, budget: int) -> None:
    """Which is that of sum over pairs -log sigmoid(log-ratio of the better row - that of the other), by autograd."""
    policy, rollout = in_groups(APART)
    batch = framed_pairs(policy, rollout)
    move(policy, 0.4)
    objective = torch.zeros((), dtype=torch.float64)
    moved = torch.where(rollout.mask, policy(rollout.inputs).logprobs - rollout.logprobs, 0.0).sum(1)
    scores = rollout.rewards.sum(1)
    for samples in blocks_of(APART).values():
        better, other = sorted((sample - 100 for sample in samples), key=lambda row: -float(scores[row]))
        objective = objective + torch.log1p(torch.exp(moved[other] - moved[better]))
    expected = torch.autograd.grad(objective, policy.logits)[0]
    assert float(expected.norm()) > 0.1
    filler = optimize.filler_of(batch)
    assert filler.blocks.tolist() == [3, 3]
    torch.testing.assert_close(gradient(policy, batch, filler, budget), expected, rtol=0, atol=1e-9)
    for parts in epochs_of(batch, optimize.Optimize(epochs=2, minibatches=num_parts), 3):
        total = sum((gradient(policy, part, filler, budget) for part in parts), torch.zeros_like(expected))
        torch.testing.assert_close(total, expected, rtol=0, atol=1e-9)


def test_a_method_of_groups_on_rows_without_them_is_refused_by_name() -> None:
    policy = TabularPolicy(4, 3)
    rollout = make_rollout(policy, rows=4, steps=3)
    method = Pairs()
    with pytest.raises(InputError, match="pairs sees rows in groups, and those of this task are in none"):
        framed(method, policy, rollout, method.estimate(rollout, STATE)[0])


def test_more_minibatches_than_groups_are_refused() -> None:
    policy, rollout = in_groups([0, 0, 1, 1])
    with pytest.raises(InputError, match="2 rows, which make no 3 parts"):
        epochs_of(framed_pairs(policy, rollout), optimize.Optimize(epochs=1, minibatches=3), 0)
