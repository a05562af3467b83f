"""Weights for what another policy did: the truncated ratio, what is logged of it, and what the loop does with it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf import acting, optimize
from rlhf.algorithms.a2c import A2C
from rlhf.algorithms.base import Method
from rlhf.algorithms.choices import methods
from rlhf.algorithms.clone import BehaviourCloning
from rlhf.algorithms.gspo import GSPO
from rlhf.algorithms.impala import Impala
from rlhf.algorithms.off_policy import OffPolicy
from rlhf.algorithms.ppo import PPO
from rlhf.control import collect
from rlhf.control.envs import make_envs, spaces_of
from rlhf.control.policy import ControlPolicy, PolicyConfig
from rlhf.loop import Duration
from rlhf.rollout import Batch, PolicyOutput, Rollout
from rlhf.runs.evaluate import Evaluation
from rlhf.runs.log import read_lines
from rlhf.runs.run import Run
from rlhf.training import train_phase
from tests.batches import make_rollout
from tests.episodes import STATE
from tests.given import Given
from tests.tabular import TabularPolicy

CPU = Accelerator(cpu=True)
COMPARING = [kind for kind in methods().values() if kind.compares]
WEIGHED = [kind for kind in COMPARING if not kind.corrects_lag]
# Whose loss holds the ratio new / old; those of the others, log p.
RATIO = {"ppo", "ppo_kl", "trpo", "grpo", "gspo", "reinforce_pp", "off_policy"}
CLIPPED = {"ppo", "grpo", "gspo", "reinforce_pp"}
# Clips that are not 0.2 by default; a row of one action has that action's ratio.
SETTINGS: dict[str, dict[str, float]] = {"gspo": {"clip": 0.2, "clip_high": 0.2}, "cispo": {"clip_high": 0.2}}
ADVANTAGES = torch.tensor([[1.5], [-0.5], [2.0], [-3.0]], dtype=torch.float64)
IMPORTANCE = torch.tensor([[2.0], [0.3], [0.7], [1.0]], dtype=torch.float64)


def scored(method: Method, *, ratio: float, importance: Tensor | None) -> tuple[PolicyOutput, Batch, dict[str, Tensor]]:
    """Four actions with known advantages, each `ratio` as likely as at the start of the update."""
    policy = TabularPolicy(4, 3)
    rollout = replace(make_rollout(policy, rows=4, steps=1), groups=torch.tensor([0, 0, 1, 1]))
    state = method.initial_state() | STATE
    batch, _ = method.estimate(replace(rollout, importance=importance), state)
    batch = batch._replace(advantages=ADVANTAGES)
    output = policy(batch.inputs)._replace(logprobs=(batch.logprobs + math.log(ratio)).requires_grad_())
    return output, batch, state


def surrogate(name: str, logprobs: Tensor, ratio: float, advantages: Tensor) -> Tensor:
    """Of each action, by its definition; the clip of 0.2 is the ratio's own."""
    if name == "cispo":
        return -min(ratio, 1.2) * logprobs * advantages
    if name not in RATIO:
        return -logprobs * advantages
    kept = min(max(ratio, 0.8), 1.2) if name in CLIPPED else ratio
    return -torch.minimum(ratio * advantages, kept * advantages)


def test_all_but_two_of_the_methods_that_compare_are_weighed_by_the_loop() -> None:
    assert {kind.name for kind in COMPARING} - {kind.name for kind in WEIGHED} == {"impala", "off_policy"}
    assert {kind.name for kind in methods().values()} - {kind.name for kind in COMPARING} == {
        "clone",
        "discrete_sac",
        "dpo",
        "kto",
        "replay_actor_critic",
        "reward_model",
        "sac",
    }


