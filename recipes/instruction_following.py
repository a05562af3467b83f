"""A chat model learns to follow instructions that a program can check, and still to answer: PPO or GRPO on a LoRA.

    make model                                                       # what it takes, into models/
    python recipes/instruction_following.py                          # PPO
    python recipes/instruction_following.py --method grpo
    python recipes/instruction_following.py --model HuggingFaceTB/SmolLM2-360M-Instruct --ifeval prompts.jsonl
    accelerate launch --config_file recipes/accelerate/multi_gpu.yaml recipes/instruction_following.py

Prompts are generated: requests of many topics, each with one instruction of IFEval's kinds, none of them IFEval's own.
A number that goes up is easy to get; a model that follows and no longer answers gets it too. So what is followed is
paid by what it is worth as an answer (`followed_in_an_answer`), the KL to the first model is charged (PPO steers it),
and result.json tells what is not trained on: kinds of instruction that no training prompt has, relevance by a sentence
model, length, and with --ifeval and --texts IFEval's prompts and the loss on texts. Changes are paired by prompt, with
95 % intervals over prompts. answers.md shows twenty answers before and after, drawn by the seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from recipes.settings.language import (
    Adapted,
    ImproveConfig,
    Precision,
    engine_of,
    for_language_models,
    lora_settings,
    with_method,
)
from rlhf.algorithms.checks import require_policy, require_rate
from rlhf.algorithms.choices import method_help
from rlhf.algorithms.ppo import PPO
from rlhf.deferred import deferred
from rlhf.lm.settings import CollectResponses
from rlhf.loop import Duration
from rlhf.optimize import Optimize
from rlhf.runs.launch import launch
from rlhf.settings import Count, Location, Positive, Seed

with deferred():
    from accelerate import Accelerator

    from rlhf.core.random import derive_seed
    from rlhf.lm.demonstrations import Texts
    from rlhf.lm.engine import Engine
    from rlhf.lm.load import context_length, load_policy, load_tokenizer, model_sums
    from rlhf.lm.prompts import Prompts
    from rlhf.lm.relevance import Relevance
    from rlhf.lm.verifiers.compared import Evaluations, of_generated, of_ifeval, read_ifeval, shown
    from rlhf.lm.verifiers.counting import num_words
    from rlhf.lm.verifiers.instructions import all_followed, share_followed, share_nearly_followed
    from rlhf.lm.verifiers.kinds import asks_for_little
    from rlhf.lm.verifiers.prompts import instruction_prompts, kinds_but
    from rlhf.runs.clock import seconds_spent
    from rlhf.runs.door import require_new_or_resumed
    from rlhf.runs.run import Run
    from rlhf.runs.summary import conclude
    from rlhf.sources import code_sums
    from rlhf.training import require, train_phase
    from rlhf.watched import Watched

# Kinds of the training prompts, one a prompt: of those that the model follows, or nearly, now and then. The others tell
# whether it follows better, or only these.
TRAINED = (
    "keywords:existence",
    "length_constraints:number_sentences",
    "length_constraints:number_paragraphs",
    "detectable_content:number_placeholders",
    "detectable_content:postscript",
    "detectable_format:number_bullet_lists",
    "detectable_format:constrained_response",
    "detectable_format:number_highlighted_sections",
    "detectable_format:multiple_sections",
    "detectable_format:title",
    "punctuation:no_comma",
)
LANGUAGE = "language:response_language"
# Words of an answer that is worth having, where no instruction asks for a short one.
SUBSTANCE = 25
# What an answer that was cut is worth of one that ended by itself.
CUT = 0.75


def followed_in_an_answer(
    responses: list[str],
    topic: list[str],
    instruction_id_list: list[Any],
    kwargs: list[Any],
    finished: list[bool],
) -> list[float]:
    """What is followed, or nearly, times what it is worth as an answer: less without the topic's words, if it is
    shorter than SUBSTANCE without being asked to be, or if it was cut. So nothing is gained by following and no longer
    answering, nor by an answer that does not follow."""
    followed = share_nearly_followed(responses, instruction_id_list=instruction_id_list, kwargs=kwargs)
    parts = on_topic(responses, topic, instruction_id_list, kwargs), substance(responses, instruction_id_list, kwargs)
    return [
        share * (0.5 + 0.5 * (1.0 if about is None else about)) * worth * (1.0 if ended else CUT)
        for share, about, worth, ended in zip(followed, *parts, finished, strict=True)
    ]


def on_topic(
    responses: list[str], topic: list[str], instruction_id_list: list[Any], kwargs: list[Any]
) -> list[float | None]:
    """The share of the topic's words that an answer takes up, by their first five letters; no say where another
    language is asked for, or one of these words forbidden."""
    return [
        None if _kept_from(about, given) or LANGUAGE in kinds else _taken_up(text.lower(), _stems(about))
        for text, about, kinds, given in zip(responses, topic, instruction_id_list, kwargs, strict=True)
    ]


def _stems(text: str) -> list[str]:
    words = text.lower().split()
    return [word[:5] for word in words if len(word) > 3] or words


def _taken_up(text: str, stems: list[str]) -> float:
    return sum(stem in text for stem in stems) / len(stems)


def _kept_from(topic: str, kwargs: Sequence[Mapping[str, Any]]) -> bool:
    forbidden = [word.lower() for given in kwargs for word in given.get("forbidden_words") or ()]
    return any(stem in word for stem in _stems(topic) for word in forbidden)


def substance(responses: list[str], instruction_id_list: list[Any], kwargs: list[Any]) -> list[float]:
    """1 for an answer of SUBSTANCE words, less for a shorter one, unless that is asked for."""
    return [
        1.0 if asks_for_little(kinds, given) else min(1.0, num_words(text) / SUBSTANCE)
        for text, kinds, given in zip(responses, instruction_id_list, kwargs, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class Config(Adapted):
    """A chat model that follows checkable instructions."""

    model: Location = "models/SmolLM2-135M-Instruct"
    """Hub id or folder of a chat model or LoRA adapter, or a .gguf file; `make model` brings the default."""
    prompts: Count = 4000
    """Generated prompts to train on."""
    held_out: Count = 96
    """Generated prompts to evaluate on, of kinds that are trained; half as many are of kinds that are not."""
    answers_each: Count = 2
    """Sampled answers to each of them, before and after."""
    ifeval: Location = ""
    """Data of IFEval's prompts, with its columns, answered before and after; empty: not."""
    texts: Location = ""
    """Texts, completions or conversations on which the loss is measured before and after; empty: not."""
    sentence_model: Location = "models/all-MiniLM-L6-v2"
    """Folder or hub id of a sentence model that says how near answers are to their request; empty: not measured."""
    lora: bool = True
    """Train a LoRA adapter; without, all weights, which want a tenth of the learning rate."""
    critic: Literal["shared", "separate", "none"] = "shared"
    """Value head on the policy's own trunk, on a trunk of its own, or no values: all are 0."""
    temperature: Positive = 0.7
    """Sampling temperature, in training and in evaluation; at 1 a model of this size says much that makes no sense."""
    max_new_tokens: Count = 80
    """Longest answer, in tokens; of IFEval's prompts twice as much."""
    seed: Seed = 0
    """Everything random follows from it."""
    output_dir: Path = Path("runs/instruction_following")
    """Folder for what the run leaves behind."""
    resume: bool = False
    """Continue the run in output_dir; with more updates, a finished one too."""
    accept_changes: bool = False
    """With --resume: go on although data, code or models are not those that the run was started from."""
    precision: Precision = Precision(mixed_precision="bf16")
    improve: ImproveConfig = ImproveConfig(
        collect=CollectResponses(prompts_per_rollout=64),
        method=PPO(kl_coef=0.02, kl_target=8.0, value_coef=0.1, gae_lambda=1.0),
        train=Duration(updates=36, eval_every=0, checkpoint_every=6),
        # On a CPU a second epoch takes as long as it takes to collect.
        optimize=Optimize(learning_rate=8e-4, critic_learning_rate=5e-5, schedule="linear", epochs=1, minibatches=4),
    )

    def __post_init__(self) -> None:
        lora_settings(self)
        require_policy(self.improve.method, memoryless=False, has_critic=self.critic != "none")
        require_rate(self.improve.optimize, has_critic=self.critic != "none")


