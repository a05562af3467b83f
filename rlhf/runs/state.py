"""A nested state on disk, bit for bit: the tree in state.json, its tensors in state.safetensors. Nothing is pickled."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

TREE = "state.json"
TENSORS = "state.safetensors"


def save_state(folder: Path, state: Any) -> None:
    """Writes nested dicts, lists and tuples of tensors, arrays, numbers, strings, bools and None.

    Dicts keep their order and their int keys. Tensors are stored by value: what shared memory no longer does.

    Raises:
        TypeError: Something else is in the state; the message says where.
    """
    tensors: dict[str, Tensor] = {}
    tree = _encode(state, "state", tensors)
    save_file(_separate(tensors), folder / TENSORS)
    (folder / TREE).write_text(json.dumps(tree, allow_nan=False), encoding="utf-8")


def load_state(folder: Path) -> Any:
    """What `save_state` was given; tensors come back on the CPU."""
    tree = json.loads((folder / TREE).read_text(encoding="utf-8"))
    return _decode(tree, load_file(folder / TENSORS))


def _encode(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for `value`. Every JSON object is `{tag: content}`, so nothing in the state can be taken for a tag."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": struct.pack(">d", value).hex()}
    if type(value) is list:
        return [_encode(item, f"{where}[{index}]", tensors) for index, item in enumerate(value)]
    if type(value) is tuple:
        return {"tuple": [_encode(item, f"{where}[{index}]", tensors) for index, item in enumerate(value)]}
    if isinstance(value, dict):
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(f"{where} has the key {key!r}; keys must be strings or integers.")
        return {"dict": [[key, _encode(item, f"{where}[{key!r}]", tensors)] for key, item in value.items()]}
    if isinstance(value, Tensor) and value.layout == torch.strided:
        return {"tensor": _add(tensors, where, value.detach())}
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject and value.dtype.names is None:
        tag = "array" if isinstance(value, np.ndarray) else "scalar"
        content = torch.frombuffer(bytearray(value.tobytes()), dtype=torch.uint8) if value.nbytes else torch.empty(0)
        return {tag: [_add(tensors, where, content), value.dtype.str, list(value.shape)]}
    raise TypeError(
        f"{where} is a {type(value).__name__}; a state holds dicts, lists, tuples, dense tensors, arrays, "
        "numbers, strings, bools and None."
    )


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    [(tag, content)] = value.items()
    if tag == "float":
        return struct.unpack(">d", bytes.fromhex(content))[0]
    if tag == "tuple":
        return tuple(_decode(item, tensors) for item in content)
    if tag == "dict":
        return {key: _decode(item, tensors) for key, item in content}
    if tag == "tensor":
        # safetensors maps the file into memory; a copy outlives the checkpoint and is aligned like any other tensor.
        return tensors[content].clone()
    name, dtype, shape = content
    array = np.frombuffer(tensors[name].numpy().tobytes(), dtype=dtype).reshape(shape).copy()
    return array if tag == "array" else array[()]


def _add(tensors: dict[str, Tensor], where: str, tensor: Tensor) -> str:
    name = f"{len(tensors)} {where}"
    tensors[name] = tensor
    return name


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors of which no two share memory, as safetensors needs them."""
    separate = {}
    seen = set()
    for name, tensor in tensors.items():
        content = tensor.cpu().contiguous()
        if content.untyped_storage().data_ptr() in seen:
            content = content.clone()
        seen.add(content.untyped_storage().data_ptr())
        separate[name] = content
    return separate
