"""Saved policies of every kind."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from rlhf.control.policy import ControlPolicy, PolicyConfig, Spaces
from rlhf.control.saved import read_description, read_tensors
from rlhf.control.twin_policy import TwinPolicy
from rlhf.errors import InputError
from rlhf.sources import folder_sums

KINDS: dict[str, type[ControlPolicy] | type[TwinPolicy]] = {kind.__name__: kind for kind in (ControlPolicy, TwinPolicy)}


def load_control_policy(folder: Path) -> ControlPolicy | TwinPolicy:
    """The policy that was saved in `folder`, ready to act on raw observations."""
    folder = Path(folder).expanduser()
    description = read_description(folder)
    if description["kind"] not in KINDS:
        raise InputError(f"{folder} holds a {description['kind']}; this version knows {', '.join(KINDS)}.")
    kind = KINDS[description["kind"]]
    policy = kind(Spaces(**description["spaces"]), PolicyConfig(**description["config"]), seed=0)
    weight_name = next(name for name, _ in policy.named_parameters())
    if read_tensors(folder)[weight_name].dtype == torch.float64:
        policy.double()
    policy.load(folder)
    policy.inputs = partial(folder_sums, "policy", Path(folder))
    return policy
