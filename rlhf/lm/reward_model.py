"""A sequence classifier as a reward function: its own tokenizer, its score read at the last real token."""

from __future__ import annotations

import os
from functools import partial
from typing import Any, cast

import torch
from peft import PeftModel
from peft.utils import load_peft_weights
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from rlhf.errors import InputError
from rlhf.lm.adapters import adapter_base
from rlhf.lm.chat import Chat, answer_text, tokenized
from rlhf.lm.loading import opened, require_finite
from rlhf.lm.pretrained import located, pretrained, require_stored_whole
from rlhf.lm.rewards import RewardFunction, load_reward
from rlhf.lm.templates import rendered_apart, template_arguments
from rlhf.lm.texts import encoded, ended
from rlhf.lm.vocabulary import has_tokenizer, pretrained_tokenizer, require_room, vocabulary_size

# Of classifiers, by the end of its name.
_HEADS = ("score.weight", "classifier.weight", "classifier.out_proj.weight", "out_proj.weight")


class RewardModel:
    """Scores prompt plus response with one output of a classifier, as a raw logit.

    Chat data are rendered by the classifier's own chat template, with the row's tools and chat_template_kwargs as far
    as that reads them; a response that was cut is shown without an end. Nothing else is ever cut: a text longer than
    the classifier's context is an error.

    Args:
        source: Folder or hub id of a transformers sequence classifier, or of an adapter that makes a model one.
        device: None: this process's GPU, if it has one.
        label: Which output is the score, by number or by name; None: the only one.
        append_eos: A response that ended by itself ends with the classifier's end-of-sequence token, if it has one,
            so that it is told from one that was cut.
        max_tokens: Most tokens, padding included, scored at once.
    """

    __name__ = "reward_model"

    def __init__(
        self,
        source: str,
        *,
        device: torch.device | None = None,
        label: int | str | None = None,
        append_eos: bool = True,
        max_tokens: int = 16384,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        place = located(source)
        base = adapter_base(place)
        self.tokenizer = pretrained_tokenizer(place if base is None or has_tokenizer(place) else located(base))
        if self.tokenizer.chat_template is not None:
            chat = Chat(messages=[{"role": "user", "content": "a"}], where=f"the reward model {source!r}")
            rendered_apart({chat.where: lambda: [answer_text(self.tokenizer, chat, "b", finished=True)]})
        model: Any = (
            pretrained(AutoModelForSequenceClassification, place, dtype=dtype)
            if base is None
            else _with_adapter(place, located(base), dtype=dtype)
        )
        require_room(self.tokenizer, vocabulary_size(model), f"the reward model {source!r}")
        # Evaluation mode: no dropout.
        self.model = cast(PreTrainedModel, model.to(device or _own_device()).eval().requires_grad_(False))
        self.source, self.append_eos, self.max_tokens = source, append_eos, max_tokens
        self.label = _label(source, self.model.config, label)
        self.reads_last_token = self._head_reads_last_token()
        if not self.reads_last_token and self.tokenizer.pad_token_id is None:
            raise InputError(f"the tokenizer of {source!r} has no pad token, which a classifier of this kind needs.")

    @torch.no_grad()
    def __call__(
        self,
        prompts: list[Any],
        responses: list[str],
        finished: list[bool],
        tools: list[Any] | None = None,
        chat_template_kwargs: list[Any] | None = None,
    ) -> list[float]:
        nothing = [None] * len(prompts)
        told = [
            {"tools": row_tools, "chat_template_kwargs": row_kwargs}
            for row_tools, row_kwargs in zip(tools or nothing, chat_template_kwargs or nothing, strict=True)
        ]
        rows = [self._tokens(*each) for each in zip(prompts, responses, finished, told, strict=True)]
        batches: list[list[int]] = []
        for row in sorted(range(len(rows)), key=lambda row: -len(rows[row])):
            # The first of a batch is its longest.
            if batches and (len(batches[-1]) + 1) * len(rows[batches[-1][0]]) <= self.max_tokens:
                batches[-1].append(row)
            else:
                batches.append([row])
        scores = [0.0] * len(rows)
        for batch in batches:
            logits = self._logits([rows[row] for row in batch])
            for row, score in zip(batch, logits[:, self.label].tolist(), strict=True):
                scores[row] = score
        return scores

    def _tokens(self, prompt: Any, response: str, finished: bool, told: dict[str, Any]) -> list[int]:
        if isinstance(prompt, str):
            # An end that the tokenizer puts behind every text would make one that was cut look finished; classifiers
            # that read the whole need it.
            keep_end = finished or not (self.append_eos and self.reads_last_token)
            (tokens,) = encoded(self.tokenizer, [prompt + response], keep_end=keep_end)
            if self.append_eos and finished:
                tokens = ended(self.tokenizer, tokens)
        else:
            where = f"the reward model {self.source!r}"
            chat = Chat(messages=prompt, where=where, arguments=template_arguments(told, where))
            (tokens,) = tokenized(self.tokenizer, [answer_text(self.tokenizer, chat, response, finished=finished)])
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if context is not None and len(tokens) > context:
            raise InputError(
                f"a prompt with its response has {len(tokens)} tokens, more than the context of the reward model "
                f"{self.source!r}, {context}; shorten prompts or responses."
            )
        return tokens

    def _logits(self, rows: list[list[int]]) -> Tensor:
        """`(B, labels)`; where the score stands comes from lengths, never from `ids != pad`."""
        lengths = torch.tensor([len(row) for row in rows], device=self.model.device)
        padding = 0 if self.reads_last_token else self.tokenizer.pad_token_id
        padded = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=padding)
        inputs = {
            "input_ids": padded.to(self.model.device),
            "attention_mask": (torch.arange(padded.shape[1], device=lengths.device) < lengths.unsqueeze(1)).long(),
        }
        if not self.reads_last_token:
            return self.model(**inputs).logits
        # transformers' own forward takes the last token that is not the pad token: if pad is EOS, one too early.
        hidden = self.model.base_model(**inputs, use_cache=False).last_hidden_state
        return cast(nn.Module, self.model.score)(hidden[torch.arange(len(rows), device=lengths.device), lengths - 1])

    def _head_reads_last_token(self) -> bool:
        """Whether the logits are the head's of the last token's hidden state, as in causal models; else a pooler's."""
        if not hasattr(self.model, "score"):
            return False
        probe = [token for token in range(5) if token != self.model.config.get_text_config().pad_token_id]
        self.reads_last_token = True
        with torch.no_grad():
            theirs = self.model(input_ids=torch.tensor([probe], device=self.model.device)).logits
            return torch.allclose(self._logits([probe]), theirs, rtol=1e-3, atol=1e-4)


