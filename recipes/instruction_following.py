"""A chat model learns to follow instructions that a program can check, and still to answer: PPO or GRPO on a LoRA.

    make model                                                       # what it takes, into models/
    python recipes/instruction_following.py                          # PPO
    python recipes/instruction_following.py --method grpo
    python recipes/instruction_following.py --model HuggingFaceTB/SmolLM2-360M-Instruct --ifeval prompts.jsonl
    accelerate launch --config_file recipes/accelerate/multi_gpu.yaml recipes/instruction_following.py

Prompts are generated: requests of many topics with one to three instructions of IFEval's kinds, none of them IFEval's
own. A number that goes up is easy to get; a model that follows and no longer answers gets it too. So the reward has
parts that pay for an answer (`on_topic`, `substance`), the KL to the first model is steered, and result.json tells what
no reward sees: kinds of instruction that are not trained, relevance by a sentence model, length, and with --ifeval and
--texts IFEval's prompts and the loss on texts. Changes are paired by prompt, with 95 % intervals over prompts.
answers.md shows twenty answers before and after, drawn by the seed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from recipes.settings.language import ImproveConfig, Precision, for_language_models, with_method
from rlhf.algorithms.checks import require_policy
from rlhf.algorithms.choices import method_help
from rlhf.algorithms.ppo import PPO
from rlhf.deferred import deferred
from rlhf.lm.settings import CollectResponses
from rlhf.loop import Duration
from rlhf.optimize import Optimize
from rlhf.runs.launch import launch
from rlhf.settings import Count, CountOrNone, Location, Positive, Seed, Settings, Size

with deferred():
    from accelerate import Accelerator

    from rlhf.core.random import derive_seed
    from rlhf.lm.data import load_data
    from rlhf.lm.load import context_length, load_policy, load_tokenizer, model_sums
    from rlhf.lm.prompts import Prompts
    from rlhf.lm.relevance import Relevance
    from rlhf.lm.verifiers.compared import Apart, compared, read_ifeval, show
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

# Kinds that no training row has: whether the model follows better, or only these.
UNTRAINED = (
    "keywords:frequency",
    "detectable_format:title",
    "length_constraints:number_paragraphs",
    "startend:end_checker",
    "change_case:capital_word_frequency",
)
# Words of an answer that is worth having, where no instruction asks for a short one.
SUBSTANCE = 40


def on_topic(responses: list[str], request: list[str]) -> list[float]:
    """The share of the request's longer words that an answer takes up, by their first five letters."""
    return [_taken_up(response.lower(), asked.lower()) for response, asked in zip(responses, request, strict=True)]


def _taken_up(response: str, request: str) -> float:
    stems = {word.strip(".,?!:;\"'")[:5] for word in request.split()}
    stems = {stem for stem in stems if len(stem) == 5}
    return sum(stem in response for stem in stems) / len(stems) if stems else 1.0


