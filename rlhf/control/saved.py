"""Policies as folders: `policy.json` says what it is, `policy.safetensors` holds its numbers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf.errors import InputError


def write(folder: Path, policy: nn.Module, *, spaces: Any, config: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    description = {"kind": type(policy).__name__, "spaces": asdict(spaces), "config": asdict(config)}
    (folder / "policy.json").write_text(json.dumps(description, indent=2) + "\n")
    save_file({name: x.contiguous() for name, x in policy.state_dict().items()}, folder / "policy.safetensors")


def fill(policy: nn.Module, folder: Path) -> None:
    """Takes over, in place and exactly, what `write` wrote."""
    tensors = read_tensors(folder)
    if _layout(tensors) != _layout(policy.state_dict()):
        raise InputError(f"{folder} holds a policy of other sizes or precision; open it with load_policy.")
    policy.load_state_dict(tensors)


def read_description(folder: Path) -> dict[str, Any]:
    """The kind of the policy, and the fields of its spaces and of its config."""
    try:
        description = json.loads((folder / "policy.json").read_text())
    except FileNotFoundError:
        raise InputError(f"{folder} has no policy.json; give a folder that a policy's save wrote.") from None
    return {name: _with_tuples(part) if isinstance(part, dict) else part for name, part in description.items()}


def read_tensors(folder: Path) -> dict[str, Tensor]:
    try:
        return load_file(folder / "policy.safetensors")
    except FileNotFoundError:
        raise InputError(f"{folder} has no policy.safetensors; give a folder that a policy's save wrote.") from None


def _layout(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
