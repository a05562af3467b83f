"""Every algorithm by name."""

from __future__ import annotations

from typing import Any

from tyro.conf import AvoidSubcommands

from rlhf.algorithms import ppo

# Behaviour cloning learns from demonstrations, not from rewards, so it is no choice of method.
ALGORITHMS: dict[str, Any] = {"ppo": ppo}

# Of a config's field that may hold any of them: the command line then takes the options of the one that it holds.
Method = AvoidSubcommands[ppo.Config]


def algorithm_of(config: Any) -> Any:
    """The module whose Config this is."""
    return next(module for module in ALGORITHMS.values() if type(config) is module.Config)
