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

# Of a config's field that may hold any of them: the command line then takes the options of the one that it holds.
if TYPE_CHECKING:
    Method = Any
else:
    # Every Config has the same name, so each is told apart by its algorithm's.
    Method = AvoidSubcommands[
        Union[tuple(Annotated[module.Config, subcommand(name)] for name, module in ALGORITHMS.items())]  # noqa: UP007
    ]


def algorithm_of(config: Any) -> Any:
    """The module whose Config this is."""
    return next(module for module in ALGORITHMS.values() if type(config) is module.Config)


def require_settings(config: Any, how: optimize.Config, *, lag: int) -> None:
    """Refuses what the method is not defined for.

    Args:
        config: The method's.
        how: Its `whiten` may scale advantages twice, or not at all; it may take several steps on each batch, where
            without a ratio in the loss nothing corrects for a policy that has moved.
        lag: Updates by which the actors lag; without a ratio in the estimates nothing corrects for theirs.
    """
    algorithm = algorithm_of(config)
    name = next(name for name, module in ALGORITHMS.items() if module is algorithm)
    needed, steps = getattr(algorithm, "WHITEN", how.whiten), how.epochs * how.minibatches
    if how.whiten != needed:
        raise InputError(f"optimize.whiten is {how.whiten}, but {name} needs {needed}; set it so.")
    if steps > 1 and getattr(algorithm, "SINGLE_STEP", False):
        raise InputError(
            f"optimize.epochs x optimize.minibatches is {steps}, but {name} takes one step on each batch; set both to "
            "1."
        )
    if lag and not getattr(algorithm, "CORRECTS_LAG", False):
        raise InputError(
            f"collect.lag is {lag}, but {name} does not correct for actors that lag; set it to 0, or choose impala or "
            "off_policy."
        )
