"""Micro-batching changes nothing but speed; minibatches, whitening, early stop and finiteness as documented."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlhf import optimize
from rlhf.algorithms import a2c, ppo_kl, td_lambda, trpo
from rlhf.algorithms.actor_critic import Critic, stepping_only
from rlhf.algorithms.base import Method
from rlhf.budget import even_micro_batches, filler_of, micro_batches
from rlhf.errors import InputError, NonFiniteError
from rlhf.rollout import Batch, PolicyOutput, single_steps
from tests.batches import make_batch, make_rollout, ppo_loss
from tests.cramped import Cramped
from tests.documented import ROOT
from tests.learners import learner_of
from tests.tabular import TabularPolicy


def gradients(policy: nn.Module, batch: Batch, *, cost: int) -> list[Tensor]:
    policy.zero_grad()
    optimize.gradient(
        policy, batch, batch.rows(torch.tensor([0])), ppo_loss(), accelerator=Accelerator(), micro_batch_cost=cost
    )
    return [parameter.grad.clone() for parameter in policy.parameters()]


@pytest.mark.parametrize("cost", [1, 3, 7, 20])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_gradient_does_not_depend_on_micro_batches(cost: int, dtype: torch.dtype, tolerance: float) -> None:
    policy = TabularPolicy(4, 3, dtype=dtype)
    batch = make_batch(policy, rows=9, steps=5)
    whole, cut = gradients(policy, batch, cost=10_000), gradients(policy, batch, cost=cost)
    difference = torch.cat([(a - b).flatten() for a, b in zip(whole, cut, strict=True)]).norm()
    assert difference <= tolerance * torch.cat([a.flatten() for a in whole]).norm()


def test_loss_is_normalised_over_all_micro_batches_together() -> None:
    """Terms [1, 2] and [3, 4, 5, 6, 7] average to 4.0, not to the mean of their means, 3.25."""
    policy = TabularPolicy(1, 1)
    cells = torch.tensor([[1.0, 2.0, 0, 0, 0], [3.0, 4.0, 5.0, 6.0, 7.0]], dtype=torch.float64)
    batch = make_batch(policy, rows=2, steps=5)._replace(mask=cells > 0)
    units = batch.mask.double()
    batch = batch._replace(weights=units, units=units, advantages=cells, costs=torch.tensor([2, 5]))

    def loss(output: PolicyOutput, rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return rows.advantages + 0.0 * output.logprobs + 0.0 * output.values, {}

    metrics = optimize.gradient(
        policy, batch, batch.rows(torch.tensor([0])), loss, accelerator=Accelerator(), micro_batch_cost=5
    )
    assert metrics["loss"] == pytest.approx(4.0, abs=1e-12)


def test_micro_batches_keep_to_the_budget_and_lose_no_row() -> None:
    parts = micro_batches(torch.tensor([5, 2, 2, 9, 1, 1]), 6)
    assert [part.tolist() for part in parts] == [[0], [1, 2], [3], [4, 5]]
    assert micro_batches(torch.zeros(0, dtype=torch.int64), 6) == []


def run_update(policy: nn.Module, batch: Batch, config: optimize.Optimize, *, seed: int = 0) -> dict[str, float]:
    return optimize.update(learner_of(policy, config, seed=seed), batch, ppo_loss())


@pytest.mark.parametrize("blocks", [None, [7, 7, 7, 2, 4, 4, 3, 9, 9]])
def test_the_costliest_micro_batch_is_the_first(blocks: list[int] | None) -> None:
    policy = TabularPolicy(4, 3)
    batch = make_batch(policy, rows=9, steps=5)
    batch = batch._replace(costs=torch.tensor([1, 5, 2, 2, 9, 1, 4, 3, 3]))
    if blocks is not None:
        batch = batch._replace(blocks=torch.tensor(blocks))
    accelerator = learner_of(policy, optimize.Optimize()).accelerator
    parts = even_micro_batches(batch, filler_of(batch), accelerator=accelerator, micro_batch_cost=10)
    given = [part.sample_ids.sub(100).tolist() for part in parts]
    # Among equals the order stays, and a block counts by its costliest row.
    assert given == ([[4], [1, 6], [7, 8, 2, 3], [0, 5]] if blocks is None else [[4, 5], [0, 1, 2], [6, 7, 8], [3]])


@pytest.mark.parametrize("whiten", ["none", "minibatch", "batch"])
def test_update_does_not_depend_on_micro_batches(whiten: str) -> None:
    changes = []
    for cost in (3, 10_000):
        policy = TabularPolicy(4, 3)
        batch = make_batch(policy, rows=9, steps=5)
        config = optimize.Optimize(epochs=3, minibatches=2, micro_batch_cost=cost, whiten=whiten, learning_rate=0.01)
        start = policy.logits.detach().clone()
        run_update(policy, batch, config)
        changes.append(policy.logits.detach() - start)
    assert changes[0].norm() > 1e-3
    assert (changes[0] - changes[1]).norm() <= 1e-9 * changes[0].norm()


def test_update_does_not_depend_on_the_order_of_rows() -> None:
    changes = []
    for order in (torch.arange(9), torch.arange(9).flip(0)):
        policy = TabularPolicy(4, 3)
        batch = make_batch(policy, rows=9, steps=5).rows(order)
        run_update(policy, batch, optimize.Optimize(epochs=2, minibatches=3, learning_rate=0.01))
        changes.append(policy.logits.detach().clone())
    torch.testing.assert_close(changes[0], changes[1], rtol=0, atol=1e-12)


def test_minibatches_of_an_epoch_hold_every_row_once() -> None:
    policy = TabularPolicy(4, 3)
    batch = make_batch(policy, rows=9, steps=5)
    seen: list[int] = []

    def loss(output: PolicyOutput, rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        seen.extend(rows.sample_ids.tolist())
        return output.logprobs + 0.0 * output.values, {}

    config = optimize.Optimize(epochs=2, minibatches=4)
    optimize.update(learner_of(policy, config), batch, loss)
    assert sorted(seen[:9]) == sorted(seen[9:]) == batch.sample_ids.sort().values.tolist()
    assert seen[:9] != seen[9:]


def test_minibatches_without_any_action_take_no_step() -> None:
    """As where every sample of a minibatch lacks a score: not even Adam's momentum may move the weights."""
    changes = []
    for config in (
        optimize.Optimize(epochs=3, minibatches=9, learning_rate=0.01),
        optimize.Optimize(learning_rate=0.01),
    ):
        policy = TabularPolicy(4, 3)
        start = policy.logits.detach().clone()
        batch = make_batch(policy, rows=9, steps=5)
        only = torch.zeros_like(batch.mask)
        only[4] = batch.mask[4]
        batch = batch._replace(mask=only, weights=batch.weights * only, units=batch.units * only)
        metrics = run_update(policy, batch, replace(config, epochs=3))
        assert metrics["gradient_steps"] == 3
        assert all(abs(value) < 1e3 for value in metrics.values())
        changes.append(policy.logits.detach() - start)
    torch.testing.assert_close(changes[0], changes[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("minibatches", [1, 3])
def test_rows_without_an_action_pass_through_no_network_and_leave_minibatches_even(minibatches: int) -> None:
    policy = TabularPolicy(4, 3)
    batch = single_steps(make_batch(policy, rows=9, steps=5))
    acted, scored = int(batch.mask.sum()), []
    assert acted < 45
    policy.register_forward_hook(lambda _, inputs, __: scored.append(inputs[0]["states"].shape[0]))
    run_update(policy, batch, optimize.Optimize(epochs=2, minibatches=minibatches))
    assert sum(scored) == 2 * acted
    assert max(scored) - min(scored) <= 1


def test_whitening_leaves_value_targets_alone() -> None:
    policy = TabularPolicy(4, 3)
    batch = make_batch(policy, rows=9, steps=5)
    targets = []

    def loss(output: PolicyOutput, rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        targets.append((rows.returns, rows.advantages, rows.mask))
        return output.logprobs + output.values, {}

    config = optimize.Optimize(epochs=1, whiten="batch")
    optimize.update(learner_of(policy, config), batch, loss)
    returns, advantages, mask = targets[0]
    assert sorted(returns.flatten().tolist()) == sorted(batch.returns.flatten().tolist())
    assert float(advantages[mask].mean()) == pytest.approx(0.0, abs=1e-9)
    assert float(advantages[mask].var(unbiased=False)) == pytest.approx(1.0, abs=1e-6)


def test_update_stops_before_the_step_that_exceeds_the_target_kl() -> None:
    config = optimize.Optimize(epochs=50, learning_rate=0.05, target_kl=0.02, max_gradient_norm=0.0)
    policy = TabularPolicy(4, 3)
    metrics = run_update(policy, make_batch(policy, rows=9, steps=5), config)
    assert 1 <= metrics["gradient_steps"] < 50
    free = TabularPolicy(4, 3)
    assert run_update(free, make_batch(free, rows=9, steps=5), replace(config, target_kl=0.0))["gradient_steps"] == 50


def test_gradient_norm_is_logged_before_and_applied_after_clipping() -> None:
    """One SGD-like reading of the step: with eps huge AdamW moves by lr * g / eps, so the step shows the clipped g."""
    steps = []
    for limit in (0.0, 1e-3):
        policy = TabularPolicy(4, 3)
        start = torch.cat([p.detach().flatten().clone() for p in policy.parameters()])
        config = optimize.Optimize(epochs=1, max_gradient_norm=limit, adam_eps=1e9, learning_rate=1e9)
        metrics = run_update(policy, make_batch(policy, rows=9, steps=5), config)
        steps.append(torch.cat([p.detach().flatten() for p in policy.parameters()]) - start)
        assert metrics["gradient_norm"] == pytest.approx(float(steps[0].norm()), rel=1e-6)
    assert float(steps[1].norm()) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("part", ["critic", "logits", None])
def test_a_gradient_that_takes_no_step_is_not_in_the_norm_that_is_clipped(part: str | None) -> None:
    """As above: the step of the part that steps is its own gradient, and is as long as the limit says."""
    moved = []
    for limit in (0.0, 1e-3):
        policy = TabularPolicy(4, 3)
        chosen = [] if part is None else [getattr(policy, part)]
        start = [p.detach().clone() for p in chosen]
        config = optimize.Optimize(epochs=1, max_gradient_norm=limit, adam_eps=1e9, learning_rate=1e9)
        learner = learner_of(policy, config)
        with stepping_only(learner.optimizer, chosen):
            metrics = optimize.update(learner, make_batch(policy, rows=9, steps=5), ppo_loss())
        moved.append(sum(float((p.detach() - q).norm()) for p, q in zip(chosen, start, strict=True)))
        assert metrics["gradient_norm"] == pytest.approx(moved[0], rel=1e-6)
        assert all(p.grad is None for p in policy.parameters())
    assert moved[1] == pytest.approx(0.0 if part is None else 1e-3, rel=1e-3)


@pytest.mark.parametrize("field", ["logits", "critic"])
def test_non_finite_output_stops_before_the_step_and_names_tensor_and_samples(field: str) -> None:
    policy = TabularPolicy(4, 3)
    batch = make_batch(policy, rows=9, steps=5)
    with torch.no_grad():
        getattr(policy, field)[0] = torch.nan
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    expected = "logprobs" if field == "logits" else "values"
    with pytest.raises(NonFiniteError, match=rf"{expected} is not finite in samples \[\d"):
        run_update(policy, batch, optimize.Optimize())
    for name, tensor in policy.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)


def test_non_finite_gradient_stops_before_the_step() -> None:
    policy = TabularPolicy(4, 3)
    batch = make_batch(policy, rows=9, steps=5)

    def loss(output: PolicyOutput, rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        # sqrt has an infinite slope at 0, where its value is finite.
        return (output.values * 0.0).sqrt() + output.logprobs, {}

    config = optimize.Optimize()
    before = policy.logits.detach().clone()
    with pytest.raises(NonFiniteError, match="gradient"):
        optimize.update(learner_of(policy, config), batch, loss)
    assert torch.equal(policy.logits.detach(), before)


def test_acting_and_scoring_that_disagree_are_an_error_that_names_causes() -> None:
    policy = TabularPolicy(4, 3)
    batch = make_batch(policy, rows=9, steps=5)
    batch = batch._replace(logprobs=batch.logprobs - 0.01)
    with pytest.raises(RuntimeError, match="dropout"):
        run_update(policy, batch, optimize.Optimize())


@pytest.mark.parametrize(("precision", "difference"), [("no", 0.01), ("bf16", 0.5)])
def test_a_few_actions_that_disagree_end_no_run_and_a_row_does(precision: str, difference: float) -> None:
    """A near tie of a router is one action, and less than a twentieth of them passes; a whole row does not."""
    policy = TabularPolicy(4, 3)
    batch = make_batch(policy, rows=12, steps=5)
    accelerator = SimpleNamespace(num_processes=1, device=torch.device("cpu"), mixed_precision=precision)
    first, actions = batch.logprobs.clone(), int(batch.mask.sum())
    assert actions > 20
    first[0, 0] -= difference
    row = batch.logprobs - difference * (batch.costs == 5).unsqueeze(1)
    settings = optimize.Optimize(epochs=1, learning_rate=1e-9)
    metrics = optimize.update(
        learner_of(policy, settings, accelerator=accelerator), batch._replace(logprobs=first), ppo_loss()
    )
    assert metrics["ratio_error_max"] == pytest.approx(math.expm1(difference), rel=1e-9)
    assert metrics["ratio_off_fraction"] == pytest.approx(1 / actions)
    with pytest.raises(RuntimeError, match="another probability"):
        optimize.update(learner_of(policy, settings, accelerator=accelerator), batch._replace(logprobs=row), ppo_loss())


def test_rounding_of_bfloat16_is_no_disagreement_there() -> None:
    """There nearly every ratio is more than 1e-3 off 1, and hardly any by 0.2."""
    metrics = {"ratio_error_max": 0.1, "ratio_off_fraction": 0.9, "ratio_far_fraction": 0.0}
    optimize.check_identity(metrics, SimpleNamespace(mixed_precision="bf16"))
    with pytest.raises(RuntimeError, match="90% of the actions"):
        optimize.check_identity(metrics, SimpleNamespace(mixed_precision="no"))


@pytest.mark.parametrize(
    "method",
    [trpo.TRPO(), td_lambda.TDLambda(), a2c.A2C(critic=Critic(epochs=1))],
    ids=["trpo", "traces", "critic first"],
)
def test_updates_of_other_kinds_refuse_acting_and_scoring_that_disagree(method: Method) -> None:
    policy = TabularPolicy(4, 3)
    rollout = make_rollout(policy, rows=9, steps=5)
    rollout = replace(rollout, logprobs=rollout.logprobs - 0.01)
    batch, before = single_steps(method.estimate(rollout, {})[0]), policy.logits.detach().clone()
    with pytest.raises(RuntimeError, match="dropout"):
        method.update(learner_of(policy, optimize.Optimize()), rollout, batch, {})
    assert torch.equal(policy.logits.detach(), before)


def test_on_policy_batch_has_ratio_one_kl_zero_and_nothing_clipped() -> None:
    policy = TabularPolicy(4, 3)
    metrics = run_update(policy, make_batch(policy, rows=9, steps=5), optimize.Optimize(epochs=1))
    assert metrics["ratio_error_max"] <= 1e-12
    assert metrics["approx_kl_k1"] == pytest.approx(0.0, abs=1e-12)
    assert metrics["approx_kl_k3"] == pytest.approx(0.0, abs=1e-12)
    assert metrics["clip_fraction"] == 0.0


def test_learning_rate_falls_linearly_with_progress() -> None:
    policy = TabularPolicy(4, 3)
    config = optimize.Optimize(schedule="linear", learning_rate=0.4)
    batch = make_batch(policy, rows=9, steps=5)
    metrics = optimize.update(learner_of(policy, config, update_index=3, progress=0.75), batch, ppo_loss())
    assert metrics["learning_rate"] == pytest.approx(0.1)


def test_the_critic_may_learn_at_a_rate_of_its_own() -> None:
    """The first step of Adam moves each weight that has a gradient by the rate; both follow the schedule."""
    policy = TabularPolicy(4, 3)
    start = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    config = optimize.Optimize(
        schedule="linear", learning_rate=0.4, critic_learning_rate=0.008, epochs=1, max_gradient_norm=0.0
    )
    batch = make_batch(policy, rows=9, steps=5)
    metrics = optimize.update(learner_of(policy, config, progress=0.5), batch, ppo_loss())
    assert metrics["learning_rate"] == pytest.approx(0.2)
    for name, rate in (("logits", 0.2), ("critic", 0.004)):
        moved = (policy.state_dict()[name] - start[name]).abs()
        assert float(moved.max()) == pytest.approx(rate, rel=1e-3)


def test_single_steps_have_the_gradient_of_whole_rows() -> None:
    """A memoryless policy may be scored step by step: the estimates were formed before."""
    policy = TabularPolicy(4, 3)
    batch = make_batch(policy, rows=9, steps=5)
    for whole, flat in zip(
        gradients(policy, batch, cost=10_000), gradients(policy, single_steps(batch), cost=10_000), strict=True
    ):
        torch.testing.assert_close(whole, flat, rtol=0, atol=1e-12)


def test_learning_rate_rises_over_the_warmup() -> None:
    rates = []
    for update_index in range(5):
        policy = TabularPolicy(4, 3)
        config = optimize.Optimize(learning_rate=0.4, warmup_updates=4, epochs=1)
        learner = learner_of(policy, config, update_index=update_index)
        metrics = optimize.update(learner, make_batch(policy, rows=9, steps=5), ppo_loss())
        rates.append(metrics["learning_rate"])
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])


def test_last_kl_is_that_of_the_last_epoch() -> None:
    """The epochs before it change the average over all steps, not this one; the same steps one epoch longer say so."""
    metrics = []
    for epochs in (1, 2, 3):
        policy = TabularPolicy(4, 3)
        config = optimize.Optimize(epochs=epochs, minibatches=3, learning_rate=0.05)
        metrics.append(run_update(policy, make_batch(policy, rows=9, steps=5), config))
    sums = [n * row["approx_kl_k3"] for n, row in enumerate(metrics, start=1)]
    lasts = [row["approx_kl_k3_last"] for row in metrics]
    assert lasts == pytest.approx([sums[0], sums[1] - sums[0], sums[2] - sums[1]], abs=1e-12)
    assert 0.0 < lasts[0] < lasts[1] < lasts[2]


def test_a_stop_shows_the_kl_that_it_stopped_at() -> None:
    """One step too far: the penalty of PPO-KL, steered by this figure, has to grow and not to shrink."""
    policy = TabularPolicy(4, 3)
    config = optimize.Optimize(epochs=20, learning_rate=0.5, target_kl=0.03)
    metrics = run_update(policy, make_batch(policy, rows=9, steps=5), config)
    assert metrics["gradient_steps"] == 1
    assert metrics["approx_kl_k3_last"] > 0.03
    state = ppo_kl.PPOKL(penalty=3.0).initial_state()
    assert float(ppo_kl.PPOKL(penalty=3.0).adapt(state, metrics)["penalty"]) > 3.0


def test_a_target_for_a_kl_that_is_not_measured_is_refused() -> None:
    policy = TabularPolicy(4, 3)

    def loss(output: PolicyOutput, rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return output.logprobs + 0.0 * output.values, {}

    with pytest.raises(InputError, match="measures no KL"):
        optimize.update(learner_of(policy, optimize.Optimize(target_kl=0.1)), make_batch(policy, rows=9, steps=5), loss)


@pytest.mark.parametrize("in_backward", [False, True])
def test_where_memory_ends_rows_are_cut_and_the_gradient_is_the_same(in_backward: bool) -> None:
    roomy, cramped = Cramped(99), Cramped(2, in_backward=in_backward)
    cramped.load_state_dict(roomy.state_dict())
    batch = make_batch(roomy, rows=9, steps=5)
    roomy.passes.clear()
    whole, cut = gradients(roomy, batch, cost=10_000), gradients(cramped, batch, cost=10_000)
    difference = torch.cat([(a - b).flatten() for a, b in zip(whole, cut, strict=True)]).norm()
    assert difference <= 1e-12 * torch.cat([a.flatten() for a in whole]).norm()
    assert roomy.passes == [9]
    fitting = next(i for i, rows in enumerate(cramped.passes) if sum(cramped.passes[i:]) == 9)
    assert max(cramped.passes[fitting:]) <= 2 < min(cramped.passes[:fitting])
    # It is found out once.
    cramped.passes.clear()
    gradients(cramped, batch, cost=10_000)
    assert max(cramped.passes) <= 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not keep to the limit")
def test_the_gradient_is_the_same_where_the_system_gives_no_more_memory() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "tests.little_memory", "100"], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout
    error, fits = map(float, printed.split())
    assert error <= 1e-12
    assert fits < 64


def test_metrics_say_what_fits_and_are_the_same() -> None:
    roomy, cramped = Cramped(99), Cramped(3)
    cramped.load_state_dict(roomy.state_dict())
    batch = make_batch(roomy, rows=9, steps=5)
    config = optimize.Optimize(epochs=2, minibatches=2)
    whole, cut = (run_update(policy, batch, config) for policy in (roomy, cramped))
    fits = cut.pop("micro_batch_cost")
    assert 1 <= fits < int(batch.costs.sum())
    assert cut == pytest.approx(whole, rel=1e-9, abs=1e-12)
    for name, tensor in roomy.state_dict().items():
        torch.testing.assert_close(cramped.state_dict()[name], tensor, rtol=1e-9, atol=1e-12)


def test_a_row_that_memory_ends_for_alone_ends_the_run() -> None:
    policy = Cramped(0)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        gradients(policy, make_batch(Cramped(99), rows=9, steps=5), cost=10_000)
    assert policy.passes[-1] == 1


def test_other_errors_are_passed_on() -> None:
    policy = Cramped(99)
    policy.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        gradients(policy, make_batch(policy, rows=2, steps=5), cost=10_000)
