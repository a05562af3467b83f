"""What an update costs, from .5 to 70 billion weights and from one GPU to 256; and how far the formulas are off.

    PYTHONPATH=. python benchmarks/scaling.py            # the predictions of docs/scaling.md
    PYTHONPATH=. python benchmarks/scaling.py --measure  # the formulas beside operations that were counted

Counted are all products of matrices that a run of PPO of one update makes (torch's FlopCounterMode). Nothing of the
predictions was measured on a GPU: they assume its published figures, and the share of them that is asked of this
project.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import tyro
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

import rlhf
from rlhf.lm.adapters import fresh_adapter
from rlhf.lm.load import build_policy
from rlhf.lm.model import base_of
from rlhf.lm.policy import CausalLM
from rlhf.lm.tokenizers import byte_pair_tokenizer


class Machine(NamedTuple):
    """One GPU and its links, an H100 by its data sheet: bytes, and operations and bytes a second."""

    memory: float = 80e9
    operations: float = 989e12
    bandwidth: float = 3.35e12
    link: float = 450e9
    """To the others of its machine, one way."""
    network: float = 50e9
    """To other machines, one way."""
    per_machine: int = 8
    used: float = 0.4
    """Share of the operations that learning comes to, and of the bandwidth that decoding comes to twice."""


class Model(NamedTuple):
    """Sizes of a transformer, and how it is trained."""

    weights: float
    embedding: float
    """Those of its head, which are read for actions only."""
    layers: int
    width: int
    """Of all heads together."""
    cache: float
    """Numbers kept of a token in all layers."""
    lora: float = 0.0
    """Weights of the adapter; 0: all weights learn."""


class Work(NamedTuple):
    """An update: rows of so many tokens, of which each epoch learns from all."""

    rows: int = 512
    prompt: int = 256
    response: int = 1024
    epochs: int = 1
    minibatches: int = 2
    reference: bool = True
    rescored: bool = True
    """The learner scores what was sampled (half precision, another engine)."""

    @property
    def tokens(self) -> int:
        return self.rows * (self.prompt + self.response)


def operations(model: Model, work: Work) -> dict[str, float]:
    """Of one update, by phase: two a weight and token forward; backward four, or two beside frozen weights."""
    body = (model.weights - model.embedding) * work.tokens + model.embedding * work.rows * work.response
    # Each token reads half of the row in the mean: products with keys and with values.
    attention = 2 * model.layers * model.width * work.tokens * (work.prompt + work.response) / 2
    forward = 2 * (body + attention)
    # Weights that are frozen take no gradient, though what flows through them does; attention has no weights.
    backward = 2 * forward if not model.lora else 2 * body + 4 * attention
    adapter = 6 * model.lora * work.tokens
    return {
        "sampling": forward + adapter / 3,
        "scoring": (work.rescored + work.reference) * (forward + adapter / 3),
        "learning": work.epochs * (forward + backward + adapter),
    }


def held(model: Model, gpus: int, *, sharded: bool, reference_bytes: float = 4.0) -> dict[str, float]:
    """Bytes on one GPU: between updates, and of weights while it acts, when it holds all of them."""
    frozen, learned = (model.weights, model.lora) if model.lora else (0.0, model.weights)
    parts = gpus if sharded else 1
    weights = 2 * frozen + 4 * learned
    reference = 0.0 if model.lora else reference_bytes * model.weights
    return {
        "weights": weights / parts,
        "gradients": 4 * learned * (1 if sharded or gpus == 1 else 2) / parts,
        "optimizer": 8 * learned / parts,
        "reference": reference / parts,
        "more while acting": (weights + reference) * (1 - 1 / parts),
    }


def seconds(model: Model, work: Work, gpus: int, machine: Machine, *, sharded: bool) -> dict[str, float]:
    """Of one update, by phase; what the reward takes is none of them."""
    work_done = operations(model, work)
    rate = machine.operations * machine.used * gpus
    # One token of every row of this GPU at a time: all weights are read, and what is kept of the rows.
    rows = work.rows / gpus
    read = 2 * model.weights + rows * 2 * model.cache * (work.prompt + work.response / 2)
    decoding = work.response * max(
        read / (machine.bandwidth * machine.used / 2), 2 * model.weights * rows / rate * gpus
    )
    learned = model.lora or model.weights
    steps = work.epochs * work.minibatches
    link = machine.link if gpus <= machine.per_machine else machine.network
    share = (gpus - 1) / gpus
    # All-reduce sends everything twice; FSDP2 gathers bfloat16 for forward and backward and scatters gradients.
    moved = steps * (2 * 4 * learned if not sharded else 2 * 2 * model.weights + 4 * learned) * share
    moved += (4 * model.weights if not model.lora else 2 * model.weights) * share if sharded else 0.0
    return {
        "sampling": decoding,
        "scoring": work_done["scoring"] / rate,
        "learning": work_done["learning"] / rate,
        "communication": moved / link,
    }


def llama(weights: float, vocabulary: int, layers: int, width: int, kv: int, *, lora: bool = False) -> Model:
    adapter = 2 * 16 * 7 * 1.6 * width * layers if lora else 0.0
    return Model(weights, vocabulary * width, layers, width, 2 * layers * kv, adapter)


SIZES = {
    "0.5B": (0.49e9, 151_936, 24, 896, 128),
    "1.5B": (1.54e9, 151_936, 28, 1536, 256),
    "7B": (7.6e9, 152_064, 28, 3584, 512),
    "32B": (32.5e9, 152_064, 64, 5120, 1024),
    "70B": (70.6e9, 128_256, 80, 8192, 1024),
}
GPUS = (1, 8, 64, 256)


def predictions() -> None:
    machine, work = Machine(), Work()
    table = Table(
        "model", "trains", "GPUs", "spread", "GB held", "GB acting", "fits", "sampling", "learning", "talking", "s"
    )
    for name, sizes in SIZES.items():
        for lora in (False, True):
            model = llama(*sizes, lora=lora)
            for gpus in GPUS:
                options = [
                    (sharded, held(model, gpus, sharded=sharded))
                    for sharded in ((False, True) if gpus > 1 else (False,))
                ]
                # The first that fits, or the last.
                room = 0.8 * machine.memory
                fitting = [option for option in options if sum(option[1].values()) < room]
                sharded, parts = (fitting or options[-1:])[0]
                took = seconds(model, work, gpus, machine, sharded=sharded)
                between = sum(parts.values()) - parts["more while acting"]
                table.add_row(
                    name, "LoRA" if lora else "all", str(gpus), "FSDP2" if sharded else "no", f"{between / 1e9:.0f}",
                    f"{sum(parts.values()) / 1e9:.0f}", "yes" if fitting else "no", f"{took['sampling']:.1f}",
                    f"{took['scoring'] + took['learning']:.1f}", f"{took['communication']:.1f}",
                    f"{sum(took.values()):.1f}",
                )  # fmt: skip
    Console(width=130).print(table)


def measured(kind: str) -> tuple[float, float]:
    """Operations of a run of one update, counted and by the formulas."""
    tokenizer = byte_pair_tokenizer(["a b c d e f g h"], size=300)
    config = LlamaConfig(
        hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=8,
        vocab_size=300, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    policy = build_policy(config, temperature=1.0, critic="shared", seed=0)
    base = base_of(policy.model)
    if kind == "LoRA":
        policy = CausalLM(fresh_adapter(base, rank=16, alpha=32.0, targets=()), temperature=1.0, critic="shared")
    policy.tokenizer = tokenizer
    policy.tokenizer.eos_token, policy.end_tokens = None, ()
    work = Work(rows=16, prompt=32, response=32, epochs=2, rescored=False)
    prompts = [{"prompt": "".join("abcdefgh"[(n >> 3 * bit) % 8] for bit in range(work.prompt))} for n in range(24)]
    task = rlhf.Prompts(
        prompts, lambda responses: [float(text.count("a")) for text in responses], max_new_tokens=work.response,
        prompts_per_rollout=work.rows, held_out=1,
    )  # fmt: skip
    adapter = sum(p.numel() for p in policy.model.parameters() if p.requires_grad) if kind == "LoRA" else 0
    everything = sum(p.numel() for p in base.parameters()) - adapter
    model = Model(everything - 300 * 256, 300 * 256, 6, 256, 2 * 6 * 256, adapter)
    with tempfile.TemporaryDirectory() as out, FlopCounterMode(display=False) as counter:
        rlhf.train(
            policy, task, rlhf.PPO(kl_coef=0.1), rlhf.Optimize(epochs=work.epochs), updates=1, evaluations=1,
            out=Path(out),
        )  # fmt: skip
    # Before and after, one prompt is answered twice; the KL to the reference at the start takes no pass of its own.
    evaluation = operations(model, work._replace(rows=1, rescored=False, reference=False))["sampling"]
    expected = operations(model, work)
    total = expected["sampling"] + expected["learning"] + 4 * evaluation
    return float(counter.get_total_flops()), total


@dataclass(frozen=True)
class Config:
    measure: bool = False
    """Count the operations of small runs beside the formulas."""


def main(config: Config) -> None:
    if not config.measure:
        predictions()
        return
    table = Table("run", "counted", "formula", "ratio")
    for kind in ("all weights", "LoRA"):
        counted, formula = measured(kind)
        table.add_row(kind, f"{counted:.4g}", f"{formula:.4g}", f"{formula / counted:.3f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
