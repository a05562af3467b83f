"""A language model learns to write movie reviews, a classifier to tell their sentiment; PPO turns the writer positive.

    python recipes/movie_reviews.py --data path/to/folder     # which holds train.jsonl and test.jsonl
    python recipes/movie_reviews.py --data rotten_tomatoes    # by name, from the hub
    accelerate launch --config_file recipes/accelerate/multi_gpu.yaml recipes/movie_reviews.py --data path/to/folder

Everything is trained from scratch on rows of `text` and `label` (1 positive, 0 negative): a tokenizer and a small
language model on all training reviews; on one half of them a transformer, whose log-odds are the reward; on the other
half naive Bayes, which PPO never sees: what it calls positive is sentiment, not a trick on the first. PPO continues the
first words of training reviews and is charged for its KL from the language model. result.json holds the figures on the
first words of test reviews, before and after, and beside them those of the real positive test reviews. What none of
this measures is sense: a model of this size writes the words of a review, seldom its thoughts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, LlamaConfig, PreTrainedTokenizerFast

from rlhf import optimize, train
from rlhf.algorithms import ppo
from rlhf.core.random import derive_seed
from rlhf.errors import InputError
from rlhf.lm import collect
from rlhf.lm.classify import ClassifierConfig, NaiveBayes, distinct_bigrams, train_classifier
from rlhf.lm.data import Prompt, demonstration_rollout, hold_out, load_data, prompt_rows
from rlhf.lm.evaluate import ResponseEvaluator
from rlhf.lm.finetune import CloneConfig, ImproveConfig, Precision, clone, improve
from rlhf.lm.generate import Sampling
from rlhf.lm.load import build_policy
from rlhf.lm.reward_model import RewardModel
from rlhf.lm.rewards import Rewards
from rlhf.runs.launch import launch
from rlhf.runs.log import read_lines
from rlhf.runs.run import Phase, Run
from rlhf.runs.summary import conclude

CONTEXT = 96


@dataclass(frozen=True, kw_only=True)
class Config:
    """A language model of reviews, a classifier of their sentiment, then PPO."""

    data: str
    """Folder with train.jsonl and test.jsonl, or a data set of the hub; columns text and label (1 is positive)."""
    seed: int = 0
    """Everything random follows from it."""
    output_dir: Path = Path("runs/movie_reviews")
    """Folder for what the run leaves behind."""
    resume: bool = False
    """Continue the run in output_dir."""
    prompt_words: int = 4
    """How many words of a review are given."""
    max_new_tokens: int = 48
    """Longest continuation, in tokens."""
    vocabulary: int = 4000
    """Tokens in all."""
    hidden_size: int = 128
    """Width of the language model, which has two layers; the classifier has one and the same width."""
    classifier: ClassifierConfig = ClassifierConfig(epochs=5, learning_rate=5e-4)
    precision: Precision = Precision()
    clone: CloneConfig = CloneConfig(
        rows_per_update=64,
        train=train.Config(updates=600, eval_every=0, checkpoint_every=100),
        optimize=optimize.Config(
            learning_rate=2e-3,
            schedule="linear",
            warmup_updates=50,
            epochs=1,
            whiten="none",
            adam_beta2=0.99,
            weight_decay=0.1,
        ),
    )
    improve: ImproveConfig = ImproveConfig(
        # Bounded, so that more of the same praise pays nothing.
        collect=collect.Config(prompts_per_rollout=512, score_clip=2.5),
        # With gae_lambda below 1 and a critic that lags behind, the last token gets the most credit: responses shrink.
        method=ppo.Config(gamma=1.0, gae_lambda=1.0, value_coef=0.1, kl_coef=0.08),
        train=train.Config(updates=48, eval_every=24, checkpoint_every=12),
        optimize=optimize.Config(
            learning_rate=6e-4, schedule="linear", warmup_updates=4, epochs=1, minibatches=2, whiten="batch"
        ),
    )


def load_reviews(source: str, split: str) -> tuple[list[str], list[int]]:
    """Texts and labels of a split."""
    folder = Path(source).expanduser()
    if source.startswith(("/", ".", "~")) and not folder.is_dir():
        raise InputError(f"there is no folder {source}; give one with train.jsonl and test.jsonl, or a hub name.")
    data = load_data(folder / f"{split}.jsonl") if folder.is_dir() else load_data(source, split=split)
    texts = data.strings("text")
    labels = [row.get("label") for row in data.rows]
    if set(labels) != {0, 1}:
        found = ", ".join(sorted({repr(label) for label in labels})[:5])
        raise InputError(f"{data.name}: label must be 1 for positive and 0 for negative reviews; there is {found}.")
    return texts, [int(label) for label in labels if label is not None]


def write_tokenizer(folder: Path, texts: list[str], *, size: int) -> None:
    """Byte-pair encoding, trained on the texts; every text begins with <bos>."""
    special = ["<pad>", "<bos>", "<eos>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    ).save_pretrained(folder)


def beginnings(texts: list[str], tokenizer: Any, config: Config) -> list[Prompt]:
    """The first words of every text that has more of them."""
    words = [text.split() for text in texts]
    prompts = [" ".join(each[: config.prompt_words]) for each in words if len(each) > config.prompt_words]
    rows = load_data([{"prompt": prompt} for prompt in prompts])
    return prompt_rows(rows, tokenizer, max_new_tokens=config.max_new_tokens, context=CONTEXT)


def share(values: list[bool]) -> float:
    return sum(values) / len(values)


def summary(
    phase: Phase, real: list[str], tokenizer: Any, reward_model: RewardModel, bayes: NaiveBayes, config: Config
) -> dict[str, float]:
    """The responses to held-out prompts, before and after, beside real positive reviews cut in the same way."""
    records = [record for record in read_lines(phase.folder / "samples.jsonl") if record["kind"] == "evaluation"]
    before, after = (
        [record for record in records if record["update"] == update] for update in (0, records[-1]["update"])
    )
    starts = beginnings(real, tokenizer, config)
    real = [text for text in real if len(text.split()) > config.prompt_words]
    tokens = tokenizer(real)["input_ids"]
    lengths = [
        min(len(whole) + 1 - len(start.tokens), config.max_new_tokens)
        for whole, start in zip(tokens, starts, strict=True)
    ]
    continuations = [" ".join(text.split()[config.prompt_words :]) for text in real]
    responses = ([record["response"] for record in part] for part in (before, after))
    distinct = distinct_bigrams(*responses, continuations)
    result = {}
    for name, part in (("before", before), ("after", after)):
        result[f"positive_{name}"] = share([record["parts"]["reward_model"] > 0 for record in part])
        result[f"second_classifier_{name}"] = share([record["parts"]["second_classifier"] > 0 for record in part])
        result[f"length_{name}"] = sum(record["length"] for record in part) / len(part)
    scores = reward_model(real, [""] * len(real), [True] * len(real))
    return result | {
        "kl_per_response": sum(record["kl"] for record in after) / len(after),
        "distinct2_before": distinct[0],
        "distinct2_after": distinct[1],
        "real_positive": share([score > 0 for score in scores]),
        "real_second_classifier": share([score > 0 for score in bayes(real)]),
        "real_length": sum(lengths) / len(lengths),
        "real_distinct2": distinct[2],
    }


def main(config: Config) -> dict[str, float]:
    start = time.perf_counter()
    accelerator = Accelerator(mixed_precision=config.precision.mixed_precision)
    texts, labels = load_reviews(config.data, "train")
    test_texts, test_labels = load_reviews(config.data, "test")
    run = Run(
        config.output_dir, config, resume=config.resume, accelerator=accelerator, extendable={"improve.train.updates"}
    )
    sft, phase = run.phase("sft"), run.phase("ppo")
    folder = sft.once("tokenizer", lambda folder: write_tokenizer(folder, texts, size=config.vocabulary))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    first, second = (half.tolist() for half in hold_out(len(texts), num_held_out=len(texts) // 2, seed=config.seed))
    classifier = phase.once(
        "classifier",
        lambda folder: train_classifier(
            folder,
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=config.hidden_size,
                intermediate_size=2 * config.hidden_size,
                num_hidden_layers=1,
                num_attention_heads=4,
                # Three bytes stand for each that is no text, so a response can grow when it is read again.
                max_position_embeddings=4 * CONTEXT,
                hidden_dropout_prob=0.5,
                pad_token_id=tokenizer.pad_token_id,
                id2label={0: "positive"},
            ),
            tokenizer,
            [texts[i] for i in first],
            [labels[i] for i in first],
            config=config.classifier,
            seed=derive_seed(config.seed, "classifier"),
        ),
    )
    reward_model = RewardModel(str(classifier), device=accelerator.device)
    bayes = NaiveBayes([texts[i] for i in second], [labels[i] for i in second])

    def second_classifier(prompts: list[str], completions: list[str]) -> list[float]:
        return bayes([prompt + completion for prompt, completion in zip(prompts, completions, strict=True)])

    # The second is only watched: its weight is 0.
    rewards = Rewards([reward_model, second_classifier], [1.0, 0.0])
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
        critic="shared",
        seed=derive_seed(config.seed, "weights"),
        gradient_checkpointing=config.precision.gradient_checkpointing,
    )
    policy.tokenizer = tokenizer
    sampling = Sampling(max_new_tokens=config.max_new_tokens, stop_tokens=(tokenizer.eos_token_id,))
    held_out = beginnings(test_texts, tokenizer, config)
    evaluate, evaluate_with_kl = (
        ResponseEvaluator(
            prompts,
            tokenizer,
            rewards,
            sampling=sampling,
            seed=config.seed,
            accelerator=accelerator,
            micro_batch_cost=config.improve.optimize.micro_batch_cost,
            use_reference=use_reference,
        )
        for prompts, use_reference in ((held_out[:100], False), (held_out, True))
    )
    short = [text for text, tokens in zip(texts, tokenizer(texts)["input_ids"], strict=True) if len(tokens) < CONTEXT]
    clone(
        policy,
        demonstration_rollout(load_data([{"text": text} for text in short]), tokenizer, context=CONTEXT),
        evaluate,
        config=config.clone,
        phase=sft,
        accelerator=accelerator,
        seed=config.seed,
    )
    improve(
        policy,
        beginnings(texts, tokenizer, config),
        tokenizer,
        rewards,
        evaluate_with_kl,
        sampling=sampling,
        config=config.improve,
        phase=phase,
        accelerator=accelerator,
        seed=config.seed,
    )
    real = [text for text, label in zip(test_texts, test_labels, strict=True) if label]
    is_positive = [label == 1 for label in test_labels]
    calls = (reward_model(test_texts, [""] * len(test_texts), [True] * len(test_texts)), bayes(test_texts))
    accuracies = [share([(odds > 0) == label for odds, label in zip(each, is_positive, strict=True)]) for each in calls]
    result = summary(phase, real, tokenizer, reward_model, bayes, config) | {
        "classifier_accuracy": accuracies[0],
        "second_classifier_accuracy": accuracies[1],
        "seconds": time.perf_counter() - start,
    }
    conclude(run, result)
    return result


if __name__ == "__main__":
    launch(main, Config)
