"""Fine-tunes a language model with a reward function of your own: PPO, and a KL charge that keeps it near its start.

    python recipes/custom_reward.py --model gpt2                        # the prompts and the reward of this file
    python recipes/custom_reward.py --model gpt2 --lora                 # adapters only
    python recipes/custom_reward.py --model gpt2 --method grpo          # or any of docs/algorithms.md, or my.py:Method
    python recipes/custom_reward.py --model gpt2 --data prompts.jsonl --reward my_rewards.py:polite
    python recipes/custom_reward.py --model gpt2 --data prompts.jsonl --teacher gpt2-large --improve.method.kl-coef 1
    accelerate launch --config_file recipes/accelerate/multi_gpu.yaml recipes/custom_reward.py --model gpt2

A reward function gets lists, one entry a response, and names what it needs: responses (always plain text), prompts and
completions (strings, or chat messages where the data are chats), completion_ids, finished, and every other column of
the data. It returns one number a response, or a list of one number a token, or, with --allow-none, None where it has no
say; it may be async. The data need a column `prompt` (strings, or lists of chat messages) or `messages`. result.json
tells the mean score on prompts never trained on, before and after; the model is in ppo/final/policy/model, for plain
transformers or peft.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tyro import MISSING
from tyro.conf import UseAppendAction

from recipes.settings.language import (
    Adapted,
    ImproveConfig,
    Precision,
    engine_of,
    for_language_models,
    lora_settings,
    with_method,
)
from rlhf.algorithms.checks import require_policy
from rlhf.algorithms.choices import method_help
from rlhf.algorithms.ppo import PPO
from rlhf.deferred import deferred
from rlhf.lm.settings import CollectResponses, OnError
from rlhf.loop import Duration
from rlhf.optimize import Optimize
from rlhf.runs.launch import launch
from rlhf.settings import Count, CountOrNone, Location, Positive, Seed, Size

with deferred():
    from accelerate import Accelerator

    from rlhf.core.random import derive_seed
    from rlhf.lm.data import load_data
    from rlhf.lm.load import context_length, load_policy, load_tokenizer
    from rlhf.lm.prompts import Prompts
    from rlhf.runs.clock import seconds_spent
    from rlhf.runs.door import require_new_or_resumed
    from rlhf.runs.log import read_lines, trackers
    from rlhf.runs.run import Run
    from rlhf.runs.summary import conclude
    from rlhf.sources import code_sums
    from rlhf.training import require, train_phase

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


def alliteration(responses: list[str], **_: Any) -> list[float]:
    """The reward: the share of words that begin with the letter s. Write your own here."""
    words = [response.lower().split() for response in responses]
    return [sum(word.startswith("s") for word in each) / max(len(each), 1) for each in words]


def nothing(responses: list[str], **_: Any) -> list[float]:
    """The reward where a teacher is all there is."""
    return [0.0] * len(responses)


@dataclass(frozen=True, kw_only=True)
class Config(Adapted):
    """PPO on a reward function."""

    model: Location
    """Hub id or folder of a causal language model or LoRA adapter, or a .gguf file."""
    data: Location = ""
    """A .jsonl, .json, .csv or .parquet file, or a data set of the hub; empty is the prompts in this file."""
    split: str = "train"
    """Split of a data set of the hub."""
    subset: str | None = None
    """Subset (configuration) of a data set of the hub that has several."""
    prompt_column: str = "prompt"
    """What the data call the prompts."""
    held_out: CountOrNone = 16
    """Rows that are only evaluated on."""
    reward: UseAppendAction[tuple[Location, ...]] = ()
    """path/to/file.py:function; may be given several times. Left out, it is the function in this file."""
    reward_weights: tuple[float, ...] = ()
    """Weights of the rewards, in their order; left out, each counts 1."""
    allow_none: bool = False
    """A reward may return None for a response, on which it has no say; where none has one, it is left out."""
    reward_timeout: Size = 0.0
    """Seconds that a reward has for one call; 0 is no limit."""
    on_reward_error: OnError = "stop"
    """After an error or timeout of a reward: stop; retry a few times, then stop; or skip it for these responses."""
    teacher: Location = ""
    """Model with the same tokenizer that the policy is to become like (on-policy distillation): kl_coef charges for the
    KL to it, in the place of that to the start; without a reward there is no other. Takes --improve.method.kl-coef 1,
    and --improve.method.gamma 0 where every token is to answer for itself alone."""
    critic: Literal["shared", "separate", "none"] = "shared"
    """Value head on the policy's own trunk, on a trunk of its own, or no values: all are 0."""
    max_new_tokens: Count = 24
    """Longest response, in tokens."""
    temperature: Positive = 1.0
    """Sampling temperature, in training and in evaluation."""
    seed: Seed = 0
    """Everything random follows from it."""
    output_dir: Path = Path("runs/custom_reward")
    """Folder for what the run leaves behind."""
    resume: bool = False
    """Continue the run in output_dir; with more updates, a finished one too."""
    accept_changes: bool = False
    """With --resume: go on although data, code or models are not those that the run was started from."""
    tensorboard: bool = False
    """Also log for tensorboard, into output_dir/tensorboard."""
    precision: Precision = Precision()
    improve: ImproveConfig = ImproveConfig(
        collect=CollectResponses(prompts_per_rollout=16, responses_per_prompt=4),
        method=PPO(kl_coef=0.01, value_coef=0.1),
        train=Duration(updates=40, eval_every=10, checkpoint_every=10),
        optimize=Optimize(learning_rate=1e-5, epochs=2, minibatches=2),
    )

    def __post_init__(self) -> None:
        require_policy(self.improve.method, memoryless=False, has_critic=self.critic != "none")
        lora_settings(self)


