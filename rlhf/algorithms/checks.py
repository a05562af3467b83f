"""What a method is not defined for is refused by name, before anything is loaded."""

from __future__ import annotations

from dataclasses import replace

from rlhf.algorithms.base import Method
from rlhf.errors import InputError
from rlhf.optimize import Optimize


def require_settings(method: Method, settings: Optimize, *, group_size: int) -> None:
    """Refuses settings that the method would not heed, or that make it another method.

    Args:
        settings: Its `whiten` may scale advantages twice, or not at all; it may take several steps on each batch, where
            without a ratio in the loss nothing corrects for a policy that has moved, or end an update early that has
            no second step.
        group_size: Rows that share a start, in what acts.
    """
    name, steps = method.name, settings.epochs * settings.minibatches
    if settings.whiten not in method.whitens:
        raise InputError(
            f"optimize.whiten is {settings.whiten}, but {name} needs {' or '.join(method.whitens)}; set it so."
        )
    if steps > 1 and method.single_step:
        raise InputError(
            f"optimize.epochs x optimize.minibatches is {steps}, but {name} takes one step on each batch; set both to "
            "1."
        )
    if settings.target_kl and (method.single_step or not method.stops_early):
        raise InputError(
            f"optimize.target_kl is {settings.target_kl}, but no update of {name} can end early by it: its policy "
            "takes one step on each batch, or other transitions for each; set it to 0."
        )
    require_rate(settings, has_critic=method.critic_of != "none", what=name)
    if group_size < 2 and method.needs_groups:
        raise InputError(
            f"{name} compares rows that share a start, and each row is alone; in the settings of collect, raise the "
            "number of rows that share a start to at least 2."
        )


def require_rate(settings: Optimize, *, has_critic: bool, what: str = "the policy") -> None:
    """Refuses a learning rate of a critic that is not there."""
    if settings.critic_learning_rate and not has_critic:
        raise InputError(
            f"optimize.critic_learning_rate is {settings.critic_learning_rate:g}, but {what} has no critic; set it to "
            "0."
        )


def require_dual_clip(dual_clip: float) -> None:
    """Refuses a bound that the plain surrogate already passes at a ratio of 1."""
    if 0 < dual_clip <= 1:
        raise InputError(
            f"dual_clip is {dual_clip}; at 1 or below nothing would be learned where the advantage is negative. Make "
            "it more than 1, such as 3, or 0, which is off."
        )


def resolved(method: Method, settings: Optimize) -> Optimize:
    """The settings with `whiten` as it goes with the method, where they leave that open."""
    return replace(settings, whiten=method.whitens[-1]) if settings.whiten == "usual" else settings


def fitting(method: Method, settings: Optimize) -> Optimize:
    """The settings with what does not go with the method put right: its whitening, one step, no early end, no rate of a
    critic."""
    if settings.whiten != "usual" and settings.whiten not in method.whitens:
        settings = replace(settings, whiten=method.whitens[-1])
    if method.single_step:
        settings = replace(settings, epochs=1, minibatches=1)
    if method.single_step or not method.stops_early:
        settings = replace(settings, target_kl=0.0)
    if method.critic_of == "none":
        settings = replace(settings, critic_learning_rate=0.0)
    return settings


# What has what a method learns from, and which method learns from it.
_TASKS = {
    "rewards": ("rlhf.Prompts or rlhf.Envs", "PPO()"),
    "demonstrations": ("rlhf.Demonstrations", "BehaviourCloning()"),
    "pairs": ("rlhf.Preferences", "DPO()"),
    "labels": ("rlhf.Preferences", "KTO()"),
}


def require_learns_from(method: Method, *sources: str) -> None:
    """Refuses a method that learns from something else than there is.

    Args:
        sources: What there is.
    """
    if method.learns_from not in sources:
        fit = " or ".join(_TASKS[source][1] for source in sources)
        raise InputError(
            f"{method.name} learns from {method.learns_from}, and here there are {' or '.join(sources)}; take {fit}, "
            f"or a task that {method.name} is for ({_TASKS[method.learns_from][0]})."
        )


def require_policy(method: Method, *, memoryless: bool, has_critic: bool) -> None:
    """Refuses a policy that does not give what the method asks of it."""
    if method.needs_memoryless and not memoryless:
        raise InputError(
            f"{method.name} with these settings takes the gradient or the value of every single action, which is a "
            "pass for every token of a language model; it is for control. Choose another method or baseline."
        )
    if method.needs_critic and not has_critic:
        raise InputError(f"critic is none, but {method.name} with these settings fits one; choose shared or separate.")