def substance(
    responses: list[str], instruction_id_list: list[list[str]], kwargs: list[list[dict[str, Any]]]
) -> list[float | None]:
    """1 for an answer of SUBSTANCE words, and less for a shorter one; no say where a short one is asked for."""
    return [
        None if asks_for_little(kinds, given) else min(1.0, num_words(text) / SUBSTANCE)
        for text, kinds, given in zip(responses, instruction_id_list, kwargs, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """A chat model that follows checkable instructions."""

    model: Location = "models/SmolLM2-135M-Instruct"
    """Hub id or folder of a chat model or LoRA adapter, or a .gguf file; `make model` brings the default."""
    prompts: Count = 4000
    """Generated prompts to train on."""
    held_out: Count = 128
    """Generated prompts to evaluate on, of kinds that are trained; half as many are of kinds that are not."""
    answers_each: Count = 2
    """Sampled answers to each of them, before and after."""
    ifeval: Location = ""
    """Data of IFEval's prompts, with its columns, answered greedily before and after; empty: not."""
    texts: Location = ""
    """Data with a column text, on which the loss is measured before and after; empty: not."""
    sentence_model: Location = "models/all-MiniLM-L6-v2"
    """Folder or hub id of a sentence model that says how near answers are to their request; empty: not measured."""
    followed_weight: Size = 1.0
    """What the share of instructions that are followed counts in the reward."""
    nearly_weight: Size = 1.0
    """What it counts where an instruction that is nearly followed has its part: most are never followed at first."""
    on_topic_weight: Size = 0.5
    """What taking up the words of the request counts."""
    substance_weight: Size = 0.5
    """What an answer of some length counts."""
    lora_rank: CountOrNone = 16
    """Rank of the LoRA adapter that is trained; 0 trains all weights, at a tenth of the learning rate."""
    lora_alpha: Positive = 32.0
    """Scale of the adapter, which adds alpha / rank times its product."""
    critic: Literal["shared", "separate", "none"] = "shared"
    """Value head on the policy's own trunk, on a trunk of its own, or no values: all are 0."""
    temperature: Positive = 0.7
    """Sampling temperature, in training and in evaluation; at 1 a model of this size says much that makes no sense."""
    max_new_tokens: Count = 96
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
        train=Duration(updates=30, eval_every=0, checkpoint_every=5),
        # On a CPU a second epoch takes as long as it takes to collect.
        optimize=Optimize(learning_rate=4e-4, schedule="linear", epochs=1, minibatches=4),
    )

    def __post_init__(self) -> None:
        require_policy(self.improve.method, memoryless=False, has_critic=self.critic != "none")


def default_config(method: str = "ppo") -> Config:
    """The settings that go with a method: critic, group size, whitening; the charge for the KL."""
    config = Config()
    critic, improve = with_method(config.improve, method)
    return replace(config, critic=critic, improve=improve)


def evaluated(config: Config) -> list[dict[str, Any]]:
    """Held-out prompts of kinds that are trained and of kinds that are not, each as often as it is answered."""
    rows = [
        {**row, "trained": kinds is not UNTRAINED}
        for kinds, count in ((kinds_but(UNTRAINED), config.held_out), (UNTRAINED, -(-config.held_out // 2)))
        for row in instruction_prompts(num_rows=count, seed=config.seed, held_out=True, kinds=kinds)
    ]
    return [row for row in rows for _ in range(config.answers_each)]


def main(config: Config) -> dict[str, float | None]:
    accelerator = Accelerator(mixed_precision=config.precision.mixed_precision)
    rewards: dict[Any, float] = {
        share_followed: config.followed_weight,
        share_nearly_followed: config.nearly_weight,
        on_topic: config.on_topic_weight,
        substance: config.substance_weight,
        # What is only watched.
        all_followed: 0.0,
    }
    if config.sentence_model:
        rewards[Relevance(config.sentence_model)] = 0.0
    held_out = evaluated(config)
    task = Prompts(
        instruction_prompts(num_rows=config.prompts, seed=config.seed, kinds=kinds_but(UNTRAINED)),
        list(rewards),
        reward_weights=list(rewards.values()),
        allow_none=True,
        held_out=held_out,
        max_new_tokens=config.max_new_tokens,
        **vars(config.improve.collect),
    )
    task.read(load_tokenizer(config.model), context=context_length(config.model))
    task.require_size(accelerator)
    apart = Apart(
        ifeval=read_ifeval(config.ifeval) if config.ifeval else [],
        texts=load_data(config.texts) if config.texts else None,
        max_new_tokens=2 * config.max_new_tokens,
        token_budget=config.improve.optimize.micro_batch_cost,
    )
    require_new_or_resumed(config.output_dir, resume=config.resume)
    method = config.improve.method
    policy = load_policy(
        config.model,
        temperature=config.temperature,
        critic=config.critic,
        lora_rank=config.lora_rank,
        lora_alpha=config.lora_alpha,
        reference_dtype=config.improve.reference_dtype,
        gradient_checkpointing=config.precision.gradient_checkpointing,
        seed=derive_seed(config.seed, "weights"),
    )
    require(policy, task, method, config.improve.optimize, accelerator)
    run = Run(
        config.output_dir,
        config,
        resume=config.resume,
        accelerator=accelerator,
        extendable={"improve.train.updates"},
        inputs=lambda: task.inputs() | code_sums("method", method) | model_sums(config.model) | apart.inputs(),
        accept_changes=config.accept_changes,
    )
    phase = run.phase(method.name)
    policy.compute_in(config.precision.mixed_precision)
    before = apart.measured(phase, "before", policy)
    train_phase(
        policy, task, method, config.improve.optimize, duration=config.improve.train, phase=phase, seed=config.seed
    )
    after = apart.measured(phase, f"after-{config.improve.train.target}", policy)
    samples = phase.folder / "samples.jsonl"
    result = compared(samples, held_out, seed=config.seed) | apart.change(before, after, seed=config.seed)
    result["seconds"] = seconds_spent(phase.rows())
    show(samples, held_out, run.folder / "answers.md", seed=config.seed)
    conclude(run, result)
    return result


if __name__ == "__main__":
    launch(main, Config, default=default_config, picks={"method": method_help(for_language_models())})
