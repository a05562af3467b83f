"""DPO, KTO and reward models on a policy whose probabilities can be written down: their losses and gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf import optimize
from rlhf.algorithms.base import Method
from rlhf.algorithms.bradley_terry import BradleyTerry
from rlhf.algorithms.dpo import DPO
from rlhf.algorithms.kto import KTO
from rlhf.budget import filler_of
from rlhf.errors import InputError
from rlhf.loop import framed
from rlhf.rollout import Batch, Rollout
from tests.algorithms.compared_rows import compared, labelled
from tests.learners import learner_of
from tests.tabular import TabularPolicy

CPU = Accelerator(cpu=True)


def policy_and_pairs() -> tuple[TabularPolicy, Rollout]:
    policy = TabularPolicy(4, 3)
    return policy, compared(policy)


def batch_of(method: Method, policy: TabularPolicy, rollout: Rollout) -> Batch:
    return framed(method, policy, rollout, method.estimate(rollout, {})[0])


def row_logprobs(policy: TabularPolicy, rollout: Rollout, row: int) -> Tensor:
    """log pi of a row, action by action, from the table."""
    table = torch.log_softmax(policy.logits, dim=-1)
    states, actions = rollout.inputs["states"][row], rollout.inputs["actions"][row]
    return torch.stack([table[states[t], actions[t]] for t in range(int(rollout.mask[row].sum()))])


def log_ratio(policy: TabularPolicy, rollout: Rollout, row: int) -> Tensor:
    own = row_logprobs(policy, rollout, row)
    return (own - rollout.ref_logprobs[row, : len(own)]).sum()  # type: ignore[index]


def number(policy: TabularPolicy, rollout: Rollout, row: int) -> float:
    return float(log_ratio(policy, rollout, row).detach())


def sides(rollout: Rollout, pair: int) -> tuple[int, int]:
    """Rows of the chosen and of the rejected one."""
    one, other = 2 * pair, 2 * pair + 1
    return (one, other) if float(rollout.rewards[one].sum()) > 0 else (other, one)


def gradient_of(method: Method, policy: TabularPolicy, rollout: Rollout, *, micro_batch_cost: int = 1000) -> dict:
    batch = batch_of(method, policy, rollout)
    metrics = optimize.gradient(
        policy, batch, filler_of(batch), method.objective({}), accelerator=CPU, micro_batch_cost=micro_batch_cost
    )
    gradients = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    return {"metrics": metrics, **gradients}


def test_dpo_gradient_is_that_of_the_paper() -> None:
    """-beta sigmoid(-margin) (grad log pi(chosen) - grad log pi(rejected)), the mean over pairs (section 4)."""
    policy, rollout = policy_and_pairs()
    found = gradient_of(DPO(beta=0.4), policy, rollout)
    expected = torch.zeros_like(policy.logits)
    for pair in range(4):
        chosen, rejected = sides(rollout, pair)
        margin = 0.4 * (number(policy, rollout, chosen) - number(policy, rollout, rejected))
        difference = row_logprobs(policy, rollout, chosen).sum() - row_logprobs(policy, rollout, rejected).sum()
        (direction,) = torch.autograd.grad(difference, policy.logits)
        expected -= 0.4 / (1 + math.exp(margin)) * direction / 4
    torch.testing.assert_close(found["logits"], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        ({}, lambda h: math.log(1 + math.exp(-0.4 * h))),
        (
            {"label_smoothing": 0.2},
            lambda h: 0.8 * math.log(1 + math.exp(-0.4 * h)) + 0.2 * math.log(1 + math.exp(0.4 * h)),
        ),
        ({"loss_type": "ipo"}, lambda h: (h - 1 / 0.8) ** 2),
        ({"loss_type": "hinge"}, lambda h: max(0.0, 1 - 0.4 * h)),
    ],
    ids=["sigmoid", "smoothed", "ipo", "hinge"],
)
def test_dpo_losses_of_the_log_ratios(settings: dict, loss) -> None:
    policy, rollout = policy_and_pairs()
    metrics = gradient_of(DPO(beta=0.4, **settings), policy, rollout)["metrics"]
    pairs = [sides(rollout, pair) for pair in range(4)]
    ratios = [number(policy, rollout, chosen) - number(policy, rollout, rejected) for chosen, rejected in pairs]
    assert metrics["preference_loss"] == pytest.approx(sum(map(loss, ratios)) / 4, rel=1e-12)
    assert metrics["margin"] == pytest.approx(0.4 * sum(ratios) / 4, rel=1e-12)
    assert metrics["accuracy"] == sum(ratio > 0 for ratio in ratios) / 4
    assert metrics["chosen_score"] - metrics["rejected_score"] == pytest.approx(metrics["margin"], rel=1e-12)


def test_dpo_of_the_reference_itself_is_log_two() -> None:
    policy, rollout = policy_and_pairs()
    found = gradient_of(DPO(), policy, replace(rollout, ref_logprobs=rollout.logprobs))["metrics"]
    assert found["preference_loss"] == pytest.approx(math.log(2), abs=1e-12)
    assert found["accuracy"] == 0.5


METHODS = {
    "dpo": DPO(),
    "ipo": DPO(loss_type="ipo"),
    "reward model": BradleyTerry(margin_coef=0.5, centring_coef=0.1),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("cost", [1, 9, 15])
def test_pairs_stay_together_in_micro_batches(method: Method, cost: int) -> None:
    policy, rollout = policy_and_pairs()
    whole = gradient_of(method, policy, rollout)
    parts = gradient_of(method, policy, rollout, micro_batch_cost=cost)
    for name in ("logits", "critic"):
        torch.testing.assert_close(parts[name], whole[name], rtol=0, atol=1e-12)
    assert parts["metrics"]["preference_loss"] == pytest.approx(whole["metrics"]["preference_loss"], rel=1e-12)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_order_of_rows_plays_no_part(method: Method) -> None:
    policy, rollout = policy_and_pairs()
    moved = rollout.rows(torch.tensor([5, 0, 7, 2, 3, 6, 1, 4]))
    one, other = gradient_of(method, policy, rollout), gradient_of(method, policy, moved)
    torch.testing.assert_close(other["logits"], one["logits"], rtol=0, atol=1e-12)
    torch.testing.assert_close(other["critic"], one["critic"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_garbage_outside_the_rows_reaches_nothing(method: Method) -> None:
    policy, rollout = policy_and_pairs()
    batch = batch_of(method, policy, rollout)
    output = policy(batch.inputs)
    terms, _ = method.loss(output, batch, {})
    broken = type(output)(*(tensor.masked_fill(~batch.mask, math.nan) for tensor in output))
    again, _ = method.loss(broken, batch, {})
    inside = batch.units > 0
    assert torch.equal(again[inside], terms[inside])


def test_reward_model_loss_and_gradient_of_its_scores() -> None:
    """d/ds of log(1 + e^-(m - c a)) + k (sum)^2, by hand for the score of each row's end, the mean over pairs."""
    policy, rollout = policy_and_pairs()
    found = gradient_of(BradleyTerry(margin_coef=0.5, centring_coef=0.1), policy, rollout)
    expected, losses = torch.zeros(4, dtype=torch.float64), []
    for pair in range(4):
        ends = [rollout.inputs["states"][row, int(rollout.mask[row].sum()) - 1] for row in sides(rollout, pair)]
        better, worse = (float(policy.critic.detach()[state]) for state in ends)
        margin = better - worse - 0.5 * (pair + 1)
        losses.append(math.log(1 + math.exp(-margin)))
        slope, centring = -1 / (1 + math.exp(margin)), 0.2 * (better + worse)
        expected[ends[0]] += (slope + centring) / 4
        expected[ends[1]] += (-slope + centring) / 4
    torch.testing.assert_close(found["critic"], expected, rtol=0, atol=1e-12)
    assert found["metrics"]["preference_loss"] == pytest.approx(sum(losses) / 4, rel=1e-12)
    assert not found["logits"].any()


