"""Every algorithm by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Union

from tyro.conf import AvoidSubcommands, subcommand

from rlhf import optimize
from rlhf.algorithms import (
    a2c,
    discrete_sac,
    eligibility,
    grpo,
    impala,
    off_policy,
    ppo,
    ppo_kl,
    q_actor_critic,
    reinforce,
    reinforce_pp,
    replay_actor_critic,
    rloo,
    sac,
    td_actor_critic,
    trpo,
)
from rlhf.errors import InputError

# Behaviour cloning learns from demonstrations, not from rewards, so it is no choice of method.
ALGORITHMS: dict[str, Any] = {
    "a2c": a2c,
    "discrete_sac": discrete_sac,
    "grpo": grpo,
    "impala": impala,
    "off_policy": off_policy,
    "ppo": ppo,
    "ppo_kl": ppo_kl,
    "q_actor_critic": q_actor_critic,
    "reinforce": reinforce,
    "reinforce_pp": reinforce_pp,
    "replay_actor_critic": replay_actor_critic,
    "rloo": rloo,
    "sac": sac,
    "td_actor_critic": td_actor_critic,
    "td_lambda": eligibility,
    "trpo": trpo,
}

# Those that learn from replayed transitions, which only control has.
REPLAYED = ("discrete_sac", "replay_actor_critic", "sac")
# Those that need the value of every action, or the gradient of each, which a language model does not give.
CONTROL_ONLY = (*REPLAYED, "q_actor_critic", "td_lambda")

# Of a config's field that may hold any of them: the command line then takes the options of the one that it holds.
if TYPE_CHECKING:
    Method = Any
else:
    # Every Config has the same name, so each is told apart by its algorithm's.
    Method = AvoidSubcommands[
        Union[tuple(Annotated[module.Config, subcommand(name)] for name, module in ALGORITHMS.items())]  # noqa: UP007
    ]


def name_of(config: Any) -> str:
    """What the algorithm whose Config this is goes by."""
    return next(name for name, module in ALGORITHMS.items() if type(config) is module.Config)


def algorithm_of(config: Any) -> Any:
    """The module whose Config this is."""
    return ALGORITHMS[name_of(config)]


def require_settings(config: Any, how: optimize.Config, *, lag: int, group_size: int) -> None:
    """Refuses what the method is not defined for.

    Args:
        config: The method's.
        how: Its `whiten` may scale advantages twice, or not at all; it may take several steps on each batch, where
            without a ratio in the loss nothing corrects for a policy that has moved, or end an update early that has
            one step only.
        lag: Updates by which the actors lag; without a ratio in the estimates nothing corrects for theirs.
        group_size: Rows of a rollout that share a start, and are compared with each other.
    """
    name, algorithm = name_of(config), algorithm_of(config)
    needed, steps = getattr(algorithm, "WHITEN", how.whiten), how.epochs * how.minibatches
    if how.whiten != needed:
        raise InputError(f"optimize.whiten is {how.whiten}, but {name} needs {needed}; set it so.")
    if algorithm is reinforce and config.baseline != "value" and how.whiten != "none":
        raise InputError(
            f"optimize.whiten is {how.whiten}, which takes the mean over all actions off in place of the baseline "
            f"{config.baseline}; set it to none."
        )
    single_step = getattr(algorithm, "SINGLE_STEP", False)
    if steps > 1 and single_step:
        raise InputError(
            f"optimize.epochs x optimize.minibatches is {steps}, but {name} takes one step on each batch; set both to "
            "1."
        )
    if how.target_kl and (single_step or algorithm is trpo or name in REPLAYED):
        raise InputError(
            f"optimize.target_kl is {how.target_kl}, but no update of {name} can end early by it: its policy takes one "
            "step on each batch, or other transitions for each; set it to 0."
        )
    if group_size < 2 and (getattr(algorithm, "GROUPS", False) or getattr(config, "baseline", "") == "group"):
        raise InputError(
            f"{name} compares rows that share a start, and each row is alone; in the settings of collect, raise the "
            "number of rows that share a start to at least 2."
        )
    if lag and not getattr(algorithm, "CORRECTS_LAG", False):
        raise InputError(
            f"collect.lag is {lag}, but {name} does not correct for actors that lag; set it to 0, or choose impala or "
            "off_policy."
        )


def require_critic(config: Any, critic: str) -> None:
    """Refuses a language model without values ("none") for a method that fits them before it uses them."""
    fits = (
        getattr(config, "baseline", "") == "value"
        or getattr(config, "critic_warmup", 0)
        or getattr(getattr(config, "critic", None), "epochs", 0)
    )
    if critic == "none" and fits:
        raise InputError(
            f"critic is none, but {name_of(config)} with these settings fits one; choose shared or separate."
        )
