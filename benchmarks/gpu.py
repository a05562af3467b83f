"""What a GPU is asked first: whether its numbers are right, and how much of the machine a run uses. Under ten minutes.

    PYTHONPATH=. python benchmarks/gpu.py                # on the GPU; writes benchmarks/gpu.json
    PYTHONPATH=. python benchmarks/gpu.py --small        # any machine, in seconds: that the script itself works

Right: products of float32 are not rounded to TF32; sampling and training agree (`identity`, the largest |ratio - 1| of
the first minibatch, in float32: law 2 asks for 1e-5, here it is told for each architecture); a run that is stopped and
resumed ends bit for bit where one that was not does (`resume`).

Fast: an update of PPO in bf16 on models of the sizes of Qwen2 with random weights, as a share of what the machine
multiplies at most, measured here; decoding for one prompt and for 64, as a share of the memory's bandwidth, measured
here, where each step reads every weight once in the precision that it is held in. The last table's figures stand beside
the new ones.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from transformers import GemmaConfig, GPT2Config, LlamaConfig, PretrainedConfig, Qwen2Config

import rlhf
from rlhf.lm.adapters import fresh_adapter
from rlhf.lm.engine import Sampling
from rlhf.lm.generate import Decoder
from rlhf.lm.load import build_policy
from rlhf.lm.model import base_of
from rlhf.lm.policy import CausalLM
from rlhf.lm.scoring import response_inputs
from rlhf.lm.tokenizers import byte_pair_tokenizer
from rlhf.runs.log import read_lines

TOKENIZER = byte_pair_tokenizer(["a b c d e f g h"], size=300)
TABLE = Path(__file__).with_name("gpu.json")
_IDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
SHAPES: dict[str, dict[str, Any]] = {
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
}
TINY: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is measured."""

    small: bool = False
    """Tiny models and few tokens, on whatever device there is."""
    rows: int = 64
    prompt: int = 128
    response: int = 384
    updates: int = 3
    """Of which the first is left out."""


def qwen2(shape: dict[str, Any], *, vocabulary: int) -> Qwen2Config:
    return Qwen2Config(
        **shape, num_key_value_heads=2, vocab_size=vocabulary, tie_word_embeddings=True, **_IDS
    )  # fmt: skip


def policy_of(config: PretrainedConfig, **how: Any) -> CausalLM:
    policy = build_policy(config, temperature=1.0, critic="shared", seed=0, **how)
    policy.tokenizer = TOKENIZER
    # Every response has its full length.
    policy.tokenizer.eos_token, policy.end_tokens = None, ()
    return policy


def trained(policy: CausalLM, out: Path, config: Config, updates: int, **how: Any) -> list[dict[str, Any]]:
    """The metrics of a run of PPO, evaluations aside."""
    words = "abcdefgh"
    prompts = [
        {"prompt": "".join(words[(number >> 3 * bit) % 8] for bit in range(config.prompt))}
        for number in range(2 * config.rows)
    ]
    task = rlhf.Prompts(
        prompts, lambda responses: [text.count("a") / 10 for text in responses],
        max_new_tokens=config.response, prompts_per_rollout=config.rows, held_out=2,
    )  # fmt: skip
    settings = rlhf.Optimize(learning_rate=1e-5, epochs=1, minibatches=2, micro_batch_cost=32768)
    rlhf.train(
        policy, task, rlhf.PPO(value_coef=0.1), settings, updates=updates, evaluations=1, checkpoints=updates, out=out,
        **how,
    )  # fmt: skip
    return [row for row in read_lines(out / "ppo" / "metrics.jsonl") if "seconds/update" in row]


def seconds_of(act: Callable[[], object], repetitions: int = 5) -> float:
    """The fastest of several, after one that does not count."""
    best = float("inf")
    for number in range(repetitions + 1):
        synchronise()
        start = time.perf_counter()
        act()
        synchronise()
        best = min(best, time.perf_counter() - start) if number else best
    return best


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine(device: torch.device, small: bool) -> dict[str, float]:
    """Operations and bytes a second at most, and the largest relative error of a product in float32."""
    size = 256 if small else 8192
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        found[f"TFLOP/s, {str(dtype).removeprefix('torch.')}"] = 2 * size**3 / seconds_of(lambda: a @ b) / 1e12  # noqa: B023
    block = torch.empty(2**20 if small else 2**30, dtype=torch.uint8, device=device)
    found["GB/s"] = 2 * block.numel() / seconds_of(block.clone) / 1e9
    a, b = (torch.randn(512, 512, device=device) for _ in range(2))
    exact = a.double() @ b.double()
    found["error of float32"] = float(((a @ b).double() - exact).abs().max() / exact.abs().max())
    return found


