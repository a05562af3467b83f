"""Every algorithm by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Union

from tyro.conf import AvoidSubcommands, subcommand

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


def require_whitening(config: Any, whiten: str) -> None:
    """Refuses advantages that are scaled twice, or not at all, where the method says how it has to be.

    Args:
        config: The method's.
        whiten: As in `optimize.Config`.
    """
    algorithm = algorithm_of(config)
    needed = getattr(algorithm, "WHITEN", whiten)
    if whiten != needed:
        name = algorithm.__name__.rpartition(".")[2]
        raise InputError(f"optimize.whiten is {whiten}, but {name} needs {needed}; set it so.")
