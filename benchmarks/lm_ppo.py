"""Samples a second of PPO and of a group method on a language model, beside TRL's PPO and GRPO, on a CPU.

    make benchmark-lm      # a GPT-2 of 4 layers; installs the peers in environments of their own
    make benchmark-lm ARGS="--width 256 --response 128 --repetitions 3"
    make benchmark-lm ARGS="--model models/SmolLM2-135M-Instruct --rows 16 --epochs 1 --precisions no bf16"

Every contestant is a process of its own and gets the same prompts, rows, epochs and lengths, in turn, round after
round; ratios are taken within a round, and the table shows medians. Of ours, collecting is decoding, scoring and what
the reward takes; the peers' times are those between their updates. Beside them what the machine multiplies at most, in
the precision of the run, at the shape of the model's largest layer: the share of it that an update of ours comes to
counts the operations of every forward and backward pass (two a weight and token forward, four backward, or two where
base weights are frozen), not attention, softmax or sampling.

On 2 otherwise nearly idle cores, float32, s an update, share of the peak, times TRL (1.12's PPO, 1.16's GRPO):

                       as it is (5 repetitions)      --width 256 --response 128 (1 repetition)
    ours, shared       .82   50 %   2.69             7.8   66 %   2.64
    ours, separate    1.41   56 %   1.56            14.3   70 %   1.44
    ours, group        .69   59 %   1.62             7.8   67 %   1.48
    TRL PPO, GRPO     2.18, 1.10                    20.6, 11.5
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config

import rlhf
from rlhf.lm.load import build_policy
from rlhf.lm.policy import CausalLM
from rlhf.lm.tokenizers import byte_pair_tokenizer
from rlhf.runs.log import read_lines

PEERS = {"ppo": Path(".venv-trl-ppo/bin/python"), "grpo": Path(".venv-trl-grpo/bin/python")}


@dataclass(frozen=True, kw_only=True)
class Config:
    """The workload, and how often it is run."""

    model: str = ""
    """Folder of a model, which is trained by a LoRA of rank 16; empty: a random GPT-2, all of whose weights are."""
    width: int = 128
    layers: int = 4
    prompt: int = 16
    """Tokens of each prompt."""
    response: int = 32
    """Tokens of each response at most."""
    rows: int = 64
    """Responses of an update."""
    group: int = 8
    """Responses to each prompt, of the group methods."""
    epochs: int = 4
    updates: int = 6
    """Of each run; the first is left out."""
    repetitions: int = 5
    precisions: tuple[Literal["no", "bf16"], ...] = ("no",)
    """Each contestant runs in each."""
    threads: int = os.cpu_count() or 1


def model_folder(config: Config, folder: Path) -> str:
    """The model itself, or a random one."""
    if config.model:
        return config.model
    tokenizer = byte_pair_tokenizer(["a b c d e f g h"], size=300)
    policy = build_policy(
        GPT2Config(
            n_embd=config.width, n_layer=config.layers, n_head=config.width // 32, vocab_size=len(tokenizer),
            bos_token_id=None, eos_token_id=None, pad_token_id=tokenizer.pad_token_id,
        ),
        temperature=1.0, critic="none", seed=0,
    )  # fmt: skip
    policy.model.save_pretrained(str(folder))
    tokenizer.save_pretrained(folder)
    return str(folder)


def prompts_of(config: Config) -> list[str]:
    """All differ; each word, or letter of the small tokenizer, is a token."""
    words = (" the", " of", " and", " to", " in", " a", " is", " for") if config.model else "abcdefgh"
    return [
        "".join(words[(number >> 3 * bit) % 8] for bit in range(config.prompt))
        for number in range(config.rows * (config.updates + 1))
    ]


def ours(work: dict[str, Any], kind: str) -> dict[str, Any]:
    """Seconds of each update, and of its parts."""
    torch.set_num_threads(work["threads"])
    group = work["group"] if kind == "group" else 1
    critic = {"shared": "shared", "separate": "separate", "group": "none"}[kind]
    method: rlhf.Method = rlhf.GRPO(kl_coef=0.05) if kind == "group" else rlhf.PPO(kl_coef=0.05, value_coef=0.1)
    policy = rlhf.load_policy(work["model"], lora_rank=work["lora_rank"], critic=critic)
    # Every response has its full length, with the peers too.
    policy.tokenizer.eos_token, policy.end_tokens = None, ()
    task = rlhf.Prompts(
        [{"prompt": text} for text in work["prompts"]],
        lambda responses: [text.count("a") / 10 for text in responses],
        max_new_tokens=work["response"], prompts_per_rollout=work["rows"] // group, responses_per_prompt=group,
        held_out=2,
    )  # fmt: skip
    optimize = rlhf.Optimize(learning_rate=1e-5, epochs=work["epochs"])
    with tempfile.TemporaryDirectory() as out:
        rlhf.train(
            policy, task, method, optimize, updates=work["updates"], evaluations=1, checkpoints=1, out=out,
            mixed_precision="bf16" if work["bf16"] else "no",
        )  # fmt: skip
        rows = read_lines(Path(out) / method.name / "metrics.jsonl")[2:]
    assert all(row["episode_length_mean"] == work["response"] for row in rows)
    parts = [(row["seconds/collect"], row["seconds/update"]) for row in rows]
    return {"seconds": [sum(part) for part in parts], "parts": parts}


def run(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)[:200]}\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def peak(dtype: torch.dtype, shape: tuple[int, ...]) -> float:
    """Operations a second of the best of some multiplications."""
    rows, inner, outer = shape
    a, b = torch.randn(rows, inner, dtype=dtype), torch.randn(outer, inner, dtype=dtype)
    best = float("inf")
    for _ in range(9):
        start = time.perf_counter()
        torch.nn.functional.linear(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * rows * inner * outer / best


def operations(config: Config, policy: CausalLM, kind: str, precision: str) -> float:
    """Of one update of ours: see above."""
    weights = sum(weight.numel() for weight in policy.model.parameters())
    tokens = config.rows * (config.prompt + config.response)
    critics = 2 if kind == "separate" else 1
    # Decoded; scored by the reference; a separate critic reads it, and in half precision the policy once more.
    forward = 2 + (kind == "separate") + (precision == "bf16")
    learning = config.epochs * critics * (2 + (2 if config.model else 4)) / 2
    return 2 * weights * tokens * (forward + learning)


def main(config: Config) -> None:
    lacking = [str(path) for path in PEERS.values() if not path.exists()]
    if lacking:
        raise SystemExit(f"{lacking[0]} is not there; `make benchmark-lm` makes the peers' environments.")
    environment = {**os.environ, "OMP_NUM_THREADS": str(config.threads), "PYTHONPATH": "."}
    contestants = {"shared": "ours", "separate": "ours", "group": "ours", "ppo": "trl", "grpo": "trl"}
    if config.model:
        # TRL's PPO has no LoRA with a critic beside it that fits the same memory.
        contestants = {"shared": "ours", "group": "ours", "grpo": "trl"}
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = model_folder(config, Path(folder))
        for _ in range(config.repetitions):
            for precision in config.precisions:
                work = asdict(config) | {
                    "model": model, "prompts": prompts_of(config), "bf16": precision == "bf16",
                    "lora_rank": 16 if config.model else 0,
                }  # fmt: skip
                for name, whose in contestants.items():
                    program = [sys.executable, __file__, "--one"] if whose == "ours" else [str(PEERS[name])]
                    program += [] if whose == "ours" else [str(Path(__file__).with_name("lm_peers.py"))]
                    one = run([*program, name, json.dumps(work)], environment)
                    found.setdefault((name, precision), []).append(one)
                    print(name, precision, [round(second, 3) for second in one["seconds"]], flush=True)
        show(config, model, found)


def show(config: Config, model: str, found: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    seconds = {key: [statistics.median(one["seconds"]) for one in runs] for key, runs in found.items()}
    # Each peer in the precision that suits it best.
    peers: dict[str, tuple[str, str]] = {}
    for key in sorted(seconds, key=lambda key: statistics.median(seconds[key])):
        if key[0] in PEERS:
            peers.setdefault(key[0], key)
    names = ("contestant", "precision", "s an update", "samples/s", "collect, learn (s)", "of the peak", "times TRL")
    table = Table(*names)
    policy = rlhf.load_policy(model, critic="none")
    shapes = [
        tuple(weight.shape) for name, weight in policy.model.named_parameters() if "mlp" in name and weight.dim() == 2
    ]
    largest = (config.rows * (config.prompt + config.response), *max(shapes))
    best = {"no": peak(torch.float32, largest), "bf16": peak(torch.bfloat16, largest)}
    for (name, precision), values in seconds.items():
        runs, share, parts, times = found[name, precision], "", "", ""
        if "parts" in runs[0]:
            turns = [statistics.median(part[i] for one in runs for part in one["parts"]) for i in (0, 1)]
            parts = f"{turns[0]:.2f}, {turns[1]:.2f}"
            work = operations(config, policy, name, precision)
            share = f"{work / statistics.median(values) / best[precision]:.0%}"
            peer = peers.get("grpo" if name == "group" or "ppo" not in peers else "ppo")
            if peer:
                ratio = statistics.median(b / a for a, b in zip(values, seconds[peer], strict=True))
                times = f"{ratio:.2f} ({peer[0].upper()}{', bf16' if peer[1] == 'bf16' else ''})"
        label = f"TRL {name.upper()}" if name in PEERS else f"ours, {name}"
        middle = statistics.median(values)
        table.add_row(label, precision, f"{middle:.2f}", f"{config.rows / middle:.0f}", parts, share, times)
    Console(width=120).print(table)
    print(", ".join(f"{name}: {value / 1e9:.0f} GFLOP/s at most" for name, value in best.items()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(ours(json.loads(sys.argv[3]), sys.argv[2])))
    else:
        main(tyro.cli(Config, description=__doc__))
