"""TRPO: its Fisher matrix by enumeration, its step's KL, its line search, and policies that are almost certain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlhf import optimize
from rlhf.algorithms import natural
from rlhf.algorithms.trpo import TRPO
from rlhf.budget import even_micro_batches
from rlhf.control.policy import ControlPolicy, PolicyConfig, Spaces
from rlhf.core import kl, losses
from rlhf.errors import InputError, NonFiniteError
from rlhf.rollout import Batch, Categorical, Rollout, single_steps
from tests.batches import make_rollout
from tests.learners import learner_of
from tests.tabular import TabularPolicy

CPU = Accelerator(cpu=True)
STATE = {"progress": torch.tensor(0.0), "update": torch.tensor(0)}
EXACT = {"damping": 0.0, "cg_iterations": 8}
FIT = optimize.Optimize(epochs=2, minibatches=2, learning_rate=0.01)


def gaussian_policy(seed: int = 0) -> ControlPolicy:
    spaces = Spaces(observation_size=3, action_low=(-1.0, -1.0), action_high=(1.0, 1.0))
    policy = ControlPolicy(spaces, PolicyConfig(hidden_sizes=(5,), initial_log_std=-0.5), seed=seed).double()
    with torch.no_grad():
        for parameter in policy.actor.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return policy


def softmax_policy(*, sharpness: float = 1.0, dtype: torch.dtype = torch.float64) -> ControlPolicy:
    """`sharpness` scales the logits."""
    policy = ControlPolicy(Spaces(observation_size=3, num_actions=3), PolicyConfig(hidden_sizes=(5,)), seed=0)
    with torch.no_grad():
        policy.actor[-1].weight.mul_(50.0 * sharpness)
        policy.actor[-1].bias.copy_(torch.tensor([1.0, 0.0, -1.0]) * sharpness)
    return policy.to(dtype)


def control_rollout(policy: ControlPolicy, *, rows: int = 9, steps: int = 5) -> Rollout:
    """Observations at random, actions of the policy; row i has between 1 and `steps` of them."""
    generator = torch.Generator().manual_seed(0)
    dtype = policy.weight.dtype
    observations = torch.randn(rows, steps, 3, generator=generator).to(dtype)
    lengths = torch.randint(1, steps + 1, (rows,), generator=generator)
    mask = torch.arange(steps) < lengths.unsqueeze(1)
    uniforms = torch.rand(rows * steps, policy.spaces.action_size, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        outputs = policy.actor(observations).flatten(0, 1)
        actions = policy.sample(outputs, uniforms)
        inputs = {"observations": observations, "actions": actions.view(rows, steps, *actions.shape[1:])}
        output = policy(inputs)
    values = output.values.masked_fill(~mask, 0.0)
    return Rollout(
        inputs=inputs,
        behaviour_logprobs=output.logprobs,
        logprobs=output.logprobs,
        values=values,
        next_values=torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1),
        rewards=torch.randn(rows, steps, generator=generator).to(dtype),
        dones=torch.arange(steps) == lengths.unsqueeze(1) - 1,
        mask=mask,
        sample_ids=torch.arange(rows),
        costs=lengths,
    )


def rollout_of(policy: Any) -> Rollout:
    return make_rollout(policy, rows=9, steps=5) if isinstance(policy, TabularPolicy) else control_rollout(policy)


def batch_of(policy: Any) -> Batch:
    batch, _ = TRPO().estimate(rollout_of(policy), STATE)
    return single_steps(batch)


def actor_of(policy: Any) -> list[nn.Parameter]:
    critic = {id(parameter) for parameter in policy.critic_parameters()}
    return [parameter for parameter in policy.parameters() if id(parameter) not in critic]


def run(
    policy: Any,
    method: TRPO,
    *,
    fit: optimize.Optimize = FIT,
    batch: Batch | None = None,
    state: dict[str, Tensor] = STATE,
) -> dict[str, float]:
    batch = batch_of(policy) if batch is None else batch
    metrics, _ = method.update(learner_of(policy, fit), rollout_of(policy), batch, state)
    return metrics


def kl_from(policy: Any, old: Any, batch: Batch) -> Tensor:
    """Mean KL(old || policy) over the actions of the batch."""
    return old.kl(policy(batch.inputs, distribution=True)[1])[batch.mask].mean()


POLICIES = pytest.mark.parametrize("make", [lambda: TabularPolicy(4, 3), softmax_policy, gaussian_policy])


@POLICIES
def test_gradient_of_the_kl_at_the_old_policy_is_zero(make: Any) -> None:
    policy = make()
    batch = batch_of(policy)
    old = type(d := policy(batch.inputs, distribution=True)[1])(*(x.detach() for x in d))
    gradients = torch.autograd.grad(kl_from(policy, old, batch), actor_of(policy))
    assert max(float(gradient.abs().max()) for gradient in gradients) <= 1e-12


def fisher_by_enumeration(policy: Any, batch: Batch) -> Tensor:
    """Mean over states of sum_a pi(a) grad log pi(a) grad log pi(a)', one state and one action at a time."""
    actor = actor_of(policy)
    logits = policy(batch.inputs, distribution=True)[1].logits[batch.mask]
    total = torch.zeros(sum(p.numel() for p in actor), sum(p.numel() for p in actor), dtype=torch.float64)
    for row in logits:
        for action, logprob in enumerate(row.log_softmax(-1)):
            score = torch.autograd.grad(logprob, actor, retain_graph=True, materialize_grads=True)
            flat = natural.flat(score)
            total += row.softmax(-1)[action].detach() * torch.outer(flat, flat)
    return total / len(logits)


