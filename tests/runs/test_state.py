from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlhf.runs.state import load_state, save_state


def same(left: Any, right: Any) -> bool:
    """Equal in type and in every bit."""
    if type(left) is not type(right):
        return False
    if isinstance(left, Tensor):
        bits = [x.contiguous().reshape(-1).view(torch.uint8) for x in (left, right)]
        return left.dtype == right.dtype and left.shape == right.shape and torch.equal(*bits)
    if isinstance(left, np.ndarray | np.generic):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if isinstance(left, float):
        return struct.pack("d", left) == struct.pack("d", right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def round_trip(folder, state: Any) -> Any:
    save_state(folder, state)
    return load_state(folder)


DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_state_keeps_tensors_of_every_type(tmp_path, dtype):
    state = {"x": torch.tensor([0, 1, 0, 3]).to(dtype), "scalar": torch.tensor(1).to(dtype)}
    assert same(round_trip(tmp_path, state), state)


def test_state_keeps_signed_zeros_nans_and_infinities(tmp_path):
    payload = torch.tensor([0x7FC00123, 0x7F800001], dtype=torch.int32).view(torch.float32)
    state = [torch.tensor([-0.0, math.inf, -math.inf]), payload, torch.tensor([-0.0, math.nan]).bfloat16()]
    state += [-0.0, math.nan, -math.nan, math.inf, -math.inf, 5e-324, 0.1 + 0.2, 1e308]
    assert same(round_trip(tmp_path, state), state)


def test_state_keeps_empty_and_zero_dimensional_tensors(tmp_path):
    state = [torch.empty(0), torch.empty(0), torch.empty(2, 0, 3, dtype=torch.int64), torch.tensor(2.5)]
    assert same(round_trip(tmp_path, state), state)


def test_state_keeps_shared_and_strided_tensors(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    state = {"base": base, "again": base, "view": base[1:], "transposed": base.T, "parameter": nn.Parameter(base).data}
    assert same(round_trip(tmp_path, state), state)


def test_state_keeps_key_types_order_and_containers(tmp_path):
    state = {
        "z": 1,
        "a": {1: "int", "1": "string"},
        "t": (1, (2.0, [None, True])),
        "big": 2**127,
        "": {},
        "tensor": "x",
    }
    assert same(round_trip(tmp_path, state), state)


def test_state_keeps_arrays_and_numpy_scalars(tmp_path):
    state = [np.arange(6.0).reshape(2, 3).T, np.array(-0.0), np.empty((0, 2), np.int8), np.array(["a", "bcd"])]
    state += [np.float64(0.1), np.float32(0.1), np.uint64(2**64 - 1), np.bool_(True), np.array([1, 2], ">i2")]
    assert same(round_trip(tmp_path, state), state)


def test_state_keeps_a_numpy_generator(tmp_path):
    generator = np.random.default_rng(3)
    other = np.random.default_rng(4)
    other.bit_generator.state = round_trip(tmp_path, generator.bit_generator.state)
    assert generator.random() == other.random()


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"foreach": False, "amsgrad": True}])
def test_state_resumes_adam_bitwise(tmp_path, options):
    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Linear(5, 3)
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2, **options)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(torch.linspace(-1, 1, 5)).square().sum().backward()
        optimizer.step()

    model, optimizer = make()
    step(model, optimizer)
    resumed, resumed_optimizer = make()
    saved = round_trip(tmp_path, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    assert same(saved["optimizer"], optimizer.state_dict())
    resumed.load_state_dict(saved["model"])
    resumed_optimizer.load_state_dict(saved["optimizer"])
    step(model, optimizer)
    step(resumed, resumed_optimizer)
    assert same(dict(resumed.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": [1, {2, 3}]}, r"state\['a'\]\[1\] is a set"),
        ({"a": {1.5: 0}}, r"state\['a'\] has the key 1.5"),
        ({"a": {True: 0}}, "key True"),
        (np.array([object()]), "state is a ndarray"),
        (torch.eye(2).to_sparse(), "state is a Tensor"),
    ],
)
def test_state_refuses_what_it_cannot_keep(tmp_path, state, message):
    with pytest.raises(TypeError, match=message):
        save_state(tmp_path, state)
