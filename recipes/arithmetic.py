"""A language model learns addition from a teacher who forgets to carry, then PPO makes it right.

    python recipes/arithmetic.py
    python recipes/arithmetic.py --algorithm grpo             # or any other that docs/algorithms.md has a result of
    accelerate launch --config_file recipes/accelerate/multi_gpu.yaml recipes/arithmetic.py

Nothing is downloaded. A small transformer is built from its config and cloned from demonstrations of two-digit
addition, most of which drop every carry: its likeliest answer to a sum with a carry is wrong. PPO then sees nothing but
whether its own answers are right. Answers are written from the last digit to the first. The numbers to expect stand in
the README: exact match on sums never trained on, before and after PPO, sampled and greedy.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from transformers import LlamaConfig

from rlhf import optimize, train
from rlhf.algorithms.catalogue import ALGORITHMS, algorithm_of, require_critic
from rlhf.core.random import derive_seed, uniforms
from rlhf.errors import InputError
from rlhf.lm import collect
from rlhf.lm.data import demonstration_rollout, hold_out, load_data, prompt_rows
from rlhf.lm.evaluate import ResponseEvaluator
from rlhf.lm.finetune import CloneConfig, ImproveConfig, Precision, clone, improve
from rlhf.lm.generate import Sampling
from rlhf.lm.load import build_policy
from rlhf.lm.policy import CausalLM
from rlhf.lm.presets import preset
from rlhf.lm.rewards import Rewards
from rlhf.lm.tokenizers import character_tokenizer
from rlhf.runs.launch import launch
from rlhf.runs.log import read_lines, trackers
from rlhf.runs.run import Run
from rlhf.runs.summary import conclude

DIGITS = 2
CONTEXT = 2 * DIGITS + 2 + DIGITS + 2


@dataclass(frozen=True, kw_only=True)
class Config:
    """Cloning from a careless teacher, then a policy-gradient method."""

    algorithm: str = "ppo"
    """One that docs/algorithms.md has a result of on arithmetic; `improve` holds its settings."""
    seed: int = 0
    """Everything random follows from it."""
    output_dir: Path = Path("runs/arithmetic")
    """Folder for what the run leaves behind."""
    resume: bool = False
    """Continue the run in output_dir."""
    tensorboard: bool = False
    """Also log for tensorboard, into output_dir/tensorboard."""
    dropped_carries: float = 0.7
    """Share of the demonstrations that drop every carry."""
    held_out: int = 1000
    """Sums that are only evaluated on, of 10,000."""
    precision: Precision = Precision()
    clone: CloneConfig = CloneConfig(
        rows_per_update=256,
        train=train.Config(updates=500, eval_every=0, checkpoint_every=100),
        optimize=optimize.Config(
            learning_rate=2e-3,
            schedule="linear",
            warmup_updates=100,
            epochs=1,
            whiten="none",
            adam_beta2=0.99,
            weight_decay=0.01,
        ),
    )
    critic: Literal["shared", "separate", "none"] = "shared"
    """Value head on the policy's own trunk, on a trunk of its own, or no values: all are 0."""
    improve: ImproveConfig = preset("ppo").improve

    def __post_init__(self) -> None:
        if algorithm_of(self.improve.method) is not ALGORITHMS.get(self.algorithm):
            raise InputError(f"algorithm is {self.algorithm}, but improve.method is that of another one.")
        require_critic(self.improve.method, self.critic)
        if not 0.0 <= self.dropped_carries <= 1.0:
            raise InputError(f"dropped_carries is {self.dropped_carries}; it must lie in [0, 1].")
        if self.held_out < 1:
            raise InputError(f"held_out is {self.held_out}; hold out some sums to evaluate on.")


def default_config(algorithm: str) -> Config:
    return Config(algorithm=algorithm, **vars(preset(algorithm)))