def products(policy: Any, batch: Batch, *, damping: float = 0.0, cost: int = 10_000) -> Tensor:
    actor = actor_of(policy)
    filler = batch.rows(torch.tensor([0]))
    parts = even_micro_batches(batch, filler, accelerator=CPU, micro_batch_cost=cost)
    size = sum(p.numel() for p in actor)
    product = natural.fisher_products(policy, actor, parts, damping=damping, accelerator=CPU)
    return torch.stack([product(column) for column in torch.eye(size, dtype=torch.float64)])


@pytest.mark.parametrize("make", [lambda: TabularPolicy(4, 3), softmax_policy])
def test_hessian_of_the_kl_is_the_fisher_matrix(make: Any) -> None:
    policy = make()
    batch = batch_of(policy)
    torch.testing.assert_close(products(policy, batch), fisher_by_enumeration(policy, batch), rtol=0, atol=1e-9)


def test_hessian_of_the_kl_of_gaussians_is_the_fisher_matrix() -> None:
    """Of the mean it is J' J / std^2, J how the network's outputs move with its weights; of log_std it is 2."""
    policy = gaussian_policy()
    batch = batch_of(policy)
    network = [p for p in actor_of(policy) if p is not policy.log_std]
    outputs = policy.actor(batch.inputs["observations"])[batch.mask]
    size = sum(p.numel() for p in network)
    mean = torch.zeros(size, size, dtype=torch.float64)
    for output in outputs:
        for number in output:
            score = natural.flat(torch.autograd.grad(number, network, retain_graph=True))
            mean += torch.outer(score, score) / (policy.log_std[0].exp() ** 2).detach() / len(outputs)
    order = [id(p) for p in actor_of(policy)]
    expected = {id(policy.log_std): 2.0 * torch.eye(2, dtype=torch.float64)}
    ours = products(policy, batch)
    start = order.index(id(policy.log_std)) and size
    log_std = slice(start, start + 2)
    rest = [i for i in range(size + 2) if not start <= i < start + 2]
    torch.testing.assert_close(ours[log_std, log_std], expected[id(policy.log_std)], rtol=0, atol=1e-9)
    torch.testing.assert_close(ours[rest][:, rest], mean, rtol=0, atol=1e-9)
    assert float(ours[log_std][:, rest].abs().max()) <= 1e-12


