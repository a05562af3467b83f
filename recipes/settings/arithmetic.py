"""Settings with which each algorithm learns recipes/arithmetic.py; measured in docs/algorithms.md."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from recipes.settings.language import ImproveConfig
from rlhf import optimize
from rlhf.algorithms import a2c, cispo, grpo, gspo, impala, off_policy, ppo, ppo_kl, reinforce, reinforce_pp, rloo, trpo
from rlhf.algorithms.checks import fitting
from rlhf.algorithms.choices import make_method
from rlhf.errors import InputError
from rlhf.lm.settings import CollectResponses
from rlhf.loop import Duration


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How a method improves a small model."""

    critic: Literal["shared", "separate", "none"]
    improve: ImproveConfig


_TRAIN = Duration(updates=60, eval_every=10, checkpoint_every=10)
_ONE_EACH = CollectResponses(prompts_per_rollout=512)
_GROUPS = CollectResponses(prompts_per_rollout=64, responses_per_prompt=8)
_SEVERAL_STEPS = optimize.Optimize(learning_rate=5e-4, schedule="linear", epochs=2, minibatches=2, whiten="batch")
_ONE_STEP = optimize.Optimize(learning_rate=1e-3, schedule="linear", epochs=1, minibatches=1, whiten="batch")

PRESETS = {
    "ppo": Preset(
        critic="shared",
        improve=ImproveConfig(
            collect=_ONE_EACH,
            method=ppo.PPO(gamma=1.0, gae_lambda=0.95, value_coef=0.5),
            train=_TRAIN,
            optimize=_SEVERAL_STEPS,
        ),
    ),
    "ppo_kl": Preset(
        critic="shared",
        improve=ImproveConfig(collect=_ONE_EACH, method=ppo_kl.PPOKL(), train=_TRAIN, optimize=_SEVERAL_STEPS),
    ),
    "trpo": Preset(
        critic="shared",
        improve=ImproveConfig(
            collect=_ONE_EACH, method=trpo.TRPO(fisher_shares=10), train=_TRAIN, optimize=_SEVERAL_STEPS
        ),
    ),
    "a2c": Preset(
        critic="shared",
        improve=ImproveConfig(collect=_ONE_EACH, method=a2c.A2C(), train=_TRAIN, optimize=_ONE_STEP),
    ),
    "reinforce": Preset(
        critic="none",
        improve=ImproveConfig(
            collect=_ONE_EACH, method=reinforce.Reinforce(), train=_TRAIN, optimize=replace(_ONE_STEP, whiten="none")
        ),
    ),
    "impala": Preset(
        critic="shared",
        improve=ImproveConfig(
            collect=replace(_ONE_EACH, lag=2),
            method=impala.Impala(rho_clip=2.0),
            train=_TRAIN,
            optimize=replace(_ONE_STEP, learning_rate=5e-4, whiten="none"),
        ),
    ),
    "off_policy": Preset(
        critic="shared",
        improve=ImproveConfig(
            collect=replace(_ONE_EACH, lag=2),
            method=off_policy.OffPolicy(),
            train=_TRAIN,
            optimize=replace(_ONE_STEP, learning_rate=3e-4),
        ),
    ),
    "grpo": Preset(
        critic="none",
        improve=ImproveConfig(
            collect=_GROUPS, method=grpo.GRPO(), train=_TRAIN, optimize=replace(_SEVERAL_STEPS, whiten="none")
        ),
    ),
    "gspo": Preset(
        critic="none",
        improve=ImproveConfig(
            collect=_GROUPS,
            # Of the two or three actions of an answer the mean moves nearly as far as each.
            method=gspo.GSPO(clip=0.1, clip_high=0.2),
            train=_TRAIN,
            optimize=replace(_SEVERAL_STEPS, whiten="none"),
        ),
    ),
    "cispo": Preset(
        critic="none",
        improve=ImproveConfig(
            collect=_GROUPS, method=cispo.CISPO(), train=_TRAIN, optimize=replace(_SEVERAL_STEPS, whiten="none")
        ),
    ),
    "rloo": Preset(
        critic="none",
        improve=ImproveConfig(
            collect=_GROUPS, method=rloo.RLOO(), train=_TRAIN, optimize=replace(_ONE_STEP, whiten="none")
        ),
    ),
    "reinforce_pp": Preset(
        critic="none",
        improve=ImproveConfig(
            collect=_ONE_EACH, method=reinforce_pp.ReinforcePP(), train=_TRAIN, optimize=_SEVERAL_STEPS
        ),
    ),
}


def preset(method: str) -> Preset:
    """The settings for this method: a name above, or path/to/file.py:Class, which takes those that go with it."""
    if method in PRESETS:
        return PRESETS[method]
    chosen = make_method(method)
    if chosen.needs_memoryless or chosen.critic_of == "actions":
        raise InputError(f"{method} is no method for language models; choose one of {', '.join(PRESETS)}.")
    acting = _GROUPS if chosen.needs_groups else _ONE_EACH
    settings = fitting(chosen, _ONE_STEP if chosen.single_step else _SEVERAL_STEPS)
    return Preset(
        critic="none" if chosen.critic_of == "none" else "shared",
        improve=ImproveConfig(collect=acting, method=chosen, train=_TRAIN, optimize=settings),
    )
