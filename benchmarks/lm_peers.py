"""One run of a peer's trainer, for lm_ppo.py, in an environment of the peer's own: prints seconds an update.

.venv-trl-ppo/bin/python benchmarks/lm_peers.py ppo WORKLOAD     # as lm_ppo.py writes it: a JSON object
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback


class Clock(TrainerCallback):
    """When each optimizer step, or update, was done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())


def common(work: dict[str, Any], folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": work["rows"],
        "learning_rate": 1e-5,
        "temperature": 1.0,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": work["bf16"],
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }


def ppo(work: dict[str, Any], folder: str) -> list[float]:
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(work["model"], padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32) for _ in range(2))
    # Its critic and its reward are models like the policy: it takes no other.
    values, rewards = (
        AutoModelForSequenceClassification.from_pretrained(work["model"], num_labels=1, dtype=torch.float32)
        for _ in range(2)
    )
    rows = Dataset.from_list([{"input_ids": tokenizer(text)["input_ids"]} for text in work["prompts"]])
    clock = Clock()
    PPOTrainer(
        args=PPOConfig(
            **common(work, folder),
            total_episodes=work["rows"] * work["updates"],
            num_ppo_epochs=work["epochs"],
            num_mini_batches=1,
            local_rollout_forward_batch_size=work["rows"],
            response_length=work["response"],
            num_sample_generations=0,
            kl_coef=0.05,
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=rewards,
        value_model=values,
        train_dataset=rows,
        eval_dataset=rows.select(range(2)),
        callbacks=[clock],
    ).train()
    return clock.times


def grpo(work: dict[str, Any], folder: str) -> list[float]:
    from trl import GRPOConfig, GRPOTrainer

    def letters(completions: list[str], **_: Any) -> list[float]:
        return [text.count("a") / 10 for text in completions]

    adapter = None
    if work["lora_rank"]:
        from peft import LoraConfig

        adapter = LoraConfig(r=work["lora_rank"], lora_alpha=2 * work["lora_rank"], target_modules="all-linear")
    clock = Clock()
    GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32),
        args=GRPOConfig(
            **common(work, folder),
            num_generations=work["group"],
            steps_per_generation=1,
            num_iterations=work["epochs"],
            max_steps=work["updates"] * work["epochs"],
            max_completion_length=work["response"],
            # As PPO's, which decodes all of them; of their full length.
            generation_kwargs={"min_new_tokens": work["response"]},
            beta=0.05,
        ),
        reward_funcs=letters,
        processing_class=AutoTokenizer.from_pretrained(work["model"], padding_side="left"),
        train_dataset=Dataset.from_list([{"prompt": text} for text in work["prompts"]]),
        peft_config=adapter,
        callbacks=[clock],
    ).train()
    # An update is as many steps as the batch has epochs.
    return clock.times[work["epochs"] - 1 :: work["epochs"]]


def main() -> None:
    work = json.loads(sys.argv[2])
    torch.set_num_threads(work["threads"])
    with tempfile.TemporaryDirectory() as folder:
        times = {"ppo": ppo, "grpo": grpo}[sys.argv[1]](work, folder)
    print(json.dumps({"seconds": [after - before for before, after in itertools.pairwise(times)]}))


if __name__ == "__main__":
    main()