def test_damping_adds_a_multiple_of_the_identity() -> None:
    policy = TabularPolicy(4, 3)
    batch = batch_of(policy)
    identity = torch.eye(12, dtype=torch.float64)
    torch.testing.assert_close(
        products(policy, batch, damping=0.3), products(policy, batch) + 0.3 * identity, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("cost", [4, 7])
def test_fisher_products_do_not_depend_on_micro_batches(cost: int) -> None:
    policy = softmax_policy()
    batch = batch_of(policy)
    torch.testing.assert_close(products(policy, batch, cost=cost), products(policy, batch), rtol=0, atol=1e-12)


def surrogate_gradient(policy: Any, batch: Batch) -> Tensor:
    logprobs = policy(batch.inputs).logprobs
    surrogate = (torch.exp(logprobs - batch.logprobs) * batch.advantages)[batch.mask].mean()
    return natural.flat(torch.autograd.grad(surrogate, actor_of(policy)))


@POLICIES
@pytest.mark.parametrize("max_kl", [1e-3, 0.01, 0.5])
def test_step_before_the_line_search_has_exactly_the_quadratic_kl(make: Any, max_kl: float) -> None:
    """1/2 s'Fs is max_kl. With damping, where conjugate gradient gets to its end, Hs is a multiple of the gradient."""
    policy = make()
    batch = batch_of(policy)
    fisher, gradient = products(policy, batch), surrogate_gradient(policy, batch)
    step = natural.step(lambda v: fisher @ v, gradient, num_iterations=10, max_kl=max_kl)
    assert float(0.5 * step @ fisher @ step) == pytest.approx(max_kl, rel=1e-9)
    damped = fisher + 0.1 * torch.eye(len(fisher), dtype=torch.float64)
    step = natural.step(lambda v: damped @ v, gradient, num_iterations=60, max_kl=max_kl)
    torch.testing.assert_close(damped @ step / (damped @ step).norm(), gradient / gradient.norm(), rtol=0, atol=2e-6)
    assert float(0.5 * step @ damped @ step) == pytest.approx(max_kl, rel=1e-9)


def test_fisher_shares_take_the_matrix_from_some_rows_and_the_gradient_from_all() -> None:
    """With as many shares as rows each step is the closed form for the matrix of one row, of another at other updates.

    The surrogate's gain and the KL are those of all rows, so the step's length may differ: the direction is compared.
    """
    method, seen = TRPO(max_kl=1e-6, damping=0.1, cg_iterations=60), []
    for index in range(6):
        policy = TabularPolicy(4, 3)
        batch, start = batch_of(policy), policy.logits.detach().clone()
        gradient, rows = surrogate_gradient(policy, batch), torch.arange(len(batch.mask))[batch.mask.any(1)]
        directions = []
        for row in rows:
            damped = fisher_by_enumeration(policy, batch.rows(row[None])) + 0.1 * torch.eye(12, dtype=torch.float64)
            directions.append(torch.linalg.solve(damped, gradient))
        learner = learner_of(policy, replace(FIT, whiten="none"), update_index=index)
        shared = replace(method, fisher_shares=len(rows))
        shared.update(learner, rollout_of(policy), batch, STATE)
        moved = (policy.logits.detach() - start).flatten()
        matches = [float(moved @ d / (moved.norm() * d.norm())) > 1.0 - 1e-9 for d in directions]
        assert any(matches)
        seen.append(tuple(matches))
    assert len(set(seen)) > 1


def test_small_steps_have_the_kl_of_their_quadratic_model() -> None:
    """Where max_kl is small the model holds: the first step is taken whole and has nearly that KL."""
    policy = TabularPolicy(4, 3)
    metrics = run(policy, TRPO(**EXACT, max_kl=1e-8, shrinkage=0.999))
    assert metrics["step_share"] > 0.99
    assert metrics["kl_old_new"] == pytest.approx(1e-8, rel=0.01)


def test_linear_limit_shrinks_with_the_run() -> None:
    method = TRPO(**EXACT, max_kl=1e-8, max_kl_schedule="linear", shrinkage=0.999)
    metrics = run(TabularPolicy(4, 3), method, state=STATE | {"progress": torch.tensor(0.75)})
    assert metrics["kl_old_new"] == pytest.approx(0.25e-8, rel=0.01)


@POLICIES
def test_update_improves_the_surrogate_within_the_constraint(make: Any) -> None:
    """Measured by the test, in the direction KL(old || new), on the policy as the update leaves it."""
    policy = make()
    batch = batch_of(policy)
    with torch.no_grad():
        old = policy(batch.inputs, distribution=True)[1]
    old = type(old)(*(x.clone() for x in old))
    metrics = run(policy, TRPO(max_kl=0.02), fit=replace(FIT, whiten="none"))
    with torch.no_grad():
        divergence = float(kl_from(policy, old, batch))
        ratios = torch.exp(policy(batch.inputs).logprobs - batch.logprobs)
    gained = float(((ratios - 1.0) * batch.advantages)[batch.mask].mean())
    assert 1e-4 < divergence <= 0.02
    assert metrics["kl_old_new"] == pytest.approx(divergence, rel=1e-9)
    assert metrics["surrogate_improvement"] == pytest.approx(gained, rel=1e-9)
    assert gained > 0.0


def test_line_search_takes_the_longest_step_that_is_acceptable() -> None:
    """The measure is scripted: too much KL, then no gain, then good."""
    weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    script = iter([(0.0, 0.0), (-1.0, 0.02), (0.0, 0.001), (-1.0, 0.009), (-9.0, 0.0)])

    def measure() -> dict[str, float]:
        return dict(zip(("policy_loss", "kl_old_new"), next(script), strict=True))

    full = torch.tensor([8.0, -4.0], dtype=torch.float64)
    metrics = natural.line_search([weight], full, measure, max_kl=0.01, shrinkage=0.5, num_tries=10)
    assert weight.tolist() == [2.0, -1.0]
    assert (metrics["step_share"], metrics["surrogate_improvement"]) == (0.25, 1.0)


def test_failed_line_search_leaves_every_bit_as_it_was() -> None:
    """Odd numbers, which adding and subtracting a step would not bring back."""
    weights = [nn.Parameter(torch.tensor([0.1, 1e-30, 7.3])), nn.Parameter(torch.tensor([[1 / 3]]))]
    before = [weight.detach().clone() for weight in weights]
    full = torch.tensor([1e8, 1.0, -3.0, 1e-3])

    def measure() -> dict[str, float]:
        return {"policy_loss": float("nan"), "kl_old_new": 0.0}

    metrics = natural.line_search(weights, full, measure, max_kl=0.01, shrinkage=0.5, num_tries=10)
    assert metrics["step_share"] == 0.0
    assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))