def default_config(method: str = "ppo") -> Config:
    """The settings that go with a method: critic, group size, whitening; the charge for the KL."""
    config = Config()
    critic, improve = with_method(config.improve, method)
    return replace(config, critic=critic, improve=improve)


def trained(config: Config) -> list[dict[str, Any]]:
    """Prompts to train on."""
    return instruction_prompts(num_rows=config.prompts, seed=config.seed, kinds=TRAINED, most=1)


def evaluated(config: Config) -> list[dict[str, Any]]:
    """Held-out prompts of kinds that are trained and of kinds that are not, each as often as it is answered."""
    rows = [
        {**row, "trained": kinds is TRAINED}
        for kinds, count in ((TRAINED, config.held_out), (kinds_but(TRAINED), -(-config.held_out // 2)))
        for row in instruction_prompts(num_rows=count, seed=config.seed, held_out=True, kinds=kinds, most=1)
    ]
    return [row for row in rows for _ in range(config.answers_each)]


def task_of(config: Config, accelerator: Accelerator, engine: Engine | None) -> Prompts:
    # Only the first is paid; the others are watched.
    rewards: dict[Any, float] = {followed_in_an_answer: 1.0}
    rewards |= dict.fromkeys((share_followed, share_nearly_followed, on_topic, substance, all_followed), 0.0)
    if config.sentence_model:
        rewards[Relevance(config.sentence_model, device=accelerator.device)] = 0.0
    return Prompts(
        trained(config),
        list(rewards),
        reward_weights=list(rewards.values()),
        allow_none=True,
        held_out=evaluated(config),
        max_new_tokens=config.max_new_tokens,
        engine=engine,
        **vars(config.improve.collect),
    )


def watched_beside(config: Config, accelerator: Accelerator, engine: Engine | None) -> dict[str, Prompts | Texts]:
    """What else is measured, by name."""
    also: dict[str, Prompts | Texts] = {}
    if config.ifeval:
        asked = read_ifeval(config.ifeval)
        also["ifeval"] = Prompts(
            asked,
            [share_followed, all_followed],
            held_out=asked,
            max_new_tokens=2 * config.max_new_tokens,
            prompts_per_rollout=accelerator.num_processes,
            engine=engine,
        )
    if config.texts:
        also["texts"] = Texts(config.texts)
    return also


def main(config: Config) -> dict[str, float | None]:
    accelerator = Accelerator(mixed_precision=config.precision.mixed_precision)
    engine = engine_of(config.improve)
    task, also = task_of(config, accelerator, engine), watched_beside(config, accelerator, engine)
    tokenizer, context = load_tokenizer(config.model), context_length(config.model)
    for each in (task, *also.values()):
        each.read(tokenizer, context=context)
    task.require_size(accelerator)
    require_new_or_resumed(config.output_dir, resume=config.resume)
    method, watched = config.improve.method, Watched(task, also)
    policy = load_policy(
        config.model,
        temperature=config.temperature,
        critic=config.critic,
        **lora_settings(config),
        reference_dtype=config.improve.reference_dtype,
        gradient_checkpointing=config.precision.gradient_checkpointing,
        seed=derive_seed(config.seed, "weights"),
    )
    require(policy, watched, method, config.improve.optimize, accelerator)
    run = Run(
        config.output_dir,
        config,
        resume=config.resume,
        accelerator=accelerator,
        extendable={"improve.train.updates"},
        inputs=lambda: watched.inputs() | code_sums("method", method) | model_sums(config.model),
        any_processes=True,
        accept_changes=config.accept_changes,
    )
    phase = run.phase(method.name)
    train_phase(
        policy, watched, method, config.improve.optimize, duration=config.improve.train, phase=phase, seed=config.seed
    )
    found = Evaluations(phase.folder / "samples.jsonl", evaluated(config))
    result = of_generated(found, seed=config.seed)
    if "ifeval" in also:
        asked = Evaluations(phase.folder / "samples.jsonl", also["ifeval"].data.rows, of="ifeval")
        result |= of_ifeval(asked, seed=config.seed)
    losses = [row["eval_texts_loss"] for row in phase.rows() if "eval_texts_loss" in row]
    if losses:
        result |= {"loss_on_texts_before": losses[0], "loss_on_texts_after": losses[-1]}
    result["seconds"] = seconds_spent(phase.rows())
    run.write_text("answers.md", shown(found, seed=config.seed))
    conclude(run, result)
    return result


if __name__ == "__main__":
    launch(main, Config, default=default_config, picks={"method": method_help(for_language_models())})
