"""What can be set of language models: how many responses are collected and what they are paid; classifiers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlhf.settings import Count, CountOrNone, Positive, Settings, Size


@dataclass(frozen=True, kw_only=True)
class CollectResponses(Settings):
    """How many responses make a rollout, and what their scores become."""

    prompts_per_rollout: Count = 64
    """Prompts of one rollout, over all processes."""
    responses_per_prompt: Count = 1
    """Responses to each prompt of a rollout; methods that compare the rows of a group need several."""
    normalise_scores: bool = False
    """Divide rewards by the running standard deviation of all scores so far."""
    score_clip: Positive | None = None
    """Rewards are kept within +- this, after normalise_scores; None is off."""
    missing_eos_penalty: Size | None = None
    """Taken off the last token's reward where the response was cut instead of ending itself; None is off."""
    lag: CountOrNone = 0
    """Updates by which the weights that respond lag behind those that learn."""


OnError = Literal["stop", "retry", "skip"]


@dataclass(frozen=True, kw_only=True)
class Calling(Settings):
    """What is done with a reward function that waits or fails, such as one that asks an endpoint."""

    timeout: Size = 0.0
    """Seconds that a function has for one call; 0 is no limit."""
    on_error: OnError = "stop"
    """After an error of its own, or a timeout: stop the run with it; retry, and stop only if the last try fails too; or
    skip the function for the samples at hand.
    """


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(Settings):
    """How long and how fast a classifier learns."""

    epochs: Count = 10
    """Passes over its texts."""
    rows_per_step: Count = 32
    """Texts of one optimizer step."""
    learning_rate: Positive = 1e-3
    """Step size of AdamW; it falls linearly to 0."""
    weight_decay: Size = 0.01
    """AdamW's weight decay."""
