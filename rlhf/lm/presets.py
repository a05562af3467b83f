"""Settings with which each algorithm learns recipes/arithmetic.py; measured in docs/algorithms.md."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from rlhf import optimize, train
from rlhf.algorithms import a2c, grpo, impala, off_policy, ppo, ppo_kl, reinforce, reinforce_pp, rloo, trpo
from rlhf.errors import InputError
from rlhf.lm import collect
from rlhf.lm.finetune import ImproveConfig


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How a method improves a small model."""

    critic: Literal["shared", "separate", "none"]
    improve: ImproveConfig


_TRAIN = train.Config(updates=60, eval_every=10, checkpoint_every=10)
_ONE_EACH = collect.Config(prompts_per_rollout=512)
_GROUPS = collect.Config(prompts_per_rollout=64, responses_per_prompt=8)
_SEVERAL_STEPS = optimize.Config(learning_rate=5e-4, schedule="linear", epochs=2, minibatches=2, whiten="batch")
_ONE_STEP = optimize.Config(learning_rate=1e-3, schedule="linear", epochs=1, minibatches=1, whiten="batch")

PRESETS = {
    "ppo": Preset(
        critic="shared",
        improve=ImproveConfig(
            collect=_ONE_EACH,
            method=ppo.Config(gamma=1.0, gae_lambda=0.95, value_coef=0.5),
            train=_TRAIN,
            optimize=_SEVERAL_STEPS,
        ),
    ),
    "ppo_kl": Preset(
        critic="shared",
        improve=ImproveConfig(collect=_ONE_EACH, method=ppo_kl.Config(), train=_TRAIN, optimize=_SEVERAL_STEPS),
    ),
    "trpo": Preset(
        critic="shared",
        improve=ImproveConfig(
            collect=_ONE_EACH, method=trpo.Config(fisher_shares=10), train=_TRAIN, optimize=_SEVERAL_STEPS
        ),
    ),
    "a2c": Preset(
        critic="shared",
        improve=ImproveConfig(collect=_ONE_EACH, method=a2c.Config(), train=_TRAIN, optimize=_ONE_STEP),
    ),
    "reinforce": Preset(
        critic="none",
        improve=ImproveConfig(
            collect=_ONE_EACH, method=reinforce.Config(), train=_TRAIN, optimize=replace(_ONE_STEP, whiten="none")
        ),
    ),
    "impala": Preset(
        critic="shared",
        improve=ImproveConfig(
            collect=replace(_ONE_EACH, lag=2),
            method=impala.Config(rho_clip=2.0),
            train=_TRAIN,
            optimize=replace(_ONE_STEP, learning_rate=5e-4, whiten="none"),
        ),
    ),
    "off_policy": Preset(
        critic="shared",
        improve=ImproveConfig(
            collect=replace(_ONE_EACH, lag=2),
            method=off_policy.Config(),
            train=_TRAIN,
            optimize=replace(_ONE_STEP, learning_rate=3e-4),
        ),
    ),
    "grpo": Preset(
        critic="none",
        improve=ImproveConfig(
            collect=_GROUPS, method=grpo.Config(), train=_TRAIN, optimize=replace(_SEVERAL_STEPS, whiten="none")
        ),
    ),
    "rloo": Preset(
        critic="none",
        improve=ImproveConfig(
            collect=_GROUPS, method=rloo.Config(), train=_TRAIN, optimize=replace(_ONE_STEP, whiten="none")
        ),
    ),
    "reinforce_pp": Preset(
        critic="none",
        improve=ImproveConfig(collect=_ONE_EACH, method=reinforce_pp.Config(), train=_TRAIN, optimize=_SEVERAL_STEPS),
    ),
}


def preset(algorithm: str) -> Preset:
    """The settings for this algorithm."""
    if algorithm not in PRESETS:
        raise InputError(f"{algorithm} is no algorithm for language models; choose one of {', '.join(PRESETS)}.")
    return PRESETS[algorithm]