def exact_match(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """The reward: 1 for the right answer, 0 for any other."""
    return [float(completion == right) for completion, right in zip(completions, answer, strict=True)]


def problems() -> list[dict[str, str]]:
    numbers = range(10**DIGITS)
    return [{"prompt": f"{a}+{b}=", "answer": str(a + b)[::-1]} for a in numbers for b in numbers]


def without_carries(prompt: str) -> str:
    """The sum, last digit first, as it comes out when no carry is ever added."""
    a, b = (int(number) for number in prompt.rstrip("=").split("+"))
    digits = "".join(str((a // 10**i + b // 10**i) % 10) for i in range(DIGITS))
    return digits.rstrip("0") or "0"


def demonstrations(rows: list[dict[str, str]], *, dropped_carries: float, seed: int) -> list[dict[str, str]]:
    """The teacher's answers: each sum is either right or has lost every carry, drawn once for each."""
    draws = uniforms(seed, "dropped carries", 0, torch.arange(len(rows)), 1).squeeze(1).tolist()
    return [
        {
            "prompt": row["prompt"],
            "completion": without_carries(row["prompt"]) if draw < dropped_carries else row["answer"],
        }
        for row, draw in zip(rows, draws, strict=True)
    ]


def new_policy(config: Config, tokenizer: Any) -> CausalLM:
    policy = build_policy(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        ),
        temperature=1.0,
        critic=config.critic,
        seed=derive_seed(config.seed, "weights"),
        gradient_checkpointing=config.precision.gradient_checkpointing,
    )
    policy.tokenizer = tokenizer
    return policy


def main(config: Config) -> dict[str, float]:
    start = time.perf_counter()
    accelerator = Accelerator(
        mixed_precision=config.precision.mixed_precision,
        **trackers(tensorboard=config.tensorboard, output_dir=config.output_dir),
    )
    tokenizer, rewards = character_tokenizer("0123456789+="), Rewards([exact_match])
    rows = problems()
    training, held_out = (
        [rows[i] for i in part.tolist()] for part in hold_out(len(rows), num_held_out=config.held_out, seed=config.seed)
    )
    shown = load_data(demonstrations(training, dropped_carries=config.dropped_carries, seed=config.seed))
    sampling = Sampling(max_new_tokens=DIGITS + 2, stop_tokens=(tokenizer.eos_token_id,))
    prompts, held_out_prompts = (
        prompt_rows(load_data(part), tokenizer, max_new_tokens=sampling.max_new_tokens, context=CONTEXT)
        for part in (training, held_out)
    )
    collect.require_prompts(prompts, config.improve.collect, accelerator)
    run = Run(
        config.output_dir, config, resume=config.resume, accelerator=accelerator, extendable={"improve.train.updates"}
    )
    evaluate = ResponseEvaluator(
        held_out_prompts,
        tokenizer,
        rewards,
        sampling=sampling,
        seed=config.seed,
        accelerator=accelerator,
        micro_batch_cost=config.improve.optimize.micro_batch_cost,
        use_reference=False,
    )
    policy = new_policy(config, tokenizer)
    where: dict[str, Any] = {"accelerator": accelerator, "seed": config.seed}
    demonstrated = demonstration_rollout(shown, tokenizer, context=CONTEXT)
    clone(policy, demonstrated, evaluate, config=config.clone, phase=run.phase("clone"), **where)
    phase, method = run.phase(config.algorithm), config.improve
    improve(policy, prompts, tokenizer, rewards, evaluate, sampling=sampling, config=method, phase=phase, **where)
    evaluations = [row for row in read_lines(phase.folder / "metrics.jsonl") if "eval_score_mean" in row]
    before, after = evaluations[0], evaluations[-1]
    result = {
        "exact_match_before": before["eval_score_mean"],
        "exact_match_after": after["eval_score_mean"],
        "greedy_match_before": before["eval_greedy_score_mean"],
        "greedy_match_after": after["eval_greedy_score_mean"],
        "tokens": after["steps"],
        "seconds": time.perf_counter() - start,
    }
    conclude(run, result)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--algorithm", default="ppo")
    launch(main, Config, default=lambda: default_config(parser.parse_known_args()[0].algorithm))
