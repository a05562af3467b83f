"""What a run on a language model will take: peak memory by part, seconds of an update by phase.

Only the model's config is read. A model of its sizes and random weights acts for a few tokens and takes a gradient of a
few rows; where it is large, one of few layers does. Memory and time are linear in tokens and layers, so the rest is
multiplication. It is the code of a run that is measured, so whatever the run does (an adapter, a precision, shared
prompts, activations computed again) counts as it will.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import psutil
import torch
from rich import box
from rich.table import Column, Table
from transformers import AutoModelForCausalLM, PretrainedConfig

from rlhf.errors import InputError
from rlhf.lm.calibration import Planned, measured
from rlhf.lm.load import load_model_config
from rlhf.lm.memory import free_memory
from rlhf.runs.console import plain_console

# A model is measured whole if its weights take less than this; else so many of its layers, twice.
_WHOLE, _FEW, _MORE = 2**30, 2, 4
# Parts of which only one is there at a time, and what takes the time of each.
PHASES = {"collecting": ("reading", "responding", "scoring", "reference"), "learning": ("learning",)}


class Plan(NamedTuple):
    """What one process takes.

    Args:
        memory: Bytes by part. Of `PHASES` only the larger is there at a time.
        seconds: Of an update by phase; the user's reward functions are not among them.
        largest: Tokens of the largest pass that a gradient is taken of, padding included.
        per_cost: Bytes of each of them.
    """

    memory: dict[str, float]
    seconds: dict[str, float]
    largest: float
    per_cost: float

    @property
    def peak(self) -> float:
        """Bytes in use at once."""
        staying = sum(size for name, size in self.memory.items() if name not in PHASES)
        return staying + max(self.memory[name] for name in PHASES)


def plan(planned: Planned, device: torch.device) -> Plan:
    """Measures on `device`, for some seconds, and multiplies.

    Raises:
        InputError: The model's config cannot be read, or is of a model that cannot be trained here.
    """
    config = load_model_config(planned.model.model)
    before = psutil.Process().memory_info().rss if device.type == "cpu" else 0
    layers = config.get_text_config().num_hidden_layers
    if layers <= _MORE or _size(config) <= _WHOLE:
        found = measured(planned, config, device)
    else:
        few, more = (measured(planned, _with_layers(config, number), device) for number in (_FEW, _MORE))
        more_layers = (layers - _FEW) / (_MORE - _FEW)
        found = {name: max(few[name] + more_layers * (more[name] - few[name]), 0.0) for name in few}
    return _multiplied(planned, found, before)


def _size(config: PretrainedConfig) -> int:
    """Bytes of a model's weights in float32."""
    with torch.device("meta"):
        return 4 * sum(each.numel() for each in AutoModelForCausalLM.from_config(config).parameters())


def _with_layers(config: PretrainedConfig, number: int) -> PretrainedConfig:
    changed = copy.deepcopy(config)
    text = changed.get_text_config()
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:number]
    text.num_hidden_layers = number
    return changed


def _multiplied(planned: Planned, found: dict[str, float], before: int) -> Plan:
    process, optimize = planned.processes, planned.optimize
    size = planned.collect.prompts_per_rollout // process * planned.collect.responses_per_prompt
    cache = size * (planned.prompt_tokens + planned.max_new_tokens) * found["cache of a token"]
    per_cost = found["learn bytes of a token"]
    memory = {
        "libraries": float(before),
        "weights": found["weights"],
        "critic": found["critic"],
        "reference": found["reference"],
        "optimizer": 2 * found["trained"],
        "gradients": found["trained"] * (2 if process > 1 else 1),
        "collecting": max(found["reading bytes"], cache + found["step bytes"]),
        "learning": found["learn bytes of a pass"] + per_cost * found["largest"],
    }

    def passes(name: str, cells: str) -> float:
        whole, each = found[f"{name} seconds of a pass"], found[f"{name} seconds of a token"]
        return whole * found[f"{cells} passes"] + each * found[cells]

    steps = optimize.epochs * optimize.minibatches
    seconds = {
        "reading": found["reading seconds"],
        # The first token comes of reading.
        "responding": found["step seconds"] * (planned.response_tokens - 1),
        "scoring": passes("score", "scored"),
        "reference": passes("refer", "scored"),
        "learning": steps * passes("learn", "learned"),
    }
    return Plan(memory, seconds, found["largest"], per_cost)


def room(device: torch.device) -> float:
    """Bytes that are free for this process, with those that it has."""
    return free_memory(device) + (psutil.Process().memory_info().rss if device.type == "cpu" else 0)


def show(found: Plan, free: float) -> None:
    """Prints what it takes, part by part and phase by phase."""
    table = Table(
        Column(no_wrap=True),
        Column("GiB", justify="right"),
        Column("seconds an update", justify="right"),
        box=box.SIMPLE,
    )
    for name, size in found.memory.items():
        phases = PHASES.get(name, ())
        seconds = f"{sum(found.seconds[phase] for phase in phases):.1f}" if phases else ""
        table.add_row(name, f"{size / 2**30:.2f}", seconds)
        for phase in phases if len(phases) > 1 else ():
            table.add_row(f"  {phase}", "", f"{found.seconds[phase]:.1f}")
    table.add_section()
    table.add_row("peak", f"{found.peak / 2**30:.2f}", f"{sum(found.seconds.values()):.1f}")
    table.add_row("free", f"{free / 2**30:.2f}", "")
    plain_console().print(table)


def require_fits(planned: Planned, found: Plan, free: float) -> None:
    """Refuses a run that needs more than `free` bytes.

    Raises:
        InputError: With the settings to change.
    """
    over = found.peak - free
    if over > 0:
        raise InputError(
            f"one process would hold {found.peak / 2**30:.2f} GiB at once and has {free / 2**30:.2f}. What saves "
            f"memory: {'; '.join(_cures(planned, found, over))}."
        )


def _cures(planned: Planned, found: Plan, over: float) -> list[str]:
    cures, memory, model = [], found.memory, planned.model
    if memory["learning"] > memory["collecting"]:
        row = planned.prompt_tokens + planned.max_new_tokens
        cost = int(found.largest - over / found.per_cost) if found.per_cost > 0 else row - 1
        cures.append(f"micro_batch_cost {max(cost, row)}{'' if cost >= row else ', which is one row'}")
        if not model.gradient_checkpointing:
            cures.append("gradient_checkpointing")
    else:
        share = max(1.0 - over / memory["collecting"], 0.0)
        cures.append(f"prompts_per_rollout {max(int(share * planned.collect.prompts_per_rollout), 1)}")
    for name, given, cure in (
        ("optimizer", model.lora_rank > 0, "lora_rank, which needs no gradient and optimizer for the rest"),
        ("reference", model.lora_rank > 0 or model.reference_dtype == "bfloat16", "reference_dtype bfloat16"),
        ("critic", model.critic != "separate", "critic shared"),
    ):
        if not given and memory[name]:
            cures.append(f"{cure} ({name}: {memory[name] / 2**30:.2f} GiB)")
    return cures
