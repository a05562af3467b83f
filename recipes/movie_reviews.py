"""A language model learns to write movie reviews, a classifier to tell their sentiment; PPO turns the writer positive.

    python recipes/movie_reviews.py --data path/to/folder     # which holds train.jsonl and test.jsonl
    python recipes/movie_reviews.py --data rotten_tomatoes    # by name, from the hub
    python recipes/movie_reviews.py --data path/to/folder --method grpo
    accelerate launch --config_file recipes/accelerate/multi_gpu.yaml recipes/movie_reviews.py --data path/to/folder

Everything is trained from scratch on rows of `text` and `label` (1 positive, 0 negative): a tokenizer and a small
language model on all training reviews; on one half of them a transformer, whose log-odds are the reward; on the other
half naive Bayes, which PPO never sees: what it calls positive is sentiment, not a trick on the first. PPO continues the
first words of training reviews and is charged for its KL from the language model. result.json holds the figures on the
first words of test reviews, before and after, and beside them those of the real positive test reviews. Reviews of more
tokens than the classifier reads (384) are left out, since nothing is ever cut. What none of this measures is sense: a
model of this size writes the words of a review, seldom its thoughts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tyro import MISSING

from recipes.settings.language import (
    CloneConfig,
    ImproveConfig,
    Precision,
    engine_of,
    for_language_models,
    with_method,
)
from rlhf.algorithms.choices import method_help
from rlhf.algorithms.clone import BehaviourCloning
from rlhf.algorithms.ppo import PPO
from rlhf.deferred import deferred
from rlhf.errors import InputError
from rlhf.lm.settings import ClassifierConfig, CollectResponses
from rlhf.loop import Duration
from rlhf.optimize import Optimize
from rlhf.runs.launch import launch
from rlhf.settings import Count, Location, Seed, Settings

with deferred():
    from accelerate import Accelerator
    from transformers import BertConfig, LlamaConfig, PreTrainedTokenizerFast

    from rlhf.core.random import derive_seed
    from rlhf.demonstrations import require_rows
    from rlhf.lm.classify import NaiveBayes, distinct_bigrams, labelled_texts, train_classifier
    from rlhf.lm.collect import require_prompts
    from rlhf.lm.data import hold_out
    from rlhf.lm.demonstrations import Demonstrations
    from rlhf.lm.load import build_policy
    from rlhf.lm.policy import CausalLM
    from rlhf.lm.prompts import Prompts
    from rlhf.lm.reward_model import RewardModel
    from rlhf.lm.tokenizers import byte_pair_tokenizer
    from rlhf.runs.clock import seconds_spent
    from rlhf.runs.log import read_lines
    from rlhf.runs.run import Run
    from rlhf.runs.summary import conclude
    from rlhf.sources import code_sums, rows_sums
    from rlhf.training import train_phase

CONTEXT = 96
# Of the classifier. Three bytes stand for each that is no text, so a response can grow when it is read again.
READ = 4 * CONTEXT


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """A language model of reviews, a classifier of their sentiment, then PPO."""

    data: Location
    """Folder with train.jsonl and test.jsonl, or a data set of the hub; columns text and label (1 is positive)."""
    seed: Seed = 0
    """Everything random follows from it."""
    output_dir: Path = Path("runs/movie_reviews")
    """Folder for what the run leaves behind."""
    resume: bool = False
    """Continue the run in output_dir."""
    accept_changes: bool = False
    """With --resume: go on although data, code or models are not those that the run was started from."""
    prompt_words: Count = 4
    """How many words of a review are given."""
    max_new_tokens: Count = 48
    """Longest continuation, in tokens."""
    vocabulary: Count = 4000
    """Tokens in all."""
    hidden_size: Count = 128
    """Width of the language model, which has two layers; the classifier has one and the same width."""
    classifier: ClassifierConfig = ClassifierConfig(epochs=5, learning_rate=5e-4)
    precision: Precision = Precision()
    clone: CloneConfig = CloneConfig(
        rows_per_update=64,
        train=Duration(updates=600, eval_every=0, checkpoint_every=100),
        optimize=Optimize(
            learning_rate=2e-3,
            schedule="linear",
            warmup_updates=50,
            epochs=1,
            whiten="none",
            adam_beta2=0.99,
            weight_decay=0.1,
        ),
    )
    critic: Literal["shared", "separate", "none"] = "shared"
    """Value head on the policy's own trunk, on a trunk of its own, or no values: all are 0."""
    improve: ImproveConfig = ImproveConfig(
        # Bounded, so that more of the same praise pays nothing.
        collect=CollectResponses(prompts_per_rollout=768, score_clip=2.5),
        # With gae_lambda below 1 and a critic that lags behind, the last token gets the most credit: responses shrink.
        method=PPO(gamma=1.0, gae_lambda=1.0, value_coef=0.1, kl_coef=0.08),
        train=Duration(updates=48, eval_every=24, checkpoint_every=12),
        optimize=Optimize(
            learning_rate=6e-4, schedule="linear", warmup_updates=4, epochs=1, minibatches=2, whiten="batch"
        ),
    )