@pytest.mark.parametrize("kind", WEIGHED)
@pytest.mark.parametrize("ratio", [1.0, 1.1, 1.5, 0.6])
def test_the_surrogate_of_each_action_is_weighed(kind: type[Method], ratio: float) -> None:
    """w A in the place of A, in what is logged and in what is descended; a clip is that of the ratio new / old."""
    method = kind(**SETTINGS.get(kind.name, {}))
    output, batch, state = scored(method, ratio=ratio, importance=IMPORTANCE)
    terms, metrics = method.objective(state)(output, batch)
    without, _ = method.objective(state)(output, batch._replace(importance=None))
    logprobs = output.logprobs.detach()
    expected, plain = (
        surrogate(kind.name, logprobs, ratio, advantages) for advantages in (IMPORTANCE * ADVANTAGES, ADVANTAGES)
    )
    torch.testing.assert_close(metrics["policy_loss"], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close((terms - without).detach(), expected - plain, rtol=0, atol=1e-12)
    slopes = [torch.autograd.grad(x.sum(), output.logprobs, retain_graph=True)[0] for x in (terms, without)]
    ended = torch.zeros_like(ADVANTAGES, dtype=torch.bool)
    if kind.name in CLIPPED:
        ended = (ADVANTAGES > 0) if ratio > 1.2 else (ADVANTAGES < 0) if ratio < 0.8 else ended
    along = (ratio if kind.name in RATIO else min(ratio, 1.2) if kind.name == "cispo" else 1.0) * (~ended).double()
    torch.testing.assert_close(slopes[0] - slopes[1], -(IMPORTANCE - 1.0) * ADVANTAGES * along, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", COMPARING)
def test_without_weights_the_loss_is_the_methods_own_to_the_last_bit(kind: type[Method]) -> None:
    method = kind()
    output, batch, state = scored(method, ratio=1.1, importance=None)
    assert batch.importance is None
    terms, metrics = method.objective(state)(output, batch)
    own, shown = method.loss(output, batch, state)
    assert torch.equal(terms, own)
    assert all(torch.equal(metrics[name], cells) for name, cells in shown.items())
    ones, _ = method.objective(state)(output, batch._replace(importance=torch.ones_like(ADVANTAGES)))
    assert torch.equal(terms, ones)


@pytest.mark.parametrize("kind", COMPARING)
def test_the_objective_logs_movement_and_entropy_of_every_method_that_compares(kind: type[Method]) -> None:
    """At the ratio 1.3: k1 of the old policy's samples is -log 1.3, k3 is 0.3 - log 1.3."""
    method = kind()
    output, batch, state = scored(method, ratio=1.3, importance=None)
    metrics = method.objective(state)(output, batch)[1]
    expected = {
        "ratio_max": 1.3,
        "ratio_error_max": 0.3,
        "ratio_off_fraction": 1.0,
        "ratio_far_fraction": 1.0,
        "approx_kl_k1": -math.log(1.3),
        "approx_kl_k3": 0.3 - math.log(1.3),
    }
    for name, value in expected.items():
        torch.testing.assert_close(metrics[name], torch.full_like(ADVANTAGES, value), rtol=0, atol=1e-12)
    assert torch.equal(metrics["entropy"], output.entropy)
    assert not any(cells.requires_grad for cells in metrics.values())
    own = method.loss(output, batch, state)[1]
    # That of rows it says itself.
    assert {"policy_loss"} <= set(own) <= {"policy_loss", "value_loss", *(["clip_fraction"] if kind is GSPO else [])}
    clips = kind.name in {*CLIPPED, "cispo"}
    assert set(metrics) == {*own, *expected, "entropy"} | ({"clip_fraction"} if clips else set())


@pytest.mark.parametrize("kind", [kind for kind in COMPARING if kind.name in CLIPPED and kind is not GSPO])
@pytest.mark.parametrize(
    ("clip", "ratio", "clipped"), [(0.2, 1.19, 0), (0.2, 1.21, 1), (0.2, 0.79, 1), (0.3, 1.21, 0), (0.1, 1.19, 1)]
)
def test_the_clipped_share_is_what_lies_beyond_the_methods_clip(
    kind: type[Method], clip: float, ratio: float, clipped: int
) -> None:
    method = kind(clip=clip)
    output, batch, state = scored(method, ratio=ratio, importance=None)
    metrics = method.objective(state)(output, batch)[1]
    assert metrics["clip_fraction"].flatten().tolist() == [clipped] * 4


def test_cloning_is_compared_with_nothing() -> None:
    output, batch, state = scored(BehaviourCloning(), ratio=1.3, importance=None)
    terms, metrics = BehaviourCloning().objective(state)(output, batch)
    assert set(metrics) == {"entropy", "negative_log_likelihood"}
    assert torch.equal(terms, -output.logprobs)


@pytest.mark.parametrize("kind", [*COMPARING, BehaviourCloning])
def test_every_output_stays_in_the_graph(kind: type[Method]) -> None:
    """With a gradient of 0 where the method has no use for it."""
    policy, method = TabularPolicy(4, 3), kind()
    _, batch, state = scored(method, ratio=1.0, importance=None)
    output = policy(batch.inputs)
    terms, _ = method.objective(state)(output, batch)
    gradients = torch.autograd.grad(terms.sum(), [output.logprobs, output.values], allow_unused=True)
    assert all(gradient is not None for gradient in gradients)
    own = method.loss(output, batch, state)[0]
    for ours, alone in zip(
        gradients, torch.autograd.grad(own.sum(), [output.logprobs, output.values], allow_unused=True), strict=True
    ):
        assert torch.equal(ours, torch.zeros_like(ours) if alone is None else alone)


SEEN: list[Batch] = []


def watched(kind: type[Method]) -> type[Method]:
    """The method, whose batches are kept."""

    @dataclass(frozen=True, kw_only=True)
    class Watched(kind):
        def loss(
            self, output: PolicyOutput, batch: Batch, state: dict[str, Tensor]
        ) -> tuple[Tensor, dict[str, Tensor]]:
            SEEN.append(batch)
            return super().loss(output, batch, state)

    return Watched


@dataclass(frozen=True, kw_only=True)
class Settings:
    lag: int = 1


@pytest.mark.parametrize("kind", [PPO, A2C, Impala, OffPolicy])
def test_what_lagging_actors_did_is_weighed_once(kind: type[Method], tmp_path: Path) -> None:
    """By the loop for a method that does not correct for them, by the method itself else; the first act of all is the
    learner's own.
    """
    SEEN.clear()
    envs = make_envs("CartPole-v1", 3)
    policy = ControlPolicy(spaces_of(envs), PolicyConfig(), seed=0).double()
    collecting = collect.CollectSteps(num_envs=3, steps=20)
    actors = collect.EnvCollector(envs, config=collecting, gamma=0.9, seed=0, accelerator=CPU)
    train_phase(
        policy,
        Given(actors, lambda policy: Evaluation({"eval_return_mean": 0.0}, []), lag=1),
        watched(kind)(),
        optimize.Optimize(epochs=1, whiten="none", learning_rate=0.05, importance_cap=1.05),
        duration=Duration(updates=2),
        phase=Run(tmp_path / "run", Settings(), resume=False, accelerator=CPU, extendable=set()).phase("only"),
        seed=0,
    )
    first, second = SEEN
    assert first.importance is None
    ratios = torch.exp(second.logprobs - second.behaviour_logprobs)
    assert float(ratios.max()) > 1.05
    rows = [row for row in read_lines(tmp_path / "run" / "only" / "metrics.jsonl") if "loss" in row]
    assert ["mismatch" in row for row in rows] == [False, True]
    assert ["importance_max" in row for row in rows] == [False, not kind.corrects_lag]
    if kind.corrects_lag:
        assert second.importance is None
        return
    torch.testing.assert_close(second.importance, ratios.clamp(max=1.05), rtol=0, atol=1e-12)
    assert rows[1]["importance_max"] == pytest.approx(float(ratios.max()), rel=1e-12)


RATIOS = [4.0, 0.5, 1.0, 1.5, 3.0, 0.25, 1.0, 0.8]


def of_another() -> Rollout:
    """A row of eight actions and one of two, which its actor took with other probabilities; garbage in the padding."""
    rollout = make_rollout(TabularPolicy(4, 3), rows=2, steps=8)
    mask = torch.arange(8) < torch.tensor([[8], [2]])
    logs = torch.tensor([RATIOS, [0.5, 2.5, *[1e9] * 6]], dtype=torch.float64).log()
    cells = -torch.rand(2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return replace(rollout, mask=mask, logprobs=cells + logs, behaviour_logprobs=cells)


@pytest.mark.parametrize("cap", [2.0, 3.5])
def test_weights_are_the_ratio_learner_over_actor_cut_at_the_cap(cap: float) -> None:
    rollout, metrics = acting.weighed(of_another(), CPU, cap=cap)
    expected = [[min(ratio, cap) for ratio in RATIOS], [0.5, min(2.5, cap), *[0.0] * 6]]
    torch.testing.assert_close(rollout.importance, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    beyond = sum(ratio > cap for ratio in (*RATIOS, 0.5, 2.5))
    assert metrics["importance_max"] == pytest.approx(4.0, abs=1e-12)
    assert metrics["importance_cut_fraction"] == pytest.approx(beyond / 10, abs=1e-12)


def test_between_a_floor_and_the_cap_ratios_are_weights_and_elsewhere_nothing_counts() -> None:
    rollout, metrics = acting.weighed(of_another(), CPU, cap=2.0, floor=0.8)
    kept = [[ratio if 0.8 <= ratio <= 2.0 else 0.0 for ratio in RATIOS], [0.0] * 8]
    torch.testing.assert_close(rollout.importance, torch.tensor(kept, dtype=torch.float64), rtol=0, atol=1e-12)
    outside = sum(not 0.8 <= ratio <= 2.0 for ratio in (*RATIOS, 0.5, 2.5))
    assert metrics["importance_cut_fraction"] == pytest.approx(outside / 10, abs=1e-12)


def test_the_difference_between_actor_and_learner_is_logged_raw_and_by_depth() -> None:
    """|log ratio|, before any cut; a row of eight has two actions in each quarter, a row of two one in the first and
    one in the third. k3 of the actor's samples is x - 1 - log x with x the ratio."""
    _, metrics = acting.weighed(of_another(), CPU, cap=2.0)
    distances = [abs(math.log(ratio)) for ratio in RATIOS]
    short = [abs(math.log(0.5)), abs(math.log(2.5))]
    everything = [*RATIOS, 0.5, 2.5]
    assert metrics["mismatch"] == pytest.approx(sum(distances + short) / 10, abs=1e-12)
    assert metrics["mismatch_max"] == pytest.approx(math.log(4.0), abs=1e-12)
    assert metrics["mismatch_kl_k3"] == pytest.approx(sum(x - 1 - math.log(x) for x in everything) / 10, abs=1e-12)
    quarters = [
        (distances[0] + distances[1] + short[0]) / 3,
        (distances[2] + distances[3]) / 2,
        (distances[4] + distances[5] + short[1]) / 3,
        (distances[6] + distances[7]) / 2,
    ]
    for i, mean in enumerate(quarters, start=1):
        assert metrics[f"mismatch_quarter_{i}"] == pytest.approx(mean, abs=1e-12)


def test_a_learner_that_acted_itself_is_weighed_by_nothing() -> None:
    rollout = make_rollout(TabularPolicy(4, 3), rows=5, steps=4)
    same, metrics = acting.weighed(rollout, CPU, cap=2.0)
    assert same is rollout
    assert metrics == {}


def test_only_actions_count_in_whether_another_acted() -> None:
    rollout = make_rollout(TabularPolicy(4, 3), rows=5, steps=4)
    assert not bool(rollout.mask.all())
    garbage = replace(rollout, behaviour_logprobs=rollout.logprobs + 7.0 * ~rollout.mask)
    assert acting.weighed(garbage, CPU, cap=2.0) == (garbage, {})


def shifted(shift: float) -> dict[str, float]:
    """What is logged where an actor differs from the learner by so many nats at every action."""
    rollout = make_rollout(TabularPolicy(4, 3), rows=5, steps=4)
    return acting.weighed(replace(rollout, behaviour_logprobs=rollout.logprobs - shift), CPU, cap=2.0)[1]


@pytest.mark.parametrize(
    ("rounding", "precision", "most"), [(0.01, "no", 0.01), (0.2, "bf16", 0.2), (0.01, "bf16", 0.1)]
)
def test_a_difference_that_no_rounding_explains_is_an_error(rounding: float, precision: str, most: float) -> None:
    acting.require_same_policy(shifted(0.99 * most), rounding=rounding, mixed_precision=precision)
    with pytest.raises(RuntimeError, match=f"at most {most}. Likely causes: an engine that holds other weights"):
        acting.require_same_policy(shifted(1.01 * most), rounding=rounding, mixed_precision=precision)
