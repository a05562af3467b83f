"""`rlhf plan` beside the run it plans: peak memory and seconds of an update, on six set-ups.

    PYTHONPATH=. python benchmarks/plan.py                    # all, in turn
    PYTHONPATH=. python benchmarks/plan.py "a copy as reference" "checkpointing"

Each is planned and then run for three updates, in processes of their own. What a run held is the most that its process
had (`memory_gib`), its seconds are those of its last update, which rewards are no part of: they count letters.

On CPU, one thread, GiB planned and held: small .90 / .94, separate critic 1.85 / 1.84, LoRA in bf16 3.58 / 4.08, groups
2.86 / 3.01, a copy as reference 5.22 / 5.08, checkpointing 6.09 / 5.40: four of six within 10 %, all within 13 %. Their
seconds were taken beside other work, so they say little: ratios .78, .80, .98, 1.06, 1.47 and 1.46.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config, LlamaConfig

import rlhf
from rlhf.lm.calibration import Planned
from rlhf.lm.load import ModelConfig, build_policy, load_policy
from rlhf.lm.plan import PHASES, plan
from rlhf.lm.settings import CollectResponses
from rlhf.lm.tokenizers import byte_pair_tokenizer
from rlhf.runs.log import read_lines


class Setup(NamedTuple):
    model: str
    policy: dict[str, Any]
    method: rlhf.Method
    collect: CollectResponses
    optimize: rlhf.Optimize
    mixed_precision: Any
    prompt_tokens: int
    max_new_tokens: int


PPO, GRPO = rlhf.PPO(kl_coef=0.1), rlhf.GRPO(kl_coef=0.1)
LORA = {"lora_rank": 16}
EIGHT = CollectResponses(prompts_per_rollout=4, responses_per_prompt=8)
ROWS = CollectResponses(prompts_per_rollout=32)
SETUPS = {
    "small": Setup("gpt2", {}, PPO, CollectResponses(prompts_per_rollout=64), rlhf.Optimize(), "no", 16, 32),
    "separate critic": Setup(
        "llama", {"critic": "separate"}, PPO, ROWS, rlhf.Optimize(epochs=2, micro_batch_cost=2048), "no", 32, 96
    ),
    "LoRA, bf16": Setup(
        "smollm2", LORA, PPO, ROWS, rlhf.Optimize(epochs=1, minibatches=2, micro_batch_cost=2048), "bf16", 64, 64
    ),
    "groups": Setup(
        "smollm2", {**LORA, "critic": "none"}, GRPO, EIGHT, rlhf.Optimize(epochs=1, micro_batch_cost=2048), "bf16", 128,
        32,
    ),
    "a copy as reference": Setup(
        "smollm2", {"reference_dtype": "bfloat16"}, PPO, ROWS, rlhf.Optimize(epochs=1, micro_batch_cost=1024), "no", 32,
        32,
    ),
    "checkpointing": Setup(
        "smollm2", {**LORA, "gradient_checkpointing": True}, PPO, ROWS, rlhf.Optimize(epochs=1), "no", 32, 96
    ),
}  # fmt: skip
CONFIGS = {
    "gpt2": GPT2Config(n_embd=128, n_layer=4, n_head=4, vocab_size=50257),
    "llama": LlamaConfig(hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4),
    # SmolLM2-135M's.
    "smollm2": LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True,
    ),
}  # fmt: skip


def model_folder(name: str, folder: Path) -> Path:
    """A model of random weights, which seldom ends a response."""
    there = folder / name
    if not there.exists():
        policy = build_policy(CONFIGS[name], temperature=1.0, critic="none", seed=0)
        policy.model.save_pretrained(str(there))
        byte_pair_tokenizer(["a b c d e f g h"], size=300).save_pretrained(there)
    return there


def planned(setup: Setup, model: Path) -> dict[str, float]:
    given = Planned(
        model=ModelConfig(model=str(model), **setup.policy),
        method=setup.method,
        collect=setup.collect,
        optimize=setup.optimize,
        mixed_precision=setup.mixed_precision,
        prompt_tokens=setup.prompt_tokens,
        max_new_tokens=setup.max_new_tokens,
        response_tokens=setup.max_new_tokens,
        processes=1,
    )
    found = plan(given, torch.device("cpu"))
    times = {turn: sum(found.seconds[phase] for phase in phases) for turn, phases in PHASES.items()}
    return {"gib": found.peak / 2**30, "collect": times["collecting"], "update": times["learning"]}


def letters(responses: list[str], **_: Any) -> list[float]:
    return [response.count("a") / 10 for response in responses]


def ran(setup: Setup, model: Path) -> dict[str, float]:
    policy = load_policy(str(model), **setup.policy)
    # A letter is a token. All differ, so that only rows of a group share one.
    width = setup.prompt_tokens
    prompts = ["".join("abcdefgh"[(number >> 3 * bit) % 8] for bit in range(width)) for number in range(128)]
    task = rlhf.Prompts(
        [{"prompt": text} for text in prompts], letters, max_new_tokens=setup.max_new_tokens, held_out=2,
        **vars(setup.collect),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as out:
        rlhf.train(
            policy, task, setup.method, setup.optimize, updates=3, evaluations=1, checkpoints=1, out=out,
            mixed_precision=setup.mixed_precision,
        )  # fmt: skip
        rows = read_lines(Path(out) / setup.method.name / "metrics.jsonl")
    last = rows[-1]
    return {
        "gib": last["memory_gib"],
        "collect": last["seconds/collect"],
        "update": last["seconds/update"],
        "length": last["episode_length_mean"],
    }


def main() -> None:
    if sys.argv[1:2] in (["--plan"], ["--run"]):
        setup, model = SETUPS[sys.argv[2]], Path(sys.argv[3])
        print(json.dumps((planned if sys.argv[1] == "--plan" else ran)(setup, model)))
        return
    table = Table("set-up", "planned GiB", "held GiB", "ratio", "planned s", "took s", "ratio", "of these learning")
    with tempfile.TemporaryDirectory() as models:
        for name in sys.argv[1:] or SETUPS:
            model = model_folder(SETUPS[name].model, Path(models))
            one, other = (
                json.loads(
                    subprocess.run(
                        [sys.executable, __file__, way, name, str(model)], check=True, stdout=subprocess.PIPE
                    ).stdout.splitlines()[-1]
                )
                for way in ("--plan", "--run")
            )
            times = [each["collect"] + each["update"] for each in (one, other)]
            table.add_row(
                name, f"{one['gib']:.2f}", f"{other['gib']:.2f}", f"{one['gib'] / other['gib']:.2f}",
                f"{times[0]:.1f}", f"{times[1]:.1f}", f"{times[0] / times[1]:.2f}",
                f"{one['update']:.1f}, {other['update']:.1f}",
            )  # fmt: skip
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
