"""Whether a response is about what was asked, by a sentence model that knows nothing of training."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModel

from rlhf.errors import InputError
from rlhf.lm.pretrained import located, pretrained
from rlhf.lm.vocabulary import pretrained_tokenizer, require_room, vocabulary_size

# As many as all-MiniLM-L6-v2 was trained on; what is beyond is not read.
_MOST_TOKENS = 256
# Texts that are read at once.
_TOGETHER = 64


class Relevance:
    """A reward function: the cosine between what the row's `request` and the response mean; 0 for an empty response.

    Embeddings are means over a text's tokens (Reimers and Gurevych, 2019; https://arxiv.org/abs/1908.10084). To tell
    a better model from one that games its reward, give it the weight 0: what is trained on says nothing of that.

    Args:
        source: Folder or hub id of a sentence model of that kind; `make model` brings models/all-MiniLM-L6-v2.

    Raises:
        InputError: Its tokenizer does not fit its model, or cannot pad.
    """

    __name__ = "relevance"

    def __init__(self, source: str, *, device: torch.device | str = "cpu") -> None:
        self.source, place = source, located(source)
        self.tokenizer = pretrained_tokenizer(place)
        model: Any = pretrained(AutoModel, place, dtype=torch.float32)
        require_room(self.tokenizer, vocabulary_size(model), f"the sentence model {source!r}")
        if self.tokenizer.pad_token_id is None:
            raise InputError(f"the tokenizer of {source!r} has no pad token, which a sentence model needs.")
        self.model = model.to(device).eval().requires_grad_(False)
        self._most_tokens = min(_MOST_TOKENS, getattr(model.config, "max_position_embeddings", None) or _MOST_TOKENS)

    def __call__(self, responses: list[str], request: list[str]) -> list[float]:
        said = [row for row, text in enumerate(responses) if text.strip()]
        cosines = [0.0] * len(responses)
        for start in range(0, len(said), _TOGETHER):
            rows = said[start : start + _TOGETHER]
            ours, asked = (self._embedded([texts[row] for row in rows]) for texts in (responses, request))
            for row, cosine in zip(rows, (ours * asked).sum(dim=1).tolist(), strict=True):
                cosines[row] = cosine
        return cosines

    @torch.no_grad()
    def _embedded(self, texts: list[str]) -> torch.Tensor:
        """`(N, d)`, each of length 1."""
        read = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self._most_tokens, return_tensors="pt"
        ).to(self.model.device)
        hidden = self.model(**read).last_hidden_state
        mask = read["attention_mask"].unsqueeze(2)
        return torch.nn.functional.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=1)
