"""What can be set of language models: how many responses are collected and what they are paid; classifiers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlhf.errors import InputError
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
    cut_responses: Literal["paid", "masked"] = "paid"
    """What becomes of responses that max_new_tokens cut: they are learned from as all others, or masked, since nobody
    knows what they would have come to (overlong filtering; DAPO; Yu et al., 2025, https://arxiv.org/abs/2503.14476)."""
    overlong_tokens: CountOrNone = 0
    """Over the last so many tokens before max_new_tokens the reward falls by overlong_penalty, in proportion (soft
    overlong punishment; the same, eq. 13); 0 is off."""
    overlong_penalty: Size = 1.0
    """What a response of max_new_tokens loses of its reward."""
    draw_again: CountOrNone = 0
    """Prompts whose responses all score alike, from which groups learn nothing, give way to the next ones, so many
    times in an update at most (dynamic sampling; the same, eq. 11); 0 is off."""
    lag: CountOrNone = 0
    """Updates by which the weights that respond lag behind those that learn."""

    def __post_init__(self) -> None:
        if self.draw_again and self.responses_per_prompt < 2:
            raise InputError(
                f"draw_again is {self.draw_again} and responses_per_prompt 1; one response has none to be like. Take "
                "several, or draw_again 0."
            )


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
