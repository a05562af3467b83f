"""What methods say of themselves, and what is refused by it before anything runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from recipes.settings import arithmetic as lm_presets
from recipes.settings import control as control_presets
from rlhf import optimize
from rlhf.algorithms.a2c import A2C
from rlhf.algorithms.actor_critic import Critic
from rlhf.algorithms.base import Method
from rlhf.algorithms.checks import fitting, require_policy, require_rate, require_settings
from rlhf.algorithms.choices import methods
from rlhf.algorithms.grpo import GRPO
from rlhf.algorithms.impala import Impala
from rlhf.algorithms.off_policy import OffPolicy
from rlhf.algorithms.ppo import PPO
from rlhf.algorithms.ppo_kl import PPOKL
from rlhf.algorithms.reinforce import Reinforce
from rlhf.algorithms.reinforce_pp import ReinforcePP
from rlhf.algorithms.rloo import RLOO
from rlhf.algorithms.trpo import TRPO
from rlhf.errors import InputError
from rlhf.rollout import PolicyOutput
from tests.batches import make_rollout
from tests.tabular import TabularPolicy

DOCS = Path(__file__).parent.parent.parent / "docs" / "algorithms.md"
METHODS = methods()


def settings_of(whiten: Any, *, steps: int, target_kl: float = 0.0) -> optimize.Optimize:
    return optimize.Optimize(whiten=whiten, epochs=steps, target_kl=target_kl)


def test_whitening_is_part_of_the_method() -> None:
    require_settings(ReinforcePP(), settings_of("batch", steps=4), group_size=2)
    require_settings(GRPO(), settings_of("none", steps=4), group_size=2)
    for whiten in ("none", "minibatch", "batch"):
        require_settings(PPO(), settings_of(whiten, steps=4), group_size=2)
    with pytest.raises(InputError, match=r"whiten is none, but reinforce_pp needs batch"):
        require_settings(ReinforcePP(), settings_of("none", steps=1), group_size=2)
    with pytest.raises(InputError, match=r"whiten is batch, but grpo needs none"):
        require_settings(GRPO(), settings_of("batch", steps=1), group_size=2)


def test_methods_without_a_ratio_in_their_loss_take_one_step() -> None:
    """What is not among the first corrects each step for a policy that has moved, or draws other transitions for it, or
    takes one step of its own kind, or learns what it is shown.
    """
    alone = {"a2c", "impala", "q_actor_critic", "reinforce", "rloo", "td_lambda"}
    for name, kind in METHODS.items():
        method, whiten = kind(), kind().whitens[0]
        require_settings(method, settings_of(whiten, steps=1), group_size=2)
        if name not in alone:
            require_settings(method, settings_of(whiten, steps=2), group_size=2)
            continue
        with pytest.raises(InputError, match=f"minibatches is 2, but {name} takes one step on each batch"):
            require_settings(method, settings_of(whiten, steps=2), group_size=2)


def test_updates_that_cannot_end_early_refuse_a_kl_to_end_at() -> None:
    """Those of one step, those whose steps are of another kind or on other transitions each; what learns
    from data measures no KL."""
    never = {"a2c", "clone", "impala", "q_actor_critic", "reinforce", "rloo", "td_lambda", "dpo", "kto", "reward_model"}
    never |= {"trpo", "sac", "discrete_sac", "replay_actor_critic"}
    for name, kind in METHODS.items():
        settings = settings_of(kind().whitens[0], steps=1, target_kl=0.02)
        if name not in never:
            require_settings(kind(), settings, group_size=2)
            continue
        with pytest.raises(InputError, match=f"no update of {name} can end early"):
            require_settings(kind(), settings, group_size=2)


def test_a_rate_of_the_critic_is_for_methods_that_have_one() -> None:
    without = {"cispo", "clone", "dpo", "grpo", "gspo", "kto", "reinforce", "reinforce_pp", "rloo"}
    for name, kind in METHODS.items():
        settings = replace(settings_of(kind().whitens[0], steps=1), critic_learning_rate=1e-4)
        if name not in without:
            require_settings(kind(), settings, group_size=2)
            continue
        with pytest.raises(InputError, match=f"critic_learning_rate is 0.0001, but {name} has no critic"):
            require_settings(kind(), settings, group_size=2)
    rate = optimize.Optimize(critic_learning_rate=1e-4)
    require_rate(rate, has_critic=True)
    with pytest.raises(InputError, match=r"critic_learning_rate is 0.0001, but the policy has no critic; set it to 0"):
        require_rate(rate, has_critic=False)


@pytest.mark.parametrize("kind", METHODS.values())
def test_settings_are_made_to_fit_the_method(kind: type[Method]) -> None:
    """What does not go with it is put right, the rest stays."""
    open_ones = optimize.Optimize(epochs=3, minibatches=2, whiten="batch", target_kl=0.02, learning_rate=0.123)
    open_ones = replace(open_ones, critic_learning_rate=0.01)
    fitted = fitting(kind(), open_ones)
    require_settings(kind(), fitted, group_size=2)
    assert fitted.learning_rate == 0.123
    if kind is PPO:
        assert fitted == open_ones


def test_methods_that_compare_rows_of_a_start_need_two() -> None:
    grouped = (GRPO(), RLOO(), ReinforcePP(baseline="group"))
    for method in grouped:
        with pytest.raises(InputError, match=f"{method.name} compares rows that share a start, and each row is alone"):
            require_settings(method, settings_of(method.whitens[0], steps=1), group_size=1)
    for method in (PPO(), A2C(), ReinforcePP()):
        require_settings(method, settings_of(method.whitens[-1], steps=1), group_size=1)


@dataclass(frozen=True, kw_only=True)
class Pairs(Method):
    """A method whose loss sees pairs and that says nothing else of itself."""

    rows: ClassVar[Any] = "groups"


def test_rows_in_groups_need_starts_in_common() -> None:
    assert Pairs().needs_groups
    assert Pairs().needs_episodes
    with pytest.raises(InputError, match="pairs compares rows that share a start, and each row is alone"):
        require_settings(Pairs(), settings_of("none", steps=1), group_size=1)
    require_settings(Pairs(), settings_of("none", steps=1), group_size=2)


def test_presets_collect_in_groups_for_rows_in_groups() -> None:
    own = f"{__file__}:Pairs"
    collecting = control_presets.preset(own, "CartPole-v1").collect
    assert collecting.episodes_per_start > 1
    assert collecting.episodes % collecting.episodes_per_start == 0
    assert lm_presets.preset(own).improve.collect.responses_per_prompt > 1


def test_a_baseline_of_the_batch_is_not_whitened() -> None:
    for whiten in ("minibatch", "batch"):
        require_settings(Reinforce(baseline="value"), settings_of(whiten, steps=1), group_size=1)
        with pytest.raises(InputError, match=f"whiten is {whiten}, but reinforce needs none; set it so"):
            require_settings(Reinforce(), settings_of(whiten, steps=1), group_size=1)


def test_methods_of_single_actions_refuse_a_policy_that_remembers() -> None:
    single = {"discrete_sac", "replay_actor_critic", "sac", "q_actor_critic", "td_lambda"}
    for name, kind in METHODS.items():
        require_policy(kind(), memoryless=True, has_critic=True)
        if name not in single:
            require_policy(kind(), memoryless=False, has_critic=True)
            continue
        with pytest.raises(InputError, match=f"{name} with these settings takes the gradient or the value of every"):
            require_policy(kind(), memoryless=False, has_critic=True)
    with pytest.raises(InputError, match="reinforce with these settings takes the gradient"):
        require_policy(Reinforce(baseline="least_variance"), memoryless=False, has_critic=True)


def test_methods_that_fit_a_critic_refuse_a_policy_without_one() -> None:
    fits = (PPO(critic_warmup=1), A2C(critic=Critic(epochs=1)), Reinforce(baseline="value"), OffPolicy())
    for method in fits:
        require_policy(method, memoryless=False, has_critic=True)
        with pytest.raises(InputError, match=f"critic is none, but {method.name} with these settings fits one"):
            require_policy(method, memoryless=False, has_critic=False)
    for method in (PPO(), GRPO(), Reinforce(), OffPolicy(baseline="none")):
        require_policy(method, memoryless=False, has_critic=False)


@pytest.mark.parametrize("kind", [PPO, PPOKL, TRPO, GRPO, ReinforcePP, OffPolicy, A2C, Impala, RLOO])
def test_only_a_loss_with_a_ratio_follows_a_policy_that_has_moved(kind: type[Method]) -> None:
    """The gradient along an action's log-probability, by the ratio new / old of 1.1, inside every clip: 1.1 times that
    at the old policy, or the same.
    """
    policy, method = TabularPolicy(4, 3), kind()
    slopes = []
    for moved in (0.0, math.log(1.1)):
        rollout = make_rollout(policy, rows=4, steps=1)
        rollout = replace(rollout, groups=torch.tensor([0, 0, 1, 1]))
        state = method.initial_state() | {"progress": torch.tensor(0.0), "update": torch.tensor(0)}
        if "penalty" in state:
            state["penalty"] *= 0.0
        batch, _ = method.estimate(rollout, state)
        batch = batch._replace(advantages=torch.ones_like(batch.advantages))
        logprobs = (batch.logprobs + moved).requires_grad_()
        output = PolicyOutput(logprobs, torch.zeros_like(logprobs), torch.zeros_like(logprobs))
        slopes.append(torch.autograd.grad(method.loss(output, batch, state)[0].sum(), logprobs)[0])
    growth = 1.0 if method.single_step else 1.1
    torch.testing.assert_close(slopes[1], growth * slopes[0], rtol=1e-9, atol=0)


REWARDED = [kind for kind in METHODS.values() if hasattr(kind(), "entropy_coef") and not kind.replays]


@pytest.mark.parametrize("kind", REWARDED)
def test_an_entropy_bonus_lowers_the_loss_by_its_weight(kind: type[Method]) -> None:
    """Per action, and nothing else in the loss depends on the entropy; replayed entropies are in the tests of those."""
    policy, method = TabularPolicy(4, 3), kind(entropy_coef=0.3)
    rollout = replace(make_rollout(policy, rows=4, steps=1), groups=torch.tensor([0, 0, 1, 1]))
    state = method.initial_state() | {"progress": torch.tensor(0.0), "update": torch.tensor(0)}
    batch, _ = method.estimate(rollout, state)
    entropy = torch.rand_like(batch.logprobs).requires_grad_()
    output = PolicyOutput(batch.logprobs, torch.zeros_like(entropy), entropy)
    slope = torch.autograd.grad(method.loss(output, batch, state)[0].sum(), entropy)[0]
    torch.testing.assert_close(slope, torch.full_like(slope, -0.3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [PPO, GRPO, ReinforcePP])
@pytest.mark.parametrize(("ratio", "advantage", "slope"), [(1.5, 1, 0), (1.5, -1, 1.5), (0.5, 1, -0.5), (0.5, -1, 0)])
def test_a_clipped_ratio_gains_nothing_beyond_the_clip(
    kind: type[Method], ratio: float, advantage: float, slope: float
) -> None:
    """-min(r A, clip(r, .8, 1.2) A) (Schulman et al., 2017, eq. 7): its slope along log r is -r A, or 0."""
    method = kind(clip=0.2)
    rollout = replace(make_rollout(TabularPolicy(4, 3), rows=4, steps=1), groups=torch.tensor([0, 0, 1, 1]))
    state = method.initial_state() | {"progress": torch.tensor(0.0), "update": torch.tensor(0)}
    batch, _ = method.estimate(rollout, state)
    batch = batch._replace(advantages=torch.full_like(batch.advantages, advantage))
    logprobs = (batch.logprobs + math.log(ratio)).requires_grad_()
    output = PolicyOutput(logprobs, torch.zeros_like(logprobs), torch.zeros_like(logprobs))
    found = torch.autograd.grad(method.loss(output, batch, state)[0].sum(), logprobs)[0]
    torch.testing.assert_close(found, torch.full_like(found, slope), rtol=0, atol=1e-12)


def test_every_method_has_settings_that_are_allowed() -> None:
    """What learns from data has recipes of its own; TD actor-critic is the name of a setting of A2C."""
    rewarded = {name for name, kind in METHODS.items() if kind.learns_from == "rewards"}
    assert {name for name, _ in control_presets.PRESETS} == {*rewarded, "td_actor_critic"}
    for settings in control_presets.PRESETS.values():
        size = getattr(settings.collect, "responses_per_prompt", 1) * getattr(settings.collect, "episodes_per_start", 1)
        require_settings(settings.method, settings.optimize, group_size=size)
    assert set(lm_presets.PRESETS) <= set(METHODS)
    for preset in lm_presets.PRESETS.values():
        size = preset.improve.collect.responses_per_prompt
        require_settings(preset.improve.method, preset.improve.optimize, group_size=size)


def test_every_method_has_a_row_in_the_docs() -> None:
    section = DOCS.read_text(encoding="utf-8").partition("## What each is")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows if row.count(" | ") != 7] == []
    assert {row.split("`")[1] for row in rows} == {*METHODS, "td_actor_critic", "rlhf/control/a3c.py"}


CHARGING = [kind for kind in methods().values() if "kl_coef" in {field.name for field in fields(kind)}]


@pytest.mark.parametrize("kind", CHARGING, ids=lambda kind: kind.name)
def test_a_charge_without_a_reference_is_refused_and_not_forgotten(kind: type[Method]) -> None:
    rollout = replace(make_rollout(TabularPolicy(4, 3), rows=4, steps=4), groups=torch.tensor([0, 0, 1, 1]))
    method = kind(kl_coef=0.1)
    state = {**method.initial_state(), "update": torch.tensor(0), "progress": torch.tensor(0.0)}
    with pytest.raises(InputError, match="kl_coef charges for the KL to a reference, and the rollout has none"):
        method.estimate(rollout, state)