def default_config(method: str = "ppo") -> Config:
    """The settings that go with a method: critic, whitening, group size, steps on each batch; the charge for the KL."""
    config = Config(data=MISSING)
    critic, improve = with_method(config.improve, method)
    return replace(config, critic=critic, improve=improve)


def readable(texts: list[str], labels: list[int], config: Config, tokenizer: Any) -> tuple[list[str], list[int]]:
    """The reviews that the classifier can read with their end, and whose first words leave room to go on.

    Raises:
        InputError: Those that are left do not have both labels, or none is longer than its first words.
    """
    starts = [" ".join(text.split()[: config.prompt_words]) for text in texts]
    lengths, needed = ([len(tokens) for tokens in tokenizer(each)["input_ids"]] for each in (texts, starts))
    kept = [i for i in range(len(texts)) if lengths[i] < READ and needed[i] + config.max_new_tokens <= CONTEXT]
    continued = {labels[i] for i in kept if len(texts[i].split()) > config.prompt_words}
    if continued != {0, 1}:
        raise InputError(
            f"{config.data}: {len(kept)} of {len(texts)} reviews have less than {READ} tokens and first words that "
            f"leave room for max_new_tokens ({config.max_new_tokens}); some of each label must, and be longer than "
            f"prompt_words ({config.prompt_words})."
        )
    return [texts[i] for i in kept], [labels[i] for i in kept]


def beginnings(texts: list[str], config: Config) -> list[dict[str, str]]:
    """The first words of every text that has more of them."""
    words = [text.split() for text in texts]
    starts = [" ".join(each[: config.prompt_words]) for each in words if len(each) > config.prompt_words]
    return [{"prompt": start} for start in starts]


def share(odds: Iterable[float]) -> float:
    """Of those called positive."""
    called = [value > 0 for value in odds]
    return sum(called) / len(called)


def accuracy(odds: list[float], labels: list[int]) -> float:
    return sum((value > 0) == (label == 1) for value, label in zip(odds, labels, strict=True)) / len(labels)


def new_writer(config: Config, tokenizer: Any) -> CausalLM:
    policy = build_policy(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=4 * config.hidden_size,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=None,
        ),
        temperature=1.0,
        critic=config.critic,
        seed=derive_seed(config.seed, "weights"),
        gradient_checkpointing=config.precision.gradient_checkpointing,
        reference_dtype=config.improve.reference_dtype,
    )
    policy.tokenizer = tokenizer
    return policy


def write_classifier(folder: Path, config: Config, tokenizer: Any, texts: Sequence[str], labels: Sequence[int]) -> None:
    model = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=2 * config.hidden_size,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=READ,
        hidden_dropout_prob=0.5,
        pad_token_id=tokenizer.pad_token_id,
        id2label={0: "positive"},
    )
    seed = derive_seed(config.seed, "classifier")
    train_classifier(folder, model, tokenizer, texts, labels, config=config.classifier, seed=seed)


def summary(records: list[dict[str, Any]], real: list[str], tokenizer: Any, config: Config) -> dict[str, float | None]:
    """The responses to held-out prompts, before and after, beside real texts cut in the same way: all longer than the
    prompts.
    """
    before, after = ([row for row in records if row["update"] == update] for update in (0, records[-1]["update"]))
    starts = tokenizer([row["prompt"] for row in beginnings(real, config)])["input_ids"]
    lengths = [
        min(len(whole) + 1 - len(start), config.max_new_tokens)
        for whole, start in zip(tokenizer(real)["input_ids"], starts, strict=True)
    ]
    continuations = [" ".join(text.split()[config.prompt_words :]) for text in real]
    responses = ([row["response"] for row in part] for part in (before, after))
    distinct = distinct_bigrams(*responses, continuations)
    result: dict[str, float | None] = {}
    for name, part in (("before", before), ("after", after)):
        result[f"positive_{name}"] = share(row["parts"]["reward_model"] for row in part)
        result[f"second_classifier_{name}"] = share(row["parts"]["second_classifier"] for row in part)
        result[f"length_{name}"] = sum(row["length"] for row in part) / len(part)
    return result | {
        "kl_per_response": None if after[0]["kl"] is None else sum(row["kl"] for row in after) / len(after),
        "distinct2_before": distinct[0],
        "distinct2_after": distinct[1],
        "real_distinct2": distinct[2],
        "real_length": sum(lengths) / len(lengths),
    }


