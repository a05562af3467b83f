"""PPO's parts, each against a number worked out by hand or an identity."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlhf.algorithms.ppo import PPO
from rlhf.errors import InputError
from rlhf.rollout import Batch, PolicyOutput, Rollout
from tests.batches import make_batch, make_rollout
from tests.tabular import TabularPolicy


def state(method: PPO, *, update: int = 0, progress: float = 0.0) -> dict[str, Tensor]:
    return method.initial_state() | {"update": torch.tensor(update), "progress": torch.tensor(progress)}


def one_action(
    *, ratio: float, advantage: float, value: float = 0.0, target: float = 0.0
) -> tuple[PolicyOutput, Batch]:
    """A batch of one action whose probability has changed by `ratio` and whose old value was 0."""
    cell = torch.zeros(1, 1, dtype=torch.float64)
    output = PolicyOutput(cell + math.log(ratio), cell + value, cell + 0.7)
    batch = make_batch(TabularPolicy(1, 1), rows=1, steps=1)
    return output, batch._replace(logprobs=cell, advantages=cell + advantage, returns=cell + target, values=cell)


def loss_of(method: PPO, *, update: int = 0, progress: float = 0.0, **action: float) -> tuple[float, dict]:
    output, batch = one_action(**action)
    terms, metrics = method.objective(state(method, update=update, progress=progress))(output, batch)
    return float(terms), {name: float(value) for name, value in metrics.items()}


PLAIN = PPO(value_coef=0.0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [(1.1, 2.0, -2.2), (1.5, 2.0, -2.4), (0.5, 2.0, -1.0), (0.5, -2.0, 1.6), (1.5, -2.0, 3.0)],
)
def test_the_surrogate_is_clipped_only_where_the_policy_has_gained_enough(ratio, advantage, expected):
    assert loss_of(PLAIN, ratio=ratio, advantage=advantage)[0] == pytest.approx(expected, abs=1e-12)


def test_a_linear_clip_shrinks_with_the_run():
    method = replace(PLAIN, clip=0.4, clip_schedule="linear")
    for progress, expected in ((0.0, -1.4), (0.5, -1.2), (0.75, -1.1)):
        terms, metrics = loss_of(method, ratio=2.0, advantage=1.0, progress=progress)
        assert terms == pytest.approx(expected, abs=1e-9)
        assert metrics["clip_fraction"] == 1.0
    assert loss_of(method, ratio=1.3, advantage=1.0, progress=0.0)[1]["clip_fraction"] == 0.0
    assert loss_of(method, ratio=1.3, advantage=1.0, progress=0.5)[1]["clip_fraction"] == 1.0


def test_the_value_loss_is_half_a_squared_error_times_its_coefficient():
    method = PPO(value_coef=0.5)
    terms, metrics = loss_of(method, ratio=1.0, advantage=0.0, value=1.0, target=4.0)
    assert metrics["value_loss"] == pytest.approx(4.5)
    assert terms == pytest.approx(2.25)


def test_a_clipped_value_gains_nothing_by_moving_further():
    """Old value 0, target 4: within 0.5 the value counts as it is, beyond it as 0.5."""
    method = PPO(value_clip=0.5)
    assert loss_of(method, ratio=1.0, advantage=0.0, value=0.25, target=4.0)[1]["value_loss"] == pytest.approx(
        0.5 * 3.75**2
    )
    for value in (1.0, 2.0):
        metrics = loss_of(method, ratio=1.0, advantage=0.0, value=value, target=4.0)[1]
        assert metrics["value_loss"] == pytest.approx(0.5 * 3.5**2)


def test_the_entropy_bonus_raises_entropy():
    """The term is -coef x entropy, so descending it climbs towards the uniform distribution."""
    assert loss_of(replace(PLAIN, entropy_coef=0.1), ratio=1.0, advantage=0.0)[0] == pytest.approx(-0.07)
    policy = TabularPolicy(4, 3)
    batch = make_batch(policy, rows=9, steps=5)
    batch = batch._replace(advantages=torch.zeros_like(batch.advantages))
    method = replace(PLAIN, entropy_coef=1.0)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.5)
    entropies = []
    for _ in range(3):
        terms, metrics = method.objective(state(method))(policy(batch.inputs), batch)
        entropies.append(float(metrics["entropy"].detach().mean()))
        optimizer.zero_grad()
        terms.masked_fill(~batch.mask, 0.0).sum().div(batch.mask.sum()).backward()
        optimizer.step()
    assert entropies == sorted(entropies)
    assert entropies[0] < entropies[-1] - 1e-3


def test_critic_warmup_trains_the_critic_only():
    policy = TabularPolicy(4, 3)
    batch = make_batch(policy, rows=9, steps=5)
    method = PPO(critic_warmup=2, entropy_coef=0.1)
    for update, trained in ((0, False), (1, False), (2, True)):
        policy.zero_grad()
        terms, _ = method.loss(policy(batch.inputs), batch, state(method, update=update))
        (batch.weights * terms).sum().backward()
        assert bool(policy.logits.grad.abs().sum() > 0) is trained
        assert float(policy.critic.grad.abs().sum()) > 0


def rollout_with_reference() -> Rollout:
    """Two rows of two and three actions; the last cell of the first row is padding."""
    rollout = make_rollout(TabularPolicy(4, 3), rows=2, steps=3)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    dones = torch.tensor([[False, True, False], [False, False, True]])
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    return replace(
        rollout,
        mask=mask,
        dones=dones,
        values=zeros,
        next_values=zeros,
        rewards=torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]], dtype=torch.float64),
        logprobs=torch.tensor([[-1.0, -2.0, 0.0], [-0.5, -1.5, -3.0]], dtype=torch.float64),
        ref_logprobs=torch.tensor([[-1.5, -1.0, 99.0], [-0.5, -2.5, -3.5]], dtype=torch.float64),
    )


def test_kl_is_taken_off_the_reward_of_its_action() -> None:
    """log p - log p_ref is .5, -1 | 0, 1, .5: what the policy likes more than its reference does costs it."""
    method = PPO(kl_coef=0.1, gae_lambda=1.0)
    batch, metrics = method.estimate(rollout_with_reference(), method.initial_state())
    expected = torch.tensor([[1.05, 1.1, 0.0], [1.85, 1.85, 1.95]], dtype=torch.float64)
    torch.testing.assert_close(batch.advantages, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(batch.returns, expected, rtol=0, atol=1e-12)
    kl = torch.tensor([[0.5, -1.0, 0.0], [0.0, 1.0, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(metrics["kl_ref_per_episode"], kl, rtol=0, atol=1e-12)
    torch.testing.assert_close(metrics["kl_ref_k1"], kl, rtol=0, atol=1e-12)
    assert float(metrics["kl_ref_k3"].min()) >= 0.0


def test_kl_is_charged_at_the_coefficient_of_the_state() -> None:
    method = PPO(kl_coef=0.1, gae_lambda=1.0)
    charged = method.estimate(rollout_with_reference(), {"kl_coef": torch.tensor(0.3)})[0].advantages
    expected = torch.tensor([1.0 + 0.3 * 0.5, 2.0 - 0.3 * 1.5], dtype=torch.float64)
    torch.testing.assert_close(charged[:, 0], expected, rtol=0, atol=1e-6)


def with_reference(policy: TabularPolicy, shift: float) -> Rollout:
    """The reference finds every action less likely by `shift` nats."""
    rollout = make_rollout(policy, rows=5, steps=4)
    return replace(rollout, ref_logprobs=rollout.logprobs - shift)


def test_leaving_the_reference_is_charged_to_the_rewards():
    """With gamma and lambda 1 the return is the sum of rewards to come, each less 0.1 x 0.3."""
    policy, method = TabularPolicy(4, 3), PPO(kl_coef=0.1, gae_lambda=1.0)
    rollout = with_reference(policy, 0.3)
    batch, cells = method.estimate(rollout, state(method))
    uncharged = replace(method, kl_coef=0.0)
    free, _ = uncharged.estimate(replace(rollout, ref_logprobs=None), state(uncharged))
    steps_to_come = rollout.mask.double().flip(1).cumsum(1).flip(1)
    expected = (free.returns - 0.03 * steps_to_come).masked_fill(~rollout.mask, 0.0)
    torch.testing.assert_close(batch.returns, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(cells["kl_ref_k1"][rollout.mask], torch.full((int(rollout.mask.sum()),), 0.3).double())


def test_a_reference_without_a_coefficient_is_watched_for_free():
    policy, method = TabularPolicy(4, 3), PPO(kl_coef=0.0)
    rollout = with_reference(policy, 0.3)
    batch, cells = method.estimate(rollout, state(method))
    free, unwatched = method.estimate(replace(rollout, ref_logprobs=None), state(method))
    assert torch.equal(batch.advantages, free.advantages)
    assert set(cells) - set(unwatched) == {"kl_ref_k1", "kl_ref_k3", "kl_ref_per_episode"}


def test_kl_is_zero_where_policy_and_reference_agree():
    policy, method = TabularPolicy(4, 3), PPO(kl_coef=0.1)
    _, cells = method.estimate(with_reference(policy, 0.0), state(method))
    for name in ("kl_ref_k1", "kl_ref_k3", "kl_ref_per_episode"):
        assert not cells[name].any()


def test_returns_are_advantages_plus_the_values_of_acting():
    policy, method = TabularPolicy(4, 3), PPO()
    rollout = make_rollout(policy, rows=5, steps=4)
    batch, cells = method.estimate(rollout, state(method))
    torch.testing.assert_close(batch.returns - batch.advantages, rollout.values, rtol=0, atol=1e-12)
    assert torch.equal(batch.weights, rollout.mask.double())
    assert torch.equal(batch.units, rollout.mask.double())
    td = (rollout.rewards + rollout.next_values - rollout.values).abs()
    torch.testing.assert_close(cells["td_error"][rollout.mask], td[rollout.mask], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kl", "factor"),
    [(6.0, 1.0), (6.6, 1.01), (600.0, 1.02), (5.4, 0.99), (0.0, 0.98), (-5.0, 0.98)],
)
def test_the_coefficient_moves_by_a_tenth_of_the_error_at_most_by_a_fiftieth(kl, factor):
    """Ziegler et al. (2019), section 2.2: x (1 + 0.1 clip(KL / target - 1, -0.2, 0.2)), here with a target of 6."""
    method = PPO(kl_coef=0.2, kl_target=6.0)
    adapted = method.adapt(state(method, update=3), {"kl_ref_per_episode": kl})
    assert float(adapted["kl_coef"]) == pytest.approx(0.2 * factor, abs=1e-12)
    assert int(adapted["update"]) == 3


def test_a_fixed_coefficient_stays():
    method = PPO(kl_coef=0.2)
    start = state(method)
    assert method.adapt(start, {}) == start
    assert method.initial_state()["kl_coef"].dtype == torch.float64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 1.1}, "gamma is 1.1; it must lie in"),
        ({"gae_lambda": -0.1}, "gae_lambda is -0.1; it must lie in"),
        ({"clip": 0.0}, "clip is 0.0; it must be positive"),
        ({"value_clip": -1.0}, "value_clip is -1.0; it must not be negative"),
        ({"entropy_coef": math.nan}, "entropy_coef is nan; it must be finite"),
        ({"critic_warmup": -1}, "critic_warmup is -1"),
        ({"kl_target": 6.0}, "kl_coef must be positive; it is 0"),
    ],
)
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        PPO(**changes)
