"""A language model learns addition from a teacher who forgets to carry, then PPO makes it right.

    python recipes/arithmetic.py
    python recipes/arithmetic.py --method grpo                # or any other that docs/algorithms.md has a result of
    accelerate launch --config_file recipes/accelerate/multi_gpu.yaml recipes/arithmetic.py

Nothing is downloaded. A small transformer is built from its config and cloned from demonstrations of two-digit
addition, most of which drop every carry: its likeliest answer to a sum with a carry is wrong. PPO then sees nothing but
whether its own answers are right. Answers are written from the last digit to the first. The numbers to expect stand in
the README: exact match on sums never trained on, before and after PPO, sampled and greedy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from recipes.settings.arithmetic import PRESETS, preset
from recipes.settings.language import CloneConfig, ImproveConfig, Precision, engine_of
from rlhf.algorithms.checks import require_policy
from rlhf.algorithms.choices import method_help
from rlhf.algorithms.clone import BehaviourCloning
from rlhf.deferred import deferred
from rlhf.loop import Duration
from rlhf.optimize import Optimize
from rlhf.runs.launch import launch
from rlhf.settings import Count, Seed, Settings, Share

with deferred():
    import torch
    from accelerate import Accelerator
    from transformers import LlamaConfig

    from rlhf.core.random import derive_seed, uniforms
    from rlhf.lm.data import hold_out
    from rlhf.lm.demonstrations import Demonstrations
    from rlhf.lm.load import build_policy
    from rlhf.lm.policy import CausalLM
    from rlhf.lm.prompts import Prompts
    from rlhf.lm.tokenizers import character_tokenizer
    from rlhf.runs.clock import seconds_spent
    from rlhf.runs.log import read_lines, trackers
    from rlhf.runs.run import Run
    from rlhf.runs.summary import conclude
    from rlhf.sources import code_sums
    from rlhf.training import require, train_phase

DIGITS = 2
# Both summands, "+" and "=", the sum and its end, and what a reward model needs besides.
CONTEXT = 2 * DIGITS + 2 + DIGITS + 2 + 1


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Cloning from a careless teacher, then a policy-gradient method."""

    seed: Seed = 0
    """Everything random follows from it."""
    output_dir: Path = Path("runs/arithmetic")
    """Folder for what the run leaves behind."""
    resume: bool = False
    """Continue the run in output_dir."""
    accept_changes: bool = False
    """With --resume: go on although data, code or models are not those that the run was started from."""
    tensorboard: bool = False
    """Also log for tensorboard, into output_dir/tensorboard."""
    dropped_carries: Share = 0.7
    """Share of the demonstrations that drop every carry."""
    held_out: Count = 1000
    """Sums that are only evaluated on, of 10,000."""
    precision: Precision = Precision()
    clone: CloneConfig = CloneConfig(
        rows_per_update=256,
        train=Duration(updates=500, eval_every=0, checkpoint_every=100),
        optimize=Optimize(
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
        require_policy(self.improve.method, memoryless=False, has_critic=self.critic != "none")


def default_config(method: str = "ppo") -> Config:
    return Config(**vars(preset(method)))


def exact_match(responses: list[str], answer: list[str], **_: Any) -> list[float]:
    """The reward: 1 for the right answer, 0 for any other."""
    return [float(response == right) for response, right in zip(responses, answer, strict=True)]


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
        reference_dtype=config.improve.reference_dtype,
    )
    policy.tokenizer = tokenizer
    return policy


def main(config: Config) -> dict[str, float]:
    accelerator = Accelerator(
        mixed_precision=config.precision.mixed_precision,
        **trackers(tensorboard=config.tensorboard, output_dir=config.output_dir),
    )
    tokenizer, rows = character_tokenizer("0123456789+="), problems()
    training, held_out = (
        [rows[i] for i in part.tolist()] for part in hold_out(len(rows), num_held_out=config.held_out, seed=config.seed)
    )
    prompts = Prompts(
        training,
        exact_match,
        max_new_tokens=DIGITS + 2,
        held_out=held_out,
        engine=engine_of(config.improve),
        **vars(config.improve.collect),
    )
    shown = demonstrations(training, dropped_carries=config.dropped_carries, seed=config.seed)
    cloning = Demonstrations(shown, rows_per_update=config.clone.rows_per_update, also=prompts)
    for task in (prompts, cloning):
        task.read(tokenizer, context=CONTEXT)
    prompts.require_size(accelerator)
    policy = new_policy(config, tokenizer)
    clone, improve, method = config.clone, config.improve, config.improve.method
    require(policy, cloning, BehaviourCloning(), clone.optimize, accelerator)
    require(policy, prompts, method, improve.optimize, accelerator)
    run = Run(
        config.output_dir,
        config,
        resume=config.resume,
        accelerator=accelerator,
        extendable={"improve.train.updates"},
        inputs=lambda: code_sums("method", config.improve.method),
        accept_changes=config.accept_changes,
    )
    first, phase = run.phase("clone"), run.phase(method.name)
    for task, learned, settings, folder in (
        (cloning, BehaviourCloning(), clone, first),
        (prompts, method, improve, phase),
    ):
        train_phase(policy, task, learned, settings.optimize, duration=settings.train, phase=folder, seed=config.seed)
    evaluations = [row for row in read_lines(phase.folder / "metrics.jsonl") if "eval_score_mean" in row]
    before, after = evaluations[0], evaluations[-1]
    result = {
        "exact_match_before": before["eval_score_mean"],
        "exact_match_after": after["eval_score_mean"],
        "greedy_match_before": before["eval_greedy_score_mean"],
        "greedy_match_after": after["eval_greedy_score_mean"],
        "tokens": after["steps"],
        "seconds": seconds_spent([*first.rows(), *phase.rows()]),
    }
    conclude(run, result)
    return result


if __name__ == "__main__":
    launch(main, Config, default=default_config, picks={"method": method_help(PRESETS)})
