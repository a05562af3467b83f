"""A policy with a value head as a classifier: a reward model that transformers loads as it is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from rlhf.errors import InputError
from rlhf.lm.merged import merged_weights, require_mergeable
from rlhf.lm.model import trunk_of
from rlhf.lm.policy import CausalLM
from rlhf.lm.prompts import require_tokenizer
from rlhf.lm.vocabulary import vocabulary_size

# Of the largest score: further apart, the class computes something else than the policy does.
_TOLERANCE = 1e-4
# Where the policy computes in half precision and the classifier does not.
_HALF_TOLERANCE = 0.1
_NEEDS = "a reward model is saved as a whole classifier, which takes whole models"


def require_classifier(policy: Any) -> None:
    """Refuses a policy that transformers has no classifier for, or whose values are not its own head's."""
    require_tokenizer(policy)
    if policy.value_head is None or policy.critic_trunk is not None:
        has = "none" if policy.value_head is None else "separate"
        raise InputError(
            f"critic is {has}, but a reward model is the model itself with a head for its score; choose shared."
        )
    require_mergeable(policy.model, _NEEDS, "train all weights")
    if type(policy.config) not in AutoModelForSequenceClassification._model_mapping or not hasattr(
        _empty(policy), "score"
    ):
        raise InputError(
            f"transformers makes no classifier of a {policy.config.model_type} that reads the last token, so no "
            "reward model of it could be saved; take a model of another kind."
        )


def save_reward_model(policy: CausalLM, folder: str | Path) -> None:
    """Writes a policy that BradleyTerry has trained as a classifier with one output, its score, and its tokenizer.

    Plain `AutoModelForSequenceClassification` loads the folder, as do `RewardModel`, `--reward FOLDER` and
    `load_policy(critic_model=...)`; adapters are merged. transformers looks for the last token that does not pad, so a
    pad token that also ends texts gives way to another one.

    Raises:
        InputError: There is no such classifier, or it would not score as the policy does.
    """
    require_classifier(policy)
    assert policy.value_head is not None
    if bool(policy.value_head.bias):
        raise InputError(
            "the value head has a bias, which no classifier's head has: it was not trained by BradleyTerry. Give a "
            "policy that was."
        )
    tokenizer = copy.deepcopy(policy.tokenizer)
    pad = _pad_token(tokenizer, policy.stop_tokens)
    with torch.random.fork_rng(devices=[]):
        model = _made(policy)
    model.base_model.load_state_dict(dict(merged_weights(trunk_of(policy.model), torch.float32)))
    with torch.no_grad():
        model.score.weight.copy_(policy.value_head.weight)  # type: ignore[union-attr,operator]
    _require_same(policy, model.eval())
    if pad >= vocabulary_size(model):
        model.resize_token_embeddings(pad + 1, mean_resizing=False)
    model.config.pad_token_id = tokenizer.pad_token_id = pad
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _made(policy: CausalLM) -> PreTrainedModel:
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)


def _empty(policy: CausalLM) -> PreTrainedModel:
    with torch.device("meta"):
        return _made(policy)


def _pad_token(tokenizer: Any, stops: tuple[int, ...]) -> int:
    """A special token that ends no text, to pad with; a new one if there is none."""
    ends = {*stops, tokenizer.eos_token_id}
    known = [tokenizer.pad_token_id, *tokenizer.all_special_ids]
    found = next((token for token in known if token is not None and token not in ends), None)
    if found is None:
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
        return int(tokenizer.pad_token_id)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(found)
    return int(found)


@torch.no_grad()
def _require_same(policy: CausalLM, model: PreTrainedModel) -> None:
    """The classifier scores a few tokens as the policy does."""
    known = [token for token in range(8) if policy.unknown_tokens is None or not policy.unknown_tokens[token]]
    tokens = torch.tensor([[*known, known[-1]]], device=policy.device)
    inputs = {"tokens": tokens, "lengths": torch.tensor([len(known) + 1], device=policy.device)}
    ours = policy(inputs | {"actions": torch.tensor([[len(known)]], device=policy.device)}).values.cpu()
    hidden = model.base_model(tokens[:, :-1].cpu(), use_cache=False).last_hidden_state[:, -1]
    theirs = model.score(hidden)  # type: ignore[operator]
    tolerance = _TOLERANCE if policy.frozen_dtype is None else _HALF_TOLERANCE
    if not torch.allclose(ours.float(), theirs.float(), rtol=tolerance, atol=tolerance):
        raise InputError(
            f"{type(model).__name__} of transformers scores another number ({float(theirs):.6g}) than the policy does "
            f"({float(ours):.6g}), so the folder would not be the reward model that was trained; take a model of "
            "another kind."
        )