def test_equal_advantages_leave_the_actor_to_the_last_bit() -> None:
    """No gradient: the step is 0, not 0 / 0, and the critic is fitted all the same."""
    policy = softmax_policy()
    batch = batch_of(policy)
    before = {name: x.clone() for name, x in policy.state_dict().items()}
    metrics = run(policy, TRPO(), batch=batch._replace(advantages=torch.ones_like(batch.advantages)))
    assert metrics["step_share"] == 0.0
    for name, x in policy.state_dict().items():
        assert torch.equal(x, before[name]) == name.startswith("actor"), name


@pytest.mark.parametrize("whiten", ["none", "batch"])
def test_update_does_not_depend_on_micro_batches(whiten: str) -> None:
    changes = []
    for budget in (4, 10_000):
        policy = gaussian_policy()
        start = natural.flat([p.detach().clone() for p in policy.parameters()])
        run(policy, TRPO(damping=0.01, cg_iterations=5), fit=replace(FIT, micro_batch_cost=budget, whiten=whiten))
        changes.append(natural.flat([p.detach() for p in policy.parameters()]) - start)
    assert changes[0].norm() > 1e-3
    assert (changes[0] - changes[1]).norm() <= 1e-9 * changes[0].norm()


def test_advantages_are_whitened_as_the_optimizers_settings_say() -> None:
    """Then shifting and scaling them changes nothing; without whitening a shift does."""
    moved = {}
    for whiten in ("none", "batch", "minibatch"):
        for shift in (0.0, 5.0):
            policy = TabularPolicy(4, 3)
            batch = batch_of(policy)
            batch = batch._replace(advantages=batch.advantages * (1.0 + shift) + shift)
            run(policy, TRPO(), fit=replace(FIT, whiten=whiten), batch=batch)
            moved[whiten, shift] = policy.logits.detach().clone()
    torch.testing.assert_close(moved["batch", 0.0], moved["batch", 5.0], rtol=0, atol=1e-9)
    torch.testing.assert_close(moved["minibatch", 0.0], moved["batch", 0.0], rtol=0, atol=1e-9)
    assert not torch.allclose(moved["none", 0.0], moved["none", 5.0], atol=1e-3)


