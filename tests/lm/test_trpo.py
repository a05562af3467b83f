"""TRPO on language models: second derivatives of every kind of attention, exact Fisher products, whole updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf import optimize
from rlhf.algorithms import natural, trpo
from rlhf.budget import even_micro_batches
from rlhf.errors import InputError
from rlhf.lm.policy import CausalLM
from rlhf.rollout import Batch, Rollout
from tests.learners import learner_of
from tests.lm.test_policy_gradients import run as improved
from tests.lm.tiny import ARCHITECTURES, ODD_ARCHITECTURES, random_inputs, save_tiny, tiny_policy
from tests.lm.worlds import word_policy

CPU = Accelerator(cpu=True)
STATE = {"progress": torch.tensor(0.0), "update": torch.tensor(0)}


def rollout_of(policy: CausalLM) -> Rollout:
    """Four rows of several lengths and one without any action."""
    inputs = random_inputs()
    inputs["tokens"] = inputs["tokens"] % policy.config.vocab_size
    mask = inputs["actions"] > 0
    with torch.no_grad():
        output = policy(inputs)
    return Rollout(
        inputs=inputs,
        behaviour_logprobs=output.logprobs,
        logprobs=output.logprobs,
        values=output.values,
        next_values=torch.zeros_like(output.values),
        rewards=torch.randn(mask.shape, generator=torch.Generator().manual_seed(0)).to(output.values),
        dones=mask & ~torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1),
        mask=mask,
        sample_ids=torch.arange(len(mask)),
        costs=inputs["lengths"],
    )


def batch_of(policy: CausalLM) -> Batch:
    return trpo.TRPO().estimate(rollout_of(policy), STATE)[0]


def actor_of(policy: CausalLM) -> list[torch.nn.Parameter]:
    critic = {id(parameter) for parameter in policy.critic_parameters()}
    return [p for p in policy.parameters() if p.requires_grad and id(p) not in critic]


def product(policy: CausalLM, vector: Tensor, *, cost: int = 10_000) -> Tensor:
    batch = batch_of(policy)
    parts = even_micro_batches(batch, batch.rows(torch.tensor([0])), accelerator=CPU, micro_batch_cost=cost)
    return natural.fisher_products(policy, actor_of(policy), parts, damping=0.0, accelerator=CPU)(vector)


def random_vector(policy: CausalLM) -> Tensor:
    size = sum(p.numel() for p in actor_of(policy))
    return torch.randn(size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def quadratic_by_scores(policy: CausalLM, vector: Tensor) -> float:
    """v'Fv = mean over states of E_a[(grad log pi(a) . v)^2]: the directional derivatives of all log-probabilities."""
    inputs, actor = rollout_of(policy).inputs, actor_of(policy)
    logits = policy(inputs, distribution=True)[1].logits[inputs["actions"] > 0]
    logprobs = logits.log_softmax(-1)
    weights = torch.zeros_like(logprobs, requires_grad=True)
    slopes = torch.autograd.grad((weights * logprobs).sum(), actor, create_graph=True, materialize_grads=True)
    along = natural.flat(slopes).dot(vector)
    scores = torch.autograd.grad(along, weights)[0]
    return float((logprobs.detach().exp() * scores.square()).sum(-1).mean())


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *ODD_ARCHITECTURES])
def test_fisher_product_is_exact_on_every_architecture(architecture: str, tmp_path: Path) -> None:
    policy = tiny_policy(save_tiny(architecture, tmp_path / "model", initializer_range=0.05)).double()
    vector = random_vector(policy)
    ours = float(vector.dot(product(policy, vector)))
    assert ours == pytest.approx(quadratic_by_scores(policy, vector), rel=1e-5)


@pytest.mark.parametrize("changes", [{"gradient_checkpointing": True}, {"lora_rank": 2}, {"critic": "separate"}])
def test_fisher_product_is_exact_with_checkpoints_adapters_and_critics(changes: dict[str, Any], tmp_path: Path) -> None:
    policy = tiny_policy(save_tiny("llama", tmp_path / "model", initializer_range=0.05), **changes).double()
    vector = random_vector(policy)
    ours = float(vector.dot(product(policy, vector)))
    assert ours == pytest.approx(quadratic_by_scores(policy, vector), rel=1e-5)
    assert policy.training
    assert policy.model.training


def test_fisher_products_do_not_depend_on_micro_batches() -> None:
    policy = word_policy()
    vector = random_vector(policy)
    torch.testing.assert_close(product(policy, vector, cost=9), product(policy, vector), rtol=0, atol=1e-9)


def test_attention_that_cannot_be_differentiated_twice_is_refused() -> None:
    policy = word_policy()
    inputs = rollout_of(policy).inputs
    policy.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match="sdpa or eager"):
        policy(inputs, distribution=True)


@pytest.mark.parametrize("critic", ["shared", "separate", "none"])
def test_update_keeps_to_the_constraint_and_moves_critic_and_actor_apart(critic: str, tmp_path: Path) -> None:
    """With a shared trunk only the value head is fitted: the trunk moves as it does without any critic."""
    folder = save_tiny("llama", tmp_path / "model")
    policy = tiny_policy(folder, critic=critic).double()
    twin = tiny_policy(folder, critic="none").double()
    batch, heads = batch_of(policy), [p.detach().clone() for p in policy.critic_parameters()]
    with torch.no_grad():
        old = policy(batch.inputs, distribution=True)[1]
    # The same advantages for both, which critics would make different.
    method = trpo.TRPO(max_kl=0.02)
    fit = optimize.Optimize(epochs=3, learning_rate=0.01)
    for each in (policy, twin):
        metrics, _ = method.update(learner_of(each, fit), rollout_of(policy), batch, STATE)
    with torch.no_grad():
        divergence = float(old.kl(policy(batch.inputs, distribution=True)[1])[batch.mask].mean())
    assert 1e-4 < divergence <= 0.02
    assert metrics["kl_old_new"] == pytest.approx(divergence, rel=1e-9)
    assert all(torch.equal(a, b) for a, b in zip(actor_of(policy), actor_of(twin), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(heads, policy.critic_parameters(), strict=True))


def test_trpo_learns_on_prompts_some_of_which_have_no_score(tmp_path: Path) -> None:
    """Beside a reference; every update improves its surrogate within the constraint, and the KL to it grows from 0."""
    method = trpo.TRPO(max_kl=0.02, kl_coef=0.1)
    policy, rows = improved(tmp_path / "run", method)
    assert not torch.equal(natural.flat(actor_of(policy)).detach(), natural.flat(actor_of(word_policy())).detach())
    for row in rows:
        assert 0.0 < row["kl_old_new"] <= 0.02
        assert row["surrogate_improvement"] > 0.0
        assert row["ratio_error_max"] < 1e-9
    assert rows[0]["kl_ref_k3"] == pytest.approx(0.0, abs=1e-9)
    assert rows[-1]["kl_ref_k3"] > 1e-6