def named_reward(location: str) -> RewardFunction:
    """What a text stands for where a reward is asked for: path/to/file.py:function, or a reward model's folder or hub
    id.

    Raises:
        InputError: There is no such function, or no such model.
    """
    return load_reward(location) if ".py" in location else RewardModel(location)


def _own_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def _with_adapter(source: str, base: str, *, dtype: torch.dtype) -> PreTrainedModel:
    """A classifier that an adapter makes of another model, merged into it; its head must be the adapter's or there."""
    require_stored_whole(source)
    weights = opened(partial(load_peft_weights, device="cpu"), source)
    heads = [tensor for name, tensor in weights.items() if name.endswith(_HEADS)]
    model, info = opened(
        AutoModelForSequenceClassification.from_pretrained,
        base,
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        trust_remote_code=False,
        **({"num_labels": len(heads[0])} if heads else {}),
    )
    random = [name for name in info["missing_keys"] if not (heads and name.endswith(_HEADS))]
    if random:
        raise InputError(
            f"the adapter in {source!r} holds no head for {base!r}, so its scores would be random: {random[0]} is in "
            "neither. Save it as one of a sequence classifier (peft's task_type SEQ_CLS), with its head."
        )
    adapted = opened(partial(PeftModel.from_pretrained, model), source)
    require_finite(adapted, source)
    return cast(PreTrainedModel, adapted.merge_and_unload())


def _label(source: str, config: Any, label: int | str | None) -> int:
    names = {int(index): name for index, name in config.id2label.items()}
    if label is None and len(names) == 1:
        return 0
    chosen = [index for index, name in names.items() if label in (index, name)]
    if len(chosen) != 1:
        listed = ", ".join(f"{index} ({name})" for index, name in names.items())
        raise InputError(f"label {label!r} of the reward model {source!r} is none of its outputs: {listed}.")
    return chosen[0]
