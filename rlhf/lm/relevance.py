"""Whether a response is about what was asked, by a sentence model that knows nothing of training."""

from __future__ import annotations

import torch
from transformers import AutoModel

from rlhf.lm.pretrained import located, pretrained
from rlhf.lm.vocabulary import pretrained_tokenizer

# As many as all-MiniLM-L6-v2 was trained on; what is beyond is not read.
_MOST_TOKENS = 256


class Relevance:
    """A reward function: the cosine between what the row's `request` and the response mean; 0 for an empty response.

    Embeddings are means over a text's tokens (Reimers and Gurevych, 2019; https://arxiv.org/abs/1908.10084). To tell
    a better model from one that games its reward, keep it for evaluation: what is trained on says nothing of that.

    Args:
        source: Folder or hub id of a sentence model of that kind; `make model` brings models/all-MiniLM-L6-v2.
    """

    __name__ = "relevance"

    def __init__(self, source: str) -> None:
        self.source, place = source, located(source)
        self.tokenizer = pretrained_tokenizer(place)
        self.model = pretrained(AutoModel, place, dtype=torch.float32).eval().requires_grad_(False)

    def __call__(self, responses: list[str], request: list[str]) -> list[float]:
        cosines = (self._embedded(responses) * self._embedded(request)).sum(dim=1)
        return [cosine if text.strip() else 0.0 for cosine, text in zip(cosines.tolist(), responses, strict=True)]

    @torch.no_grad()
    def _embedded(self, texts: list[str]) -> torch.Tensor:
        """`(N, d)`, each of length 1."""
        read = self.tokenizer(texts, padding=True, truncation=True, max_length=_MOST_TOKENS, return_tensors="pt")
        hidden = self.model(**read).last_hidden_state
        mask = read["attention_mask"].unsqueeze(2)
        return torch.nn.functional.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=1)
