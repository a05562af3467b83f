"""A policy whose weights, gradients and moments are spread over the processes (FSDP2; torch's fully_shard).

Each layer is put together when a pass of an update comes to it. Acting and evaluating, in which every process takes as
many passes as its own rows need, happen with all of it together (`whole`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from rlhf.errors import InputError


def shards(accelerator: Accelerator) -> bool:
    """Whether Accelerate's config asks for it."""
    return accelerator.distributed_type == DistributedType.FSDP


def is_sharded(module: nn.Module) -> bool:
    return isinstance(module, FSDPModule)


def require_unsharded(policy: nn.Module) -> None:
    """Refuses to read files into parts of weights.

    Raises:
        InputError: An earlier run of this process spread the policy.
    """
    if is_sharded(policy):
        raise InputError(
            "the policy was spread over the processes by an earlier run of this program, and saved weights are read "
            "into whole ones; load the policy anew, and resume with that."
        )


def shard(policy: Any, accelerator: Accelerator) -> None:
    """Spreads the policy, in place, and the copy that it keeps as reference, as far as that was not done by an earlier
    phase."""
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for parts in policy.shardable:
        for part in [] if is_sharded(parts[-1]) else parts:
            fully_shard(part, mesh=mesh)
            # Gradients are sums over all processes here, not means.
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)


@contextmanager
def whole(policy: Any) -> Iterator[None]:
    """Meanwhile each process holds all weights, so that it may take passes that the others do not take. All must enter
    together."""
    if not is_sharded(policy):
        yield
        return
    roots = [parts[-1] for parts in policy.shardable]
    units = [part for parts in policy.shardable for part in parts]
    for root in roots:
        # Otherwise the first layer that is called by itself would take itself for the root.
        root._get_fsdp_state()._lazy_init()
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(unit not in roots, recurse=False)


def put_together(state: Any) -> Any:
    """The same tree with whole tensors, on the CPU; all processes must call it."""
    return tree_map(lambda leaf: together(leaf).cpu() if isinstance(leaf, DTensor) else leaf, state)


def weights_of(policy: nn.Module) -> dict[str, Tensor] | None:
    """All weights on the main process, nothing on the others, which must call it too; None where nothing is spread."""
    if not is_sharded(policy):
        return None
    weights: dict[str, Any] = get_model_state_dict(
        policy, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    first: dict[int, str] = {}
    for name, parameter in policy.named_parameters(remove_duplicate=False):
        # What is tied is one tensor again, which is written once.
        own = first.setdefault(id(parameter), name)
        if own in weights and name in weights:
            weights[name] = weights[own]
    return weights


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads what `put_together` made of a state, spread as the parameters are that it belongs to."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def spread(moment: Any, parameter: Tensor) -> Any:
        if not (isinstance(parameter, DTensor) and torch.is_tensor(moment) and moment.shape == parameter.shape):
            return moment
        return distribute_tensor(moment.to(parameter.device), parameter.device_mesh, parameter.placements)

    moments = {
        number: {name: spread(moment, parameters[int(number)]) for name, moment in own.items()}
        for number, own in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})


def together(tensor: Tensor) -> Tensor:
    """All of it; all processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
