from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlhf.algorithms.base import Method
from rlhf.algorithms.choices import methods
from rlhf.algorithms.cispo import CISPO
from rlhf.algorithms.grpo import GRPO
from rlhf.algorithms.gspo import GSPO
from rlhf.core import kl
from rlhf.errors import InputError
from rlhf.rollout import Batch, PolicyOutput, Rollout, batch_of
from tests.algorithms.batches_of_episodes import gradient_of_return
from tests.algorithms.groups_of_episodes import (
    expected_gradient,
    expected_gradient_at_once,
    gradient,
    one_group,
    predicted_gradient,
)
from tests.algorithms.test_enumeration import PROBLEMS, STATE, TinyLm, TinyMdp, our_gradient, rollout_of
from tests.algorithms.test_ppo_kl import distributions
from tests.batches import make_rollout
from tests.tabular import TabularPolicy

DR_GRPO = GRPO(scale="none", average="constant")


def check(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


def group_rollout() -> Rollout:
    """Rows of 2, 2 and 1 actions, scored 1, 5 and 6."""
    rollout = make_rollout(TabularPolicy(4, 3), rows=3, steps=3)
    mask = torch.arange(3) < torch.tensor([2, 2, 1]).unsqueeze(1)
    rewards = torch.tensor([[0.0, 1, 0], [2, 3, 0], [6, 0, 0]], dtype=torch.float64)
    ends = torch.arange(3) == torch.tensor([1, 1, 0]).unsqueeze(1)
    return one_group(replace(rollout, mask=mask, rewards=rewards, dones=ends))


@pytest.mark.parametrize("size", [2, 3])
def test_a_mean_that_includes_the_row_itself_shrinks_the_gradient(size: int) -> None:
    problem = TinyMdp()
    policy = problem.policy()
    ours = expected_gradient_at_once(DR_GRPO, policy, problem, size)["logits"]
    check(ours, (size - 1) / size * gradient_of_return(policy, problem, 1.0))


def group_rollout_of_one_action(*, ref_logprobs: Tensor) -> Batch:
    """Whose advantage is 0."""
    rollout = make_rollout(TabularPolicy(4, 3), rows=1, steps=1)
    return batch_of(replace(rollout, ref_logprobs=ref_logprobs), advantages=torch.zeros_like(ref_logprobs))


def standardised(scores: list[float]) -> list[float]:
    mean, deviation = statistics.fmean(scores), statistics.stdev(scores)
    return [(score - mean) / (deviation + 1e-4) for score in scores]


AVERAGES = {
    "row": lambda scores, lengths: [a / n / len(scores) for a, n in zip(standardised(scores), lengths, strict=True)],
    "action": lambda scores, lengths: [a / sum(lengths) for a in standardised(scores)],
    "constant": lambda scores, lengths: [a / 3 / len(scores) for a in standardised(scores)],
}


@pytest.mark.parametrize(("average", "size"), [("row", 2), ("row", 3), ("action", 2), ("constant", 2)])
def test_the_bias_of_the_standard_deviation_is_the_one_predicted(size: int, average: str) -> None:
    problem = TinyMdp()
    policy = problem.policy()
    method = GRPO(average=average, constant=3.0)
    ours = expected_gradient(method, policy, problem, size)["logits"]
    check(ours, predicted_gradient(policy, problem, size, AVERAGES[average]))
    exact = gradient_of_return(policy, problem, 1.0)
    cosine = torch.nn.functional.cosine_similarity(ours.flatten(), exact.flatten(), dim=0)
    assert 0.5 < float(cosine) < 0.9999


@pytest.mark.parametrize(("average", "expected"), [("action", 3.6), ("row", 13 / 3), ("constant", 3.0)])
def test_losses_are_averaged_as_published(average: str, expected: float) -> None:
    """[1, 3], [2, 4] and [8]: 18 / 5; (2 + 3 + 8) / 3; with the constant 2, (4 + 6 + 8) / 2 / 3."""
    terms = torch.tensor([[1.0, 3, 9], [2, 4, 0], [8, 0, 0]], dtype=torch.float64)
    batch, _ = GRPO(average=average, constant=2.0).estimate(group_rollout(), {})
    assert float((batch.weights * terms).sum() / batch.units.sum()) == pytest.approx(expected, abs=1e-9)


def test_every_action_gets_the_advantage_of_its_row() -> None:
    """Scores 1, 5 and 6 have mean 4 and variance (9 + 1 + 4) / (3 - 1)."""
    batch, _ = GRPO().estimate(group_rollout(), {})
    scale = math.sqrt(14 / 2) + 1e-4
    expected = torch.tensor([[-3.0, -3, 0], [1, 1, 0], [2, 0, 0]], dtype=torch.float64) / scale
    check(batch.advantages, expected)


def test_scores_are_discounted() -> None:
    """0 + 1 / 2, 2 + 3 / 2 and 6."""
    batch, _ = replace(DR_GRPO, gamma=0.5).estimate(group_rollout(), {})
    mean = (0.5 + 3.5 + 6) / 3
    check(batch.advantages[:, 0], torch.tensor([0.5, 3.5, 6.0], dtype=torch.float64) - mean)


def test_rows_without_a_score_are_left_out_of_their_group() -> None:
    rollout = group_rollout()
    mask = rollout.mask.clone()
    mask[1] = False
    batch, _ = DR_GRPO.estimate(replace(rollout, mask=mask), {})
    check(batch.advantages[:, 0], torch.tensor([-2.5, 0.0, 2.5], dtype=torch.float64))
    assert float(batch.units.sum()) == pytest.approx(2.0)


@pytest.mark.parametrize("method", [GRPO(), DR_GRPO])
def test_equal_scores_teach_exactly_nothing(method: GRPO) -> None:
    problem = TinyMdp()
    policy = problem.policy()
    rollout, _ = rollout_of(problem, policy, None)
    same = one_group(rollout.rows(torch.tensor([2, 2, 2])))
    assert not any(part.any() for part in gradient(method, policy, same).values())


@pytest.mark.parametrize(("ratio", "advantage", "expected"), [(1.5, 2.0, -2.4), (0.5, 2.0, -1.0), (0.5, -2.0, 1.6)])
def test_the_surrogate_is_clipped(ratio: float, advantage: float, expected: float) -> None:
    batch, _ = GRPO().estimate(group_rollout(), {})
    batch = batch._replace(advantages=torch.full_like(batch.advantages, advantage))
    cells = torch.zeros_like(batch.logprobs)
    terms, metrics = GRPO().objective({})(PolicyOutput(batch.logprobs + math.log(ratio), cells, cells), batch)
    check(terms, torch.full_like(terms, expected))
    assert bool((metrics["clip_fraction"] == 1.0).all())


def test_the_reference_is_charged_in_the_loss_and_not_in_the_rewards() -> None:
    reference = -2.0 * torch.rand(3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rollout = replace(group_rollout(), ref_logprobs=reference)
    with_kl, without = GRPO(kl_coef=0.7), GRPO()
    batch, metrics = with_kl.estimate(rollout, {})
    check(batch.advantages, without.estimate(rollout, {})[0].advantages)
    assert {"kl_ref_k1", "kl_ref_k3"} <= set(metrics)
    output = PolicyOutput(batch.logprobs + 0.1, batch.values, torch.zeros_like(batch.values))
    charged, free = (method.loss(output, batch, {})[0] for method in (with_kl, without))
    check(charged - free, 0.7 * kl.k3(output.logprobs, batch.ref_logprobs))


@pytest.mark.parametrize(
    ("gap", "expected", "slope"),
    [(-2.0, math.exp(-2) + 1, 1.0), (2.0, math.exp(2) - 3, 1.0), (3.0, 10.0, 0.0), (99.0, 10.0, 0.0)],
)
def test_the_charge_in_the_loss_is_at_most_10_nats_an_action(gap: float, expected: float, slope: float) -> None:
    """As in verl and OpenRLHF: exp(x) - x - 1, x = log ref - log pi, and no gradient beyond."""
    logprobs = torch.full((1, 1), -3.0, dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros_like(logprobs).detach()
    batch = group_rollout_of_one_action(ref_logprobs=logprobs.detach() + gap)
    terms, _ = GRPO(kl_coef=1.0).loss(PolicyOutput(logprobs, zeros, zeros), batch, {})
    check(terms.detach(), torch.full_like(zeros, expected))
    (gradient,) = torch.autograd.grad(terms.sum(), logprobs)
    check(gradient, torch.full_like(zeros, slope * (1.0 - math.exp(min(gap, 5.0)))))


@PROBLEMS
def test_the_charge_in_the_loss_pulls_by_the_kl_from_the_reference(problem: TinyMdp | TinyLm) -> None:
    """With x = ref / pi, grad k3 = grad(x - 1 - log x) = (1 - x) grad log pi at fixed samples. Over actions of pi the
    first part vanishes and the second is -sum_a ref(a) grad log pi(a): k3 estimates KL(pi || ref), but is descended as
    KL(ref || pi), in the states that pi visits."""
    policy, reference = problem.policy(), problem.policy(seed=7)
    inputs, mask, _ = problem.trajectories()
    # Near enough that no action is charged the most there is.
    for near, own in zip(reference.parameters(), policy.parameters(), strict=True):
        near.data.lerp_(own.data, 0.5)
    with torch.no_grad():
        ref = distributions(problem, reference, inputs)
        ref_logprobs = problem.trajectory_logprobs(reference, inputs, mask)
    rollout, probabilities = rollout_of(problem, policy, ref_logprobs)
    parts = [
        our_gradient(policy, one_group(rollout), probabilities, GRPO(average="action", kl_coef=coef), 10_000)
        for coef in (0.7, 0.0)
    ]
    new = distributions(problem, policy, inputs)
    forward, reverse = (ref.exp() * (ref - new)).sum(-1), (new.exp() * (new - ref)).sum(-1)
    visits = probabilities.unsqueeze(1) * mask
    names = [name for name, _ in policy.named_parameters() if name == "logits" or name.startswith("model.")]
    parameters = [policy.get_parameter(name) for name in names]
    pulls = [
        torch.autograd.grad((visits * divergence).sum(), parameters, retain_graph=True)
        for divergence in (forward, reverse)
    ]
    for name, pull in zip(names, pulls[0], strict=True):
        check(parts[0][name] - parts[1][name], 0.7 * pull)
    assert max(float((one - other).abs().max()) for one, other in zip(*pulls, strict=True)) > 1e-2


CHARGING = [kind for kind in methods().values() if "kl_coef" in kind.__dataclass_fields__]


@pytest.mark.parametrize("kind", CHARGING)
def test_all_but_grpo_and_its_kin_charge_the_reference_in_the_rewards(kind: type[Method]) -> None:
    """r - kl_coef (log pi - log ref) of each action, pi the learner at the start of the update and not the actor."""
    method = kind(kl_coef=0.7)
    state = method.initial_state() | STATE
    generator = torch.Generator().manual_seed(3)
    rollout = one_group(make_rollout(TabularPolicy(4, 3), rows=5, steps=4))
    noise, reference = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    rollout = replace(rollout, behaviour_logprobs=rollout.logprobs + 0.3 * noise)
    by_hand = replace(rollout, rewards=rollout.rewards - 0.7 * (rollout.logprobs - reference))
    ours, _ = method.estimate(replace(rollout, ref_logprobs=reference), state)
    charged, free = (kind().estimate(x, state)[0] for x in (by_hand, rollout))
    for cells in ("advantages", "returns", "weights", "units"):
        check(getattr(ours, cells), getattr(free if kind in (GRPO, GSPO, CISPO) else charged, cells))
    moved = (charged.advantages - free.advantages).abs() + (charged.returns - free.returns).abs()
    assert float(moved.max()) > 0.1


def test_the_critic_takes_part_and_is_not_trained() -> None:
    policy = TabularPolicy(4, 3)
    parts = gradient(GRPO(), policy, group_rollout())
    assert parts["critic"].shape == policy.critic.shape
    assert not parts["critic"].any()


@pytest.mark.parametrize("groups", [None, [0, 0, 1]])
def test_a_row_without_another_of_its_start_is_refused(groups: list[int] | None) -> None:
    membership = None if groups is None else torch.tensor(groups)
    with pytest.raises(InputError, match="rows that share a start to at least 2"):
        GRPO().estimate(replace(group_rollout(), groups=membership), {})


@pytest.mark.parametrize(
    "bad", [{"gamma": 1.1}, {"clip": 0.0}, {"constant": 0.0}, {"kl_coef": -1.0}, {"entropy_coef": -1.0}]
)
def test_settings_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError):
        GRPO(**bad)
