"""What samples from a language model: the interface, what goes in, what comes back, and the check of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from rlhf.errors import InputError
from rlhf.lm.policy import CausalLM
from rlhf.rollout import require_finite
from rlhf.settings import Count, CountOrNone, Settings, ShareAboveZero, TotalOrNone

# A probability above 1 is rounding up to here, also in half precision.
MAX_LOGPROB = 1e-3


@dataclass(frozen=True, kw_only=True)
class Sampling(Settings):
    """How responses are drawn. The temperature is the policy's, so that scoring uses the same."""

    max_new_tokens: Count
    """Longest response, in tokens."""
    stop_tokens: tuple[int, ...] = ()
    """Token ids that end a response; the token itself is an action and is kept."""
    stop_strings: tuple[str, ...] = ()
    """Texts that end a response once it contains them; kept too. They need a tokenizer."""
    top_k: CountOrNone = 0
    """Draw from the k likeliest tokens only; 0 is off. Evaluation only."""
    top_p: ShareAboveZero = 1.0
    """Draw from the fewest likeliest tokens of this much probability; 1 is off. Evaluation only."""
    token_budget: TotalOrNone = 0
    """Most tokens, prompts and room for responses together, that are decoded at a time; 0 is no limit."""

    def __post_init__(self) -> None:
        if "" in self.stop_strings:
            raise InputError("A stop string is empty; it would end every response at once.")

    @property
    def truncates(self) -> bool:
        """Some tokens are never drawn."""
        return self.top_k > 0 or self.top_p < 1

    def require_exact(self) -> None:
        """Refuses what training cannot use: a token outside the top has probability 0 and no log-probability."""
        if self.truncates:
            raise InputError(
                f"top_k is {self.top_k} and top_p {self.top_p}; training samples from the whole distribution "
                "(top_k 0, top_p 1): a token that leaves the top after an update would have probability 0. "
                "Use them in evaluation."
            )


class Generation(NamedTuple):
    """Responses to N prompts; T is the longest. All on the policy's device.

    Args:
        tokens: `(N, T)` int64.
        lengths: `(N,)` int64, tokens of each response, the stop token included; 1 to max_new_tokens.
        finished: `(N,)` bool, ended by a stop token or string, not cut.
        logprobs: `(N, T)` of each token under the distribution that sampled it, nats.
        values: `(N, T)` of the state each token was chosen in; None from an engine that has not run the critic.
    """

    tokens: Tensor
    lengths: Tensor
    finished: Tensor
    logprobs: Tensor
    values: Tensor | None


class Engine(Protocol):
    """What answers prompts; any object of this form will do, such as `Decoder` (the default).

    Args:
        exact: The log-probs and values are those of the policy's own forward to rounding, wherever that computes in
            the precision of its weights. Where False, they only say how the tokens were drawn, and the policy scores
            the tokens itself.
        rounding: Nats a token, in the mean, by which rounding alone lets its log-probs differ from the policy's in the
            precision of its weights: some 1e-3 where it computes in float32 too, 0.1 in half precision. More is an
            error in the first two updates: other weights, another temperature.
    """

    exact: bool
    rounding: float

    def generate(
        self, policy: CausalLM, prompts: Sequence[Sequence[int]], *, sampling: Sampling, uniforms: Tensor | None
    ) -> Generation:
        """One response to each prompt by the policy with the weights that it has at this call.

        Tokens are drawn from softmax(logits / policy.temperature), cut to `sampling.top_k` and `top_p` where those are
        on, and `logprobs` are of that distribution. Cells after a response may hold anything.

        Args:
            prompts: N rows of at least one token id.
            uniforms: `(N, max_new_tokens)` float64 in [0, 1). A response depends on the policy, its prompt and its row
                of these only: one draw a token, or a seed for the row. None is greedy: the likeliest token each time;
                its log-probability may be that at temperature 1.
        """
        ...