def identities(device: torch.device) -> dict[str, float]:
    """The largest |ratio - 1| between sampling and training in float32, by architecture."""
    kinds: dict[str, PretrainedConfig] = {
        "GPT-2": GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=300, initializer_range=0.2, **_IDS),
        "Llama": LlamaConfig(**TINY, vocab_size=300, initializer_range=0.2, **_IDS),
        "Gemma": GemmaConfig(**TINY, num_key_value_heads=2, head_dim=16, vocab_size=300, initializer_range=0.2, **_IDS),
        "Qwen2": qwen2(TINY, vocabulary=300),
    }
    found = {}
    for name, config in kinds.items():
        policy = policy_of(config).to(device)
        prompts = [[5 + i % 7] * (1 + 3 * i) for i in range(12)]
        uniforms = torch.rand(12, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        answer = Decoder().generate(policy, prompts, sampling=Sampling(max_new_tokens=24), uniforms=uniforms)
        with torch.no_grad():
            scored = policy(response_inputs(prompts, answer.tokens, answer.lengths)).logprobs
        found[f"identity, {name}"] = float((scored - answer.logprobs).exp().sub(1).abs().max())
    return found


def resumed(config: Config) -> dict[str, float]:
    """The number of figures in which a run that was stopped after one update differs from one that was not."""
    short = Config(rows=8, prompt=16, response=16)
    with tempfile.TemporaryDirectory() as folder:
        whole = trained(policy_of(qwen2(TINY, vocabulary=300)), Path(folder) / "whole", short, 2)
        trained(policy_of(qwen2(TINY, vocabulary=300)), Path(folder) / "parts", short, 1)
        parts = trained(policy_of(qwen2(TINY, vocabulary=300)), Path(folder) / "parts", short, 2, resume=True)
    timed = ("second", "memory")
    same = [
        {name for name in first if not any(word in name for word in timed) and first[name] != second[name]}
        for first, second in zip(whole, parts, strict=True)
    ]
    return {"resume, figures that differ": float(sum(map(len, same)))}


def speeds(name: str, shape: dict[str, Any], device: torch.device, config: Config, found: dict[str, float]) -> None:
    """Adds the shares of the machine that updates and decoding come to."""
    vocabulary = 300 if config.small else 151_936
    policy = policy_of(qwen2(shape, vocabulary=vocabulary))
    weights = sum(parameter.numel() for parameter in policy.model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        rows = trained(policy, Path(folder), config, config.updates, mixed_precision="bf16")[1:]
    seconds = min(row["seconds/update"] for row in rows)
    tokens = config.rows * (config.prompt + config.response)
    found[f"{name}: update, tokens/s"] = tokens / seconds
    found[f"{name}: update, share of bf16 peak"] = 6 * weights * tokens / seconds / 1e12 / found["TFLOP/s, bfloat16"]
    found[f"{name}: collecting, s"] = min(row["seconds/collect"] for row in rows)
    # As it is held beside a LoRA under bf16.
    adapted = fresh_adapter(base_of(policy.model).cpu(), rank=16, alpha=32.0, targets=())
    policy = CausalLM(adapted, temperature=1.0, critic="shared").to(device)
    policy.compute_in("bf16")
    held = sum(parameter.numel() * parameter.element_size() for parameter in policy.model.parameters())
    steps = 8 if config.small else 64
    for batch in (1, 64):
        prompts = [[7] * config.prompt] * batch
        uniforms = torch.rand(batch, steps + 1, dtype=torch.float64)

        def decode(length: int, prompts: Any = prompts, uniforms: Any = uniforms) -> object:
            sampling = Sampling(max_new_tokens=length)
            return Decoder().generate(policy, prompts, sampling=sampling, uniforms=uniforms[:, :length])

        # The prompt's pass is in both.
        step = (seconds_of(lambda: decode(steps + 1), 2) - seconds_of(lambda: decode(1), 2)) / steps
        found[f"{name}: decoding {batch}, ms a step"] = 1e3 * step
        found[f"{name}: decoding {batch}, share of bandwidth"] = held / step / 1e9 / found["GB/s"]


def main(config: Config) -> None:
    if config.small:
        config = Config(small=True, rows=8, prompt=16, response=16)
    elif not torch.cuda.is_available():
        raise SystemExit("there is no GPU here; --small tries the script on anything.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = machine(device, config.small) | identities(device) | resumed(config)
    for name, shape in {"tiny": TINY}.items() if config.small else SHAPES.items():
        speeds(name, shape, device, config, found)
        # Whatever comes next, this is known.
        show(found, config)
    if not config.small:
        TABLE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def show(found: dict[str, float], config: Config) -> None:
    before = json.loads(TABLE.read_text()) if TABLE.exists() and not config.small else {}
    table = Table("figure", "now", "before")
    for name, value in found.items():
        table.add_row(name, f"{value:.4g}", f"{before[name]:.4g}" if name in before else "")
    Console(width=100).print(table)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
