"""Fine-tunes a language model with a reward function of your own: PPO, and a KL charge that keeps it near its start.

    python recipes/custom_reward.py --model gpt2                        # the prompts and the reward of this file
    python recipes/custom_reward.py --model gpt2 --lora                 # adapters only
    python recipes/custom_reward.py --model gpt2 --data prompts.jsonl --reward my_rewards.py:polite
    accelerate launch --config_file recipes/accelerate/multi_gpu.yaml recipes/custom_reward.py --model gpt2

A reward function gets lists, one entry a response, and names what it needs: prompts, completions, completion_ids,
finished, and every other column of the data. It returns one number a response, or a list of one number a token; it may
be async. The data need a column `prompt` (strings, or lists of chat messages) or `messages`. result.json tells the mean
score on prompts never trained on, before and after; the model is in ppo/final/policy/model, for plain
transformers or peft.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from tyro.conf import UseAppendAction

from rlhf import optimize, train
from rlhf.algorithms import ppo
from rlhf.algorithms.catalogue import require_critic
from rlhf.core.random import derive_seed
from rlhf.errors import InputError
from rlhf.lm import collect
from rlhf.lm.data import Prompt, hold_out, load_data, prompt_rows
from rlhf.lm.evaluate import ResponseEvaluator
from rlhf.lm.finetune import ImproveConfig, Precision, improve
from rlhf.lm.generate import Sampling
from rlhf.lm.load import ModelConfig, context_length, load_policy, load_tokenizer, stop_tokens
from rlhf.lm.rewards import Rewards, load_reward
from rlhf.runs.launch import launch
from rlhf.runs.log import read_lines, trackers
from rlhf.runs.run import Run
from rlhf.runs.summary import conclude

BEGINNINGS = (
    "The story of",
    "What I like about",
    "Everybody knows",
    "Last night we saw",
    "Nobody spoke of",
    "I sing of",
)
SUBJECTS = ("the sea", "my sister", "an old house", "the city", "winter", "a stranger", "music", "the moon")
PROMPTS = [{"prompt": f"{beginning} {subject}"} for beginning in BEGINNINGS for subject in SUBJECTS]


def alliteration(completions: list[str], **_: Any) -> list[float]:
    """The reward: the share of words that begin with the letter s. Write your own here."""
    words = [completion.lower().split() for completion in completions]
    return [sum(word.startswith("s") for word in each) / max(len(each), 1) for each in words]


@dataclass(frozen=True, kw_only=True)
class Config:
    """PPO on a reward function."""

    model: str
    """Hub id or folder of a causal language model, or of a LoRA adapter."""
    data: str = ""
    """A .jsonl, .json, .csv or .parquet file, or a data set of the hub; empty is the prompts in this file."""
    split: str = "train"
    """Of a data set of the hub."""
    subset: str | None = None
    """Of a data set of the hub that has several."""
    prompt_column: str = "prompt"
    """What the data call the prompts."""
    held_out: int = 16
    """Rows that are only evaluated on."""
    reward: UseAppendAction[tuple[str, ...]] = ()
    """path/to/file.py:function; may be given several times. Left out, it is the function in this file."""
    reward_weights: tuple[float, ...] = ()
    """One for each reward; left out, each counts 1."""
    lora: bool = False
    """Train a LoRA adapter only; a learning rate ten times as large suits it."""
    critic: Literal["shared", "separate", "none"] = "shared"
    """Value head on the policy's own trunk, on a trunk of its own, or no values: all are 0."""
    max_new_tokens: int = 24
    """Longest response, in tokens."""
    temperature: float = 1.0
    """Of sampling, in training and in evaluation."""
    seed: int = 0
    """Everything random follows from it."""
    output_dir: Path = Path("runs/custom_reward")
    """Folder for what the run leaves behind."""
    resume: bool = False
    """Continue the run in output_dir; with more updates, a finished one too."""
    tensorboard: bool = False
    """Also log for tensorboard, into output_dir/tensorboard."""
    precision: Precision = Precision()
    improve: ImproveConfig = ImproveConfig(
        collect=collect.Config(prompts_per_rollout=16, responses_per_prompt=4),
        method=ppo.Config(kl_coef=0.01, value_coef=0.1),
        train=train.Config(updates=40, eval_every=10, checkpoint_every=10),
        optimize=optimize.Config(learning_rate=1e-5, epochs=2, minibatches=2),
    )

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"temperature is {self.temperature}; it must be above 0.")
        require_critic(self.improve.method, self.critic)