def default_config(method: str = "ppo") -> Config:
    """The settings that go with a method: critic, whitening, steps on each batch; all are charged for their KL."""
    config = Config(model=MISSING)
    critic, improve = with_method(config.improve, method)
    return replace(config, critic=critic, improve=improve)


def main(config: Config) -> dict[str, float | None]:
    accelerator = Accelerator(
        mixed_precision=config.precision.mixed_precision,
        **trackers(tensorboard=config.tensorboard, output_dir=config.output_dir),
    )
    # Whatever can be wrong with the input shows before the weights load, and all else before the folder is made.
    names = {} if config.prompt_column == "prompt" else {config.prompt_column: "prompt"}
    task = Prompts(
        load_data(config.data or PROMPTS, split=config.split, subset=config.subset, rename=names),
        config.reward or (nothing if config.teacher else alliteration),
        reward_weights=config.reward_weights,
        allow_none=config.allow_none,
        reward_timeout=config.reward_timeout,
        on_reward_error=config.on_reward_error,
        max_new_tokens=config.max_new_tokens,
        held_out=config.held_out,
        engine=engine_of(config.improve),
        **vars(config.improve.collect),
    )
    task.read(load_tokenizer(config.model), context=context_length(config.model))
    task.require_size(accelerator)
    require_new_or_resumed(config.output_dir, resume=config.resume)
    method = config.improve.method
    policy = load_policy(
        config.model,
        critic=config.critic,
        **lora_settings(config),
        reference_dtype=config.improve.reference_dtype,
        reference=config.teacher,
        gradient_checkpointing=config.precision.gradient_checkpointing,
        temperature=config.temperature,
        seed=derive_seed(config.seed, "weights"),
    )
    require(policy, task, method, config.improve.optimize, accelerator)
    run = Run(
        config.output_dir,
        config,
        resume=config.resume,
        accelerator=accelerator,
        extendable={"improve.train.updates"},
        inputs=lambda: task.inputs() | code_sums("method", method) | policy.inputs(),
        any_processes=True,
        accept_changes=config.accept_changes,
    )
    phase = run.phase(method.name)
    train_phase(
        policy, task, method, config.improve.optimize, duration=config.improve.train, phase=phase, seed=config.seed
    )
    result = summarise(phase.folder / "metrics.jsonl")
    conclude(run, result)
    return result


def summarise(metrics: Path) -> dict[str, float | None]:
    """The first and the last evaluation, and the time that was spent, over all resumes (see `seconds_spent`)."""
    rows = read_lines(metrics)
    evaluations = [row for row in rows if "eval_score_mean" in row]
    before, after = evaluations[0], evaluations[-1]
    return {
        "score_before": before["eval_score_mean"],
        "score_after": after["eval_score_mean"],
        "greedy_score_before": before["eval_greedy_score_mean"],
        "greedy_score_after": after["eval_greedy_score_mean"],
        "kl_per_response": after.get("eval_kl_ref_per_episode"),
        "seconds": seconds_spent(rows),
    }


if __name__ == "__main__":
    launch(main, Config, default=default_config, picks={"method": method_help(for_language_models())})