def require_engine(engine: Any) -> None:
    """Refuses what is no engine."""
    if isinstance(engine, type) or not callable(getattr(engine, "generate", None)):
        raise InputError(f"engine is {engine!r:.60}; it must be an object with a method `generate` (see rlhf.Engine).")
    if not isinstance(getattr(engine, "exact", None), bool):
        raise InputError(
            f"{type(engine).__name__} does not say whether it is `exact`; set exact = False, unless its log-probs and "
            "values are the policy's own to rounding."
        )
    rounding = getattr(engine, "rounding", None)
    if not isinstance(rounding, int | float) or not rounding > 0:
        raise InputError(
            f"{type(engine).__name__} does not say its `rounding`; set rounding = 0.1: the nats a token, in the mean, "
            "by which its log-probs may differ from the policy's own."
        )


def respond(
    engine: Engine,
    policy: CausalLM,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    uniforms: Tensor | None,
    sample_ids: Tensor,
) -> Generation:
    """What the engine answers, checked; cells after a response are 0.

    Args:
        sample_ids: `(N,)` int64, what errors call the responses.

    Raises:
        InputError: What the engine handed back is not a Generation as it must be.
        NonFiniteError: A log-probability is NaN or infinite.
    """
    name = type(engine).__name__
    given = engine.generate(policy, prompts, sampling=sampling, uniforms=uniforms)
    if not isinstance(given, Generation):
        raise InputError(f"{name}.generate returned {type(given).__name__}; it must return a Generation.")
    rows, device = len(prompts), policy.device
    _require(name, "lengths", given.lengths, (rows,), device, torch.int64)
    _require_in_range(name, given.lengths, sampling.max_new_tokens, sample_ids)
    longest = int(given.lengths.max())
    _require(name, "tokens", given.tokens, (rows, longest), device, torch.int64)
    _require(name, "finished", given.finished, (rows,), device, torch.bool)
    _require(name, "logprobs", given.logprobs, (rows, longest), device, None)
    if given.values is not None:
        _require(name, "values", given.values, (rows, longest), device, None)
    after = torch.arange(longest, device=device) >= given.lengths.unsqueeze(1)
    vocabulary = policy.config.get_text_config().vocab_size
    if bool(((given.tokens < 0) | (given.tokens >= vocabulary)).masked_fill(after, False).any()):
        raise InputError(f"{name} returned token ids outside the model's vocabulary of {vocabulary}.")
    unknown = policy.unknown_tokens
    if unknown is not None and bool(unknown[given.tokens.masked_fill(after, 0)].masked_fill(after, False).any()):
        raise InputError(
            f"{name} returned tokens of the model that its tokenizer does not know, to which the policy gives "
            "probability 0; have it draw from the tokens of the tokenizer only."
        )
    generation = given._replace(
        tokens=given.tokens.masked_fill(after, 0),
        logprobs=given.logprobs.masked_fill(after, 0.0),
        values=None if given.values is None else given.values.masked_fill(after, 0.0),
    )
    require_finite(f"{name}'s logprobs", generation.logprobs, sample_ids.to(device))
    highest = float(generation.logprobs.max())
    if highest > MAX_LOGPROB:
        raise InputError(
            f"{name} returned a log-probability of {highest:.3g}; it must be at most 0: the logarithm, in nats, of the "
            "probability that the token was drawn with."
        )
    return generation


def _require(
    engine: str, name: str, tensor: Tensor, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype | None
) -> None:
    """Refuses what is no tensor of this shape, device and type; None is any floating point type."""
    axes = "prompts by tokens of the longest response" if len(shape) == 2 else "one a prompt"
    needed = f"it must be {dtype or 'floating point'} of shape {shape}, {axes}, on {device}."
    if not isinstance(tensor, Tensor):
        raise InputError(f"{engine} returned {name} as {type(tensor).__name__}; {needed}")
    fits = tensor.is_floating_point() if dtype is None else tensor.dtype == dtype
    if tensor.shape != shape or not fits or tensor.device != device:
        raise InputError(
            f"{engine} returned {name} as {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}; {needed}"
        )


def _require_in_range(engine: str, lengths: Tensor, most: int, sample_ids: Tensor) -> None:
    wrong = ((lengths < 1) | (lengths > most)).nonzero().flatten().tolist()
    if wrong:
        raise InputError(
            f"{engine} returned {int(lengths[wrong[0]])} tokens for sample {int(sample_ids[wrong[0]])}; a response has "
            f"1 to max_new_tokens ({most}) tokens, the stop token included."
        )