def read_prompts(config: Config, tokenizer: Any) -> tuple[list[Prompt], list[Prompt]]:
    """Those to train on, and those to evaluate on."""
    names = {} if config.prompt_column == "prompt" else {config.prompt_column: "prompt"}
    data = load_data(config.data or PROMPTS, split=config.split, subset=config.subset, rename=names)
    context = context_length(config.model)
    prompts = prompt_rows(data, tokenizer, max_new_tokens=config.max_new_tokens, context=context)
    train_rows, held_out_rows = hold_out(len(prompts), num_held_out=config.held_out, seed=config.seed)
    return [prompts[row] for row in train_rows.tolist()], [prompts[row] for row in held_out_rows.tolist()]


def main(config: Config) -> dict[str, float | None]:
    accelerator = Accelerator(
        mixed_precision=config.precision.mixed_precision,
        **trackers(tensorboard=config.tensorboard, output_dir=config.output_dir),
    )
    # Whatever can be wrong with the input shows before the folder of the run is made and before the weights load.
    rewards = Rewards([load_reward(place) for place in config.reward] or [alliteration], config.reward_weights or None)
    tokenizer = load_tokenizer(config.model)
    sampling = Sampling(max_new_tokens=config.max_new_tokens, stop_tokens=stop_tokens(config.model, tokenizer))
    train_prompts, held_out_prompts = read_prompts(config, tokenizer)
    collect.require_prompts(train_prompts, config.improve.collect, accelerator)
    evaluate = ResponseEvaluator(
        held_out_prompts,
        tokenizer,
        rewards,
        sampling=sampling,
        seed=config.seed,
        accelerator=accelerator,
        micro_batch_cost=config.improve.optimize.micro_batch_cost,
        use_reference=config.improve.method.kl_coef > 0,
    )
    run = Run(
        config.output_dir, config, resume=config.resume, accelerator=accelerator, extendable={"improve.train.updates"}
    )
    phase = run.phase("ppo")
    policy = load_policy(
        ModelConfig(
            model=config.model,
            critic=config.critic,
            lora_rank=16 if config.lora else 0,
            gradient_checkpointing=config.precision.gradient_checkpointing,
        ),
        temperature=config.temperature,
        seed=derive_seed(config.seed, "weights"),
    )
    policy.tokenizer = tokenizer
    improve(
        policy,
        train_prompts,
        tokenizer,
        rewards,
        evaluate,
        sampling=sampling,
        config=config.improve,
        phase=phase,
        accelerator=accelerator,
        seed=config.seed,
    )
    result = summarise(phase.folder / "metrics.jsonl")
    conclude(run, result)
    return result


def summarise(metrics: Path) -> dict[str, float | None]:
    """The first and the last evaluation, and the time that was spent, over all resumes."""
    rows = read_lines(metrics)
    evaluations = [row for row in rows if "eval_score_mean" in row]
    before, after = evaluations[0], evaluations[-1]
    return {
        "score_before": before["eval_score_mean"],
        "score_after": after["eval_score_mean"],
        "greedy_score_before": before["eval_greedy_score_mean"],
        "greedy_score_after": after["eval_greedy_score_mean"],
        "kl_per_response": after.get("eval_kl_ref_per_episode"),
        "seconds": sum(value for row in rows for name, value in row.items() if name.startswith("seconds/")),
    }


if __name__ == "__main__":
    launch(main, Config)