def test_kto_step_is_that_of_its_loss() -> None:
    """One step of SGD on the labelled rows, the KL from the others and without a gradient."""
    policy = TabularPolicy(4, 3)
    rollout = labelled(policy)
    others = [number(policy, rollout, row) for row in (1, 3, 5, 7)]
    kl = max(0.0, sum(others) / 4)
    losses = []
    for row, sign in ((0, 1), (2, -1), (4, 1), (6, -1)):
        weight = 1.0 if sign > 0 else 0.5
        losses.append(weight * (1 - torch.sigmoid(sign * 0.4 * (log_ratio(policy, rollout, row) - kl))))
    (expected,) = torch.autograd.grad(torch.stack(losses).mean(), policy.logits)
    method = KTO(beta=0.4, undesirable_weight=0.5)
    settings = optimize.Optimize(epochs=1, whiten="none", max_gradient_norm=0.0)
    before = policy.logits.detach().clone()
    optimizer = torch.optim.SGD([policy.logits], lr=1.0)
    learner = learner_of(policy, replace(settings, learning_rate=1.0), optimizer=optimizer)
    metrics, _ = method.update(learner, rollout, batch_of(method, policy, rollout), {})
    torch.testing.assert_close(before - policy.logits.detach(), expected, rtol=0, atol=1e-12)
    assert metrics["kl_to_reference"] == pytest.approx(kl, abs=1e-12)
    assert metrics["preference_loss"] == pytest.approx(float(torch.stack(losses).mean().detach()), rel=1e-12)


def test_kto_measures_no_negative_kl() -> None:
    policy = TabularPolicy(4, 3)
    rollout = labelled(policy)
    far = replace(rollout, ref_logprobs=rollout.logprobs + 5.0)
    method = KTO()
    learner = learner_of(policy, optimize.Optimize(epochs=1, whiten="none"))
    metrics, _ = method.update(learner, far, batch_of(method, policy, far), {})
    assert metrics["kl_to_reference"] == 0.0


@pytest.mark.parametrize("kind", [DPO, BradleyTerry])
@pytest.mark.parametrize(
    "change",
    [
        {"groups": None},
        {"groups": torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])},
        {"groups": torch.arange(8)},
        {"rewards": torch.zeros(8, 5, dtype=torch.float64)},
        {"rewards": torch.ones(8, 5, dtype=torch.float64)},
    ],
    ids=["no groups", "threes", "alone", "nothing paid", "both chosen"],
)
def test_rows_that_are_no_pairs_are_refused(kind: type[Method], change: dict) -> None:
    _, rollout = policy_and_pairs()
    with pytest.raises(InputError, match="not in pairs: each group needs two rows"):
        kind().estimate(replace(rollout, **change), {})


def test_settings_that_make_no_method_are_refused() -> None:
    with pytest.raises(InputError, match=r"label_smoothing is 0.5; from 0.5 on"):
        DPO(label_smoothing=0.5)
    with pytest.raises(InputError, match=r"label_smoothing is 0.1, which ipo does not know"):
        DPO(label_smoothing=0.1, loss_type="ipo")
    with pytest.raises(InputError, match="both 0, so nothing would be learned"):
        KTO(desirable_weight=0.0, undesirable_weight=0.0)
