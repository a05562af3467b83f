"""What the recipes ask of the algorithms before anything runs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf import optimize
from rlhf.algorithms import a2c, grpo, impala, off_policy, ppo, ppo_kl, reinforce_pp, rloo, trpo
from rlhf.algorithms.catalogue import ALGORITHMS, REPLAYED, require_settings
from rlhf.control.presets import PRESETS
from rlhf.errors import InputError
from rlhf.lm import presets as lm_presets
from rlhf.rollout import PolicyOutput
from tests.batches import make_rollout
from tests.tabular import TabularPolicy

DOCS = Path(__file__).parent.parent.parent / "docs" / "algorithms.md"


def how(whiten: Any, *, steps: int) -> optimize.Config:
    return optimize.Config(whiten=whiten, epochs=steps)


def test_whitening_is_part_of_the_method() -> None:
    require_settings(reinforce_pp.Config(), how("batch", steps=4), lag=0, group_size=2)
    require_settings(grpo.Config(), how("none", steps=4), lag=0, group_size=2)
    for whiten in ("none", "minibatch", "batch"):
        require_settings(ppo.Config(), how(whiten, steps=4), lag=0, group_size=2)
    with pytest.raises(InputError, match=r"whiten is none, but reinforce_pp needs batch"):
        require_settings(reinforce_pp.Config(), how("none", steps=1), lag=0, group_size=2)
    with pytest.raises(InputError, match=r"whiten is batch, but grpo needs none"):
        require_settings(grpo.Config(), how("batch", steps=1), lag=0, group_size=2)


def test_methods_without_a_ratio_in_their_loss_take_one_step() -> None:
    """What is not among the first corrects each step for a policy that has moved, or draws other transitions for it, or
    takes one step of its own kind.
    """
    alone = {"a2c", "impala", "q_actor_critic", "reinforce", "rloo", "td_actor_critic", "td_lambda"}
    for name, algorithm in ALGORITHMS.items():
        config, whiten = algorithm.Config(), getattr(algorithm, "WHITEN", "none")
        require_settings(config, how(whiten, steps=1), lag=0, group_size=2)
        if name not in alone:
            require_settings(config, how(whiten, steps=2), lag=0, group_size=2)
            continue
        with pytest.raises(InputError, match=f"minibatches is 2, but {name} takes one step on each batch"):
            require_settings(config, how(whiten, steps=2), lag=0, group_size=2)


@pytest.mark.parametrize("algorithm", [ppo, ppo_kl, trpo, grpo, reinforce_pp, off_policy, a2c, impala, rloo])
def test_only_a_loss_with_a_ratio_follows_a_policy_that_has_moved(algorithm: Any) -> None:
    """The gradient along an action's log-probability, by the ratio new / old of 1.1, inside every clip: 1.1 times that
    at the old policy, or the same.
    """
    policy = TabularPolicy(4, 3)
    config = algorithm.Config()
    slopes = []
    for moved in (0.0, math.log(1.1)):
        rollout = make_rollout(policy, rows=4, steps=1)
        rollout = replace(rollout, groups=torch.tensor([0, 0, 1, 1]))
        state = algorithm.initial_state(config) | {"progress": torch.tensor(0.0), "update": torch.tensor(0)}
        if "penalty" in state:
            state["penalty"] *= 0.0
        batch, _ = algorithm.estimate(rollout, state, config)
        batch = batch._replace(advantages=torch.ones_like(batch.advantages))
        logprobs = (batch.logprobs + moved).requires_grad_()
        output = PolicyOutput(logprobs, torch.zeros_like(logprobs), torch.zeros_like(logprobs))
        slopes.append(torch.autograd.grad(algorithm.loss(output, batch, state, config)[0].sum(), logprobs)[0])
    growth = 1.0 if getattr(algorithm, "SINGLE_STEP", False) else 1.1
    torch.testing.assert_close(slopes[1], growth * slopes[0], rtol=1e-9, atol=0)


REWARDED = [name for name, algorithm in ALGORITHMS.items() if hasattr(algorithm.Config(), "entropy_coef")]


@pytest.mark.parametrize("name", [name for name in REWARDED if name not in REPLAYED])
def test_an_entropy_bonus_lowers_the_loss_by_its_weight(name: str) -> None:
    """Per action, and nothing else in the loss depends on the entropy; replayed entropies are in the tests of those."""
    policy, algorithm = TabularPolicy(4, 3), ALGORITHMS[name]
    config = algorithm.Config(entropy_coef=0.3)
    rollout = replace(make_rollout(policy, rows=4, steps=1), groups=torch.tensor([0, 0, 1, 1]))
    state = algorithm.initial_state(config) | {"progress": torch.tensor(0.0), "update": torch.tensor(0)}
    batch, _ = algorithm.estimate(rollout, state, config)
    entropy = torch.rand_like(batch.logprobs).requires_grad_()
    output = PolicyOutput(batch.logprobs, torch.zeros_like(entropy), entropy)
    slope = torch.autograd.grad(algorithm.loss(output, batch, state, config)[0].sum(), entropy)[0]
    torch.testing.assert_close(slope, torch.full_like(slope, -0.3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("algorithm", [ppo, grpo, reinforce_pp])
@pytest.mark.parametrize(("ratio", "advantage", "slope"), [(1.5, 1, 0), (1.5, -1, 1.5), (0.5, 1, -0.5), (0.5, -1, 0)])
def test_a_clipped_ratio_gains_nothing_beyond_the_clip(
    algorithm: Any, ratio: float, advantage: float, slope: float
) -> None:
    """-min(r A, clip(r, .8, 1.2) A) (Schulman et al., 2017, eq. 7): its slope along log r is -r A, or 0."""
    config = algorithm.Config(clip=0.2)
    rollout = replace(make_rollout(TabularPolicy(4, 3), rows=4, steps=1), groups=torch.tensor([0, 0, 1, 1]))
    state = algorithm.initial_state(config) | {"progress": torch.tensor(0.0), "update": torch.tensor(0)}
    batch, _ = algorithm.estimate(rollout, state, config)
    batch = batch._replace(advantages=torch.full_like(batch.advantages, advantage))
    logprobs = (batch.logprobs + math.log(ratio)).requires_grad_()
    output = PolicyOutput(logprobs, torch.zeros_like(logprobs), torch.zeros_like(logprobs))
    found = torch.autograd.grad(algorithm.loss(output, batch, state, config)[0].sum(), logprobs)[0]
    torch.testing.assert_close(found, torch.full_like(found, slope), rtol=0, atol=1e-12)


def test_only_methods_that_correct_for_it_take_a_lag() -> None:
    for config in (impala.Config(), off_policy.Config()):
        require_settings(config, how("none", steps=1), lag=3, group_size=2)
    for config in (ppo.Config(), a2c.Config(), grpo.Config()):
        with pytest.raises(InputError, match=r"lag is 3, but \w+ does not correct for actors that lag"):
            require_settings(config, how("none", steps=1), lag=3, group_size=2)


def test_every_algorithm_has_settings_that_are_allowed() -> None:
    assert {name for name, _ in PRESETS} == set(ALGORITHMS)
    for settings in PRESETS.values():
        size = getattr(settings.collect, "responses_per_prompt", 1) * getattr(settings.collect, "episodes_per_start", 1)
        require_settings(settings.method, settings.optimize, lag=settings.collect.lag, group_size=size)
    assert set(lm_presets.PRESETS) <= set(ALGORITHMS)


def test_every_algorithm_has_a_row_in_the_docs() -> None:
    section = DOCS.read_text(encoding="utf-8").partition("## What each is")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows if row.count(" | ") != 7] == []
    assert {row.split("`")[1] for row in rows} == {*ALGORITHMS, "rlhf/control/a3c.py", "bc"}
