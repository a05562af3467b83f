"""Text classifiers from scratch: a small transformer, which can be a reward model, and naive Bayes to check it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from rlhf.core.random import hashed_order
from rlhf.errors import InputError
from rlhf.lm.data import load_data
from rlhf.lm.settings import ClassifierConfig
from rlhf.lm.texts import encoded


def labelled_texts(source: str, split: str) -> tuple[list[str], list[int]]:
    """Columns `text` and `label` (1 positive, 0 negative) of a split.

    Args:
        source: Folder with SPLIT.jsonl, or a data set of the hub.

    Raises:
        InputError: There is no such folder, or labels are others than these two or all the same.
    """
    folder = Path(source).expanduser()
    if source.startswith(("/", ".", "~")) and not folder.is_dir():
        raise InputError(f"there is no folder {source}; give one with train.jsonl and test.jsonl, or a hub name.")
    data = load_data(folder / f"{split}.jsonl") if folder.is_dir() else load_data(source, split=split)
    texts = data.strings("text")
    labels = [row.get("label") for row in data.rows]
    if not all(label in (0, 1) for label in labels) or len({label == 1 for label in labels}) < 2:
        shown = ", ".join(sorted({repr(label) for label in labels})[:5])
        raise InputError(
            f"{data.name}: label must be 1 for positive and 0 for negative ones, and both are needed; there is {shown}."
        )
    return texts, [int(label) for label in labels if label is not None]


def train_classifier(
    folder: Path,
    model_config: PretrainedConfig,
    tokenizer: Any,
    texts: Sequence[str],
    labels: Sequence[int],
    *,
    config: ClassifierConfig,
    seed: int,
) -> None:
    """Writes a classifier whose one output is the log-odds of label 1, with its tokenizer, for `RewardModel` to load.

    Each text ends with the end-of-sequence token. Trained on the CPU; torch's global generator is left as it was.
    """
    ids, end = encoded(tokenizer, list(texts), keep_end=True), [tokenizer.eos_token_id]
    rows = [tokens if tokens[-1:] == end else [*tokens, *end] for tokens in ids]
    context = getattr(model_config, "max_position_embeddings", None)
    for text, row in zip(texts, rows, strict=True):
        if context is not None and len(row) > context:
            raise InputError(
                f"the text {text!r:.40} has {len(row)} tokens with its end, more than the classifier's {context}; "
                "leave long texts out."
            )
    targets = torch.tensor(labels, dtype=torch.float32)
    steps_per_epoch = -(-len(rows) // config.rows_per_step)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(model_config).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=config.epochs * steps_per_epoch)
        for epoch in range(config.epochs):
            order = hashed_order(seed, "classifier", epoch, torch.arange(len(rows)))
            for chosen in order.split(config.rows_per_step):
                batch = tokenizer.pad({"input_ids": [rows[row] for row in chosen.tolist()]}, return_tensors="pt")
                logits = model(**batch).logits.squeeze(-1)
                optimizer.zero_grad()
                binary_cross_entropy_with_logits(logits, targets[chosen]).backward()
                optimizer.step()
                schedule.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class NaiveBayes:
    """Multinomial naive Bayes on words and pairs of neighbouring words, each counted once more than it occurs.

    (Manning, Raghavan and Schütze, 2008, section 13.2; https://nlp.stanford.edu/IR-book)
    """

    def __init__(self, texts: Sequence[str], labels: Sequence[int]) -> None:
        if set(labels) != {0, 1}:
            raise InputError(f"naive Bayes needs texts of labels 0 and 1; it was given {sorted(set(labels))}.")
        counts: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        for text, label in zip(texts, labels, strict=True):
            counts[label].update(_features(text))
        vocabulary = counts[0].keys() | counts[1].keys()
        negative, positive = (count.total() + len(vocabulary) for count in counts)
        self._prior = math.log(sum(labels) / (len(labels) - sum(labels)))
        self._weights = {
            feature: math.log((counts[1][feature] + 1) / positive * negative / (counts[0][feature] + 1))
            for feature in vocabulary
        }

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """Log-odds of label 1; features never seen say nothing."""
        return [
            self._prior + sum(self._weights.get(feature, 0.0) for feature in sorted(_features(text))) for text in texts
        ]


def _features(text: str) -> list[str]:
    words = text.split()
    return words + [f"{first} {second}" for first, second in pairwise(words)]


def distinct_bigrams(*groups: Sequence[str]) -> list[float]:
    """For each group of texts the share of its pairs of neighbouring words that are distinct (Li et al., 2016).

    The share falls as text grows, so each group counts with its first pairs only, as many as the smallest group has.
    """
    pairs = [[pair for text in texts for pair in pairwise(text.split())] for texts in groups]
    count = min(len(each) for each in pairs)
    return [len(set(each[:count])) / max(count, 1) for each in pairs]