def test_critic_is_fitted_to_the_returns_and_the_actor_left_to_the_trust_region() -> None:
    """With weight decay, which would otherwise pull at the actor too."""
    policy, twin = softmax_policy(), softmax_policy()
    fit = optimize.Optimize(epochs=100, learning_rate=0.05, weight_decay=0.1)
    batch = batch_of(policy)
    before = losses.value_loss(batch.values, batch.returns)[batch.mask].mean()
    run(policy, TRPO(), fit=fit)
    run(twin, TRPO(), fit=FIT)
    with torch.no_grad():
        after = losses.value_loss(policy(batch.inputs).values, batch.returns)[batch.mask].mean()
    assert after < 0.6 * before
    assert all(torch.equal(a, b) for a, b in zip(actor_of(policy), actor_of(twin), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("damping", [0.0, 1e-3, 0.1])
def test_policies_that_are_almost_certain_survive(dtype: torch.dtype, damping: float) -> None:
    """As after cloning: entropy about 1e-6, so a Fisher matrix of about that size. Ten updates, each on the same states
    and fresh advantages: never a NaN, never beyond the constraint."""
    policy = softmax_policy(dtype=dtype)
    with torch.no_grad():
        policy.actor[-1].weight.mul_(1e-3)
        policy.actor[-1].bias.copy_(torch.tensor([17.0, 0.0, -1.0]))
    batch = batch_of(policy)
    assert 1e-7 < float(policy(batch.inputs).entropy.detach().mean()) < 1e-5
    shares = []
    for update in range(10):
        with torch.no_grad():
            old, logprobs = policy(batch.inputs, distribution=True)[1], policy(batch.inputs).logprobs
        noise = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(update)).to(dtype)
        fresh = batch._replace(advantages=noise * batch.mask, logprobs=logprobs.masked_fill(~batch.mask, 0.0))
        old = Categorical(old.logits.clone())
        metrics = run(policy, TRPO(damping=damping, max_kl=0.01), batch=fresh)
        assert all(torch.isfinite(p).all() for p in policy.parameters())
        with torch.no_grad():
            assert float(kl_from(policy, old, batch)) <= 0.01 * (1 + 1e-5)
        shares.append(metrics["step_share"])
    # Undamped, the quadratic model of such a policy holds nowhere, and every search may fail.
    assert damping == 0.0 or max(shares) > 0.0


def test_actions_of_a_certain_policy_that_were_rare_can_be_learned_from() -> None:
    """One sampled action has probability 1e-8 and a large advantage: the policy moves towards it."""
    policy = TabularPolicy(1, 2)
    with torch.no_grad():
        policy.logits.copy_(torch.tensor([[18.0, 0.0]]))
    batch = batch_of(policy)
    rare = batch.inputs["actions"] == 1
    batch = batch._replace(
        logprobs=policy(batch.inputs).logprobs.detach().masked_fill(~batch.mask, 0.0),
        advantages=(rare & batch.mask).double(),
    )
    metrics = run(policy, TRPO(), batch=batch)
    assert metrics["step_share"] > 0.0
    assert float((policy.logits[0, 1] - policy.logits[0, 0]).detach()) > -18.0 + 1e-3


def test_non_finite_step_stops_before_any_parameter_moves() -> None:
    with pytest.raises(NonFiniteError, match="not finite"):
        natural.step(lambda v: v * torch.nan, torch.ones(3), num_iterations=3, max_kl=0.01)
    with pytest.raises(NonFiniteError, match="not finite"):
        natural.step(lambda v: v, torch.tensor([1.0, torch.nan]), num_iterations=3, max_kl=0.01)


def test_acting_and_scoring_that_disagree_are_an_error() -> None:
    policy = TabularPolicy(4, 3)
    batch = batch_of(policy)
    with pytest.raises(RuntimeError, match="dropout"):
        run(policy, TRPO(), batch=batch._replace(logprobs=batch.logprobs - 0.01))


def test_loss_at_the_old_policy_has_the_gradient_of_the_policy_gradient() -> None:
    """grad L_PG = grad L_IS at theta_old."""
    policy = TabularPolicy(4, 3)
    batch = batch_of(policy)
    gradients = []
    for terms in (
        TRPO().loss(policy(batch.inputs), batch, STATE)[0],
        losses.policy_gradient_loss(policy(batch.inputs).logprobs, batch.advantages),
    ):
        gradients.append(torch.autograd.grad(terms[batch.mask].mean(), [policy.logits])[0])
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_metrics_tell_of_the_policy_after_the_step() -> None:
    policy = TabularPolicy(4, 3)
    batch = batch_of(policy)
    metrics = run(policy, TRPO(max_kl=0.1), fit=replace(FIT, whiten="none"))
    with torch.no_grad():
        output = policy(batch.inputs)
    assert metrics["entropy"] == pytest.approx(float(output.entropy[batch.mask].mean()), rel=1e-12)
    k3 = kl.k3(batch.logprobs, output.logprobs)[batch.mask].mean()
    assert metrics["approx_kl_k3"] == pytest.approx(float(k3), rel=1e-9)
    assert metrics["ratio_error_max"] <= 1e-12
    assert metrics["gradient_norm"] == pytest.approx(
        float(surrogate_gradient(TabularPolicy(4, 3), batch).norm()), rel=1e-9
    )
    assert {"value_loss", "learning_rate", "gradient_steps", "policy_loss"} <= metrics.keys()


@pytest.mark.parametrize(
    "wrong",
    [{"max_kl": 0.0}, {"damping": -1.0}, {"shrinkage": 1.0}, {"cg_iterations": 0}, {"backtracks": 0}, {"gamma": 2.0}],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        TRPO(**wrong)