def inputs(config: Config, parts: dict[str, tuple[list[str], list[int]]]) -> dict[str, str]:
    """What a resumed run must find as it was."""
    sums = code_sums("method", config.improve.method)
    for name, (texts, labels) in parts.items():
        rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
        sums |= rows_sums("data", f"{config.data} ({name})", rows)
    return sums


def main(config: Config) -> dict[str, float | None]:
    accelerator = Accelerator(mixed_precision=config.precision.mixed_precision)
    texts, labels = labelled_texts(config.data, "train")
    test_texts, test_labels = labelled_texts(config.data, "test")
    # Whatever can be wrong with the data shows before the folder of the run is made and before anything is trained.
    tokenizer = byte_pair_tokenizer(texts, size=config.vocabulary)
    texts, labels = readable(texts, labels, config, tokenizer)
    test_texts, test_labels = readable(test_texts, test_labels, config, tokenizer)
    halves = hold_out(len(texts), num_held_out=len(texts) // 2, seed=config.seed)
    first, second = (([texts[i] for i in half], [labels[i] for i in half]) for half in (x.tolist() for x in halves))
    bayes = NaiveBayes(*second)
    short = [text for text, tokens in zip(texts, tokenizer(texts)["input_ids"], strict=True) if len(tokens) < CONTEXT]
    require_rows(len(short), config.clone.rows_per_update, accelerator)
    require_prompts(beginnings(texts, config), config.improve.collect, accelerator)
    run = Run(
        config.output_dir,
        config,
        resume=config.resume,
        accelerator=accelerator,
        extendable={"improve.train.updates"},
        inputs=lambda: inputs(config, {"train": (texts, labels), "test": (test_texts, test_labels)}),
        accept_changes=config.accept_changes,
    )
    sft, phase = run.phase("sft"), run.phase(config.improve.method.name)
    vocabulary = sft.once("tokenizer", lambda folder: tokenizer.save_pretrained(folder))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(vocabulary)
    classifier = phase.once("classifier", lambda folder: write_classifier(folder, config, tokenizer, *first))
    reward_model = RewardModel(str(classifier), device=accelerator.device)

    def second_classifier(prompts: list[str], responses: list[str]) -> list[float]:
        return bayes([prompt + response for prompt, response in zip(prompts, responses, strict=True)])

    # The second is only watched: its weight is 0.
    paid: dict[str, Any] = {"reward": [reward_model, second_classifier], "reward_weights": [1.0, 0.0]}
    sizes = {"max_new_tokens": config.max_new_tokens, **vars(config.improve.collect)}
    sizes["engine"] = engine_of(config.improve)
    held_out = beginnings(test_texts, config)
    prompts, watched = (
        Prompts(beginnings(texts, config), held_out=evaluated, **paid, **sizes)
        for evaluated in (held_out, held_out[:100])
    )
    shown = Demonstrations(
        [{"text": text} for text in short], rows_per_update=config.clone.rows_per_update, also=watched
    )
    policy = new_writer(config, tokenizer)
    for task, method, settings, folder in (
        (shown, BehaviourCloning(), config.clone, sft),
        (prompts, config.improve.method, config.improve, phase),
    ):
        train_phase(policy, task, method, settings.optimize, duration=settings.train, phase=folder, seed=config.seed)
    records = [row for row in read_lines(phase.folder / "samples.jsonl") if row["kind"] == "evaluation"]
    positive = [text for text, label in zip(test_texts, test_labels, strict=True) if label]
    real = [text for text in positive if len(text.split()) > config.prompt_words]
    result = summary(records, real, tokenizer, config)
    # To the reward model whole texts are prompts after which nothing comes.
    for kind, name, odds in (
        ("positive", "classifier", lambda texts: reward_model(texts, [""] * len(texts), [True] * len(texts))),
        ("second_classifier", "second_classifier", bayes),
    ):
        result |= {f"real_{kind}": share(odds(real)), f"{name}_accuracy": accuracy(odds(test_texts), test_labels)}
    result["seconds"] = seconds_spent([*sft.rows(), *phase.rows()])
    conclude(run, result)
    return result


if __name__ == "__main__":
    launch(main, Config, default=default_config, picks={"method": method_help(for_language_models())})
