"""How a causal LM scores actions that were already taken: one pass, the head on action positions only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from rlhf.errors import InputError
from rlhf.lm.logprobs import head_logprobs, known_only, logits_logprobs
from rlhf.lm.model import Abilities, Model, arguments, base_of, head_of, trunk_of
from rlhf.lm.packing import Layout, Layouts, Sequences, packed, padded, sharing, worthwhile


class Scores(NamedTuple):
    """Of the N actions, row by row.

    Args:
        hidden: `(N, d)`, the state each action was taken in: the trunk's output one position before it.
    """

    logprobs: Tensor
    entropy: Tensor
    hidden: Tensor


def score(
    model: Model,
    abilities: Abilities,
    inputs: dict[str, Tensor],
    *,
    temperature: float,
    unknown: Tensor | None = None,
) -> Scores:
    """Log-probability and entropy of each action under softmax(logits / temperature), and its state.

    Args:
        inputs: `tokens` (B, S), and `actions` (B, T): the index in S of each action's token, or 0 for none.
        unknown: `(V,)`, True for tokens that have probability 0; None: there are none such.
    """
    layout = lay_out(inputs, abilities.layouts)
    index, targets = action_states(inputs, layout)
    if abilities.plain_head:
        head = head_of(model)
        hidden = run(trunk_of(model), layout, index)
        bias = head.bias if unknown is None else known_only(_bias(head), unknown)
        return Scores(*head_logprobs(hidden, head.weight, bias, targets, temperature=temperature), hidden)
    hidden, logits = hidden_and_logits(model, index, **arguments(base_of(model), layout))
    return Scores(*logits_logprobs(known_only(logits, unknown), targets, temperature=temperature), hidden)


def _bias(head: nn.Linear) -> Tensor:
    return head.weight.new_zeros(head.weight.shape[0]) if head.bias is None else head.bias


def score_all(
    model: Model,
    abilities: Abilities,
    inputs: dict[str, Tensor],
    *,
    temperature: float,
    unknown: Tensor | None = None,
) -> tuple[Scores, Tensor]:
    """As `score`, and the `(N, V)` logits over the temperature; all of it in plain operations, so differentiable
    twice."""
    layout = lay_out(inputs, abilities.layouts)
    index, targets = action_states(inputs, layout)
    with _twice_differentiable(model) if torch.is_grad_enabled() else nullcontext():
        hidden, logits = hidden_and_logits(model, index, **arguments(base_of(model), layout))
    logits = known_only(logits, unknown)
    scores = Scores(*logits_logprobs(logits, targets, temperature=temperature), hidden)
    return scores, logits.to(scores.logprobs.dtype) / temperature


@contextmanager
def _twice_differentiable(model: Model) -> Iterator[None]:
    """Attention by plain operations, since fused kernels have no second derivative, and nothing that is computed again
    in the backward pass, which would be outside of this."""
    attention = base_of(model).config._attn_implementation
    if attention not in ("sdpa", "eager"):
        raise InputError(
            f"{type(base_of(model)).__name__} has {attention} attention, which cannot be differentiated twice, as TRPO "
            "does; load it with attn_implementation sdpa or eager."
        )
    training = model.training
    # Dropout is 0 either way; what evaluation mode turns off is gradient checkpointing.
    model.eval()
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        model.train(training)


def lay_out(inputs: dict[str, Tensor], layouts: Layouts) -> Layout:
    """Each row's tokens before its last action (one token, if it has none): no action depends on the rest."""
    if layouts.most_shared:
        sequences = read_sequences(inputs)
        if worthwhile(sequences, layouts):
            return sharing(inputs["tokens"], sequences)
    return (packed if layouts.packs else padded)(inputs["tokens"], read_lengths(inputs))


def read_lengths(inputs: dict[str, Tensor]) -> Tensor:
    """`(B,)` how many tokens of each row are read."""
    return inputs["actions"].amax(dim=1).clamp(min=1)


def read_sequences(inputs: dict[str, Tensor]) -> Sequences:
    """What is read of each row; what it has before its first action is its prompt."""
    tokens, actions = inputs["tokens"], inputs["actions"]
    if not len(tokens):
        return Sequences([], [], [])
    sizes = read_lengths(inputs)
    prompt_sizes = torch.minimum(actions.masked_fill(actions == 0, tokens.shape[1]).amin(dim=1), sizes)
    columns = torch.arange(int(prompt_sizes.max()), device=tokens.device)
    prompts = tokens[:, : len(columns)].masked_fill(columns >= prompt_sizes.unsqueeze(1), -1)
    numbers = prompts.unique(dim=0, return_inverse=True)[1]
    return Sequences(sizes.tolist(), numbers.tolist(), prompt_sizes.tolist())


def action_states(inputs: dict[str, Tensor], layout: Layout) -> tuple[Tensor, Tensor]:
    """Where in the flattened rows each action's state is, and the action's token; `(N,)`, row by row."""
    actions = inputs["actions"]
    taken = actions > 0
    index = layout.cell(actions - 1)[taken]
    return index, inputs["tokens"].gather(1, actions)[taken]


def run(trunk: PreTrainedModel, layout: Layout, index: Tensor) -> Tensor:
    """Hidden states `(N, d)` at `index` of the flattened rows."""
    hidden = trunk(**arguments(trunk, layout)).last_hidden_state
    return hidden.flatten(0, 1).index_select(0, index)


def hidden_and_logits(model: Model, index: Tensor, **inputs: object) -> tuple[Tensor, Tensor]:
    """Hidden states `(N, d)` and logits `(N, V)` at `index` of the flattened rows, for heads that do more than
    multiply by a matrix: the whole model runs, but its head is shown these positions only."""
    seen: list[Tensor] = []

    def select(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        seen.append(args[0].flatten(0, 1).index_select(0, index))
        return (seen[0].unsqueeze(0),)

    hook = head_of(model).register_forward_pre_hook(select)
    try:
        logits = base_of(model)(**inputs).logits
    finally:
        hook.remove()
    return seen[0], logits.squeeze(0)


def spread(values: Tensor, actions: Tensor) -> Tensor:
    """`(N,)` numbers of the actions as `(B, T)`, zeros where there is none."""
    return values.new_zeros(actions.shape).masked_scatter(actions > 0, values)


def response_inputs(prompts: Sequence[Sequence[int]], responses: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """What a policy needs to score responses: each right after its prompt, each of its tokens an action.

    Args:
        responses: `(B, T)` token ids, of which the first `lengths` (B,) are real.
    """
    device = responses.device
    sizes = torch.tensor([len(prompt) for prompt in prompts], device=device)
    starts = sizes.unsqueeze(1)
    steps = torch.arange(responses.shape[1], device=device)
    real = steps < lengths.unsqueeze(1)
    width = int((sizes + lengths).max())
    rows = [list(prompt) + [0] * (width - len(prompt)) for prompt in prompts]
    tokens = torch.tensor(rows, device=device)
    places = starts + steps  # (B, T)
    tokens[torch.arange(len(rows), device=device).unsqueeze(1).expand_as(places)[real], places[real]] = responses[real]
    return {"tokens": tokens, "lengths": sizes + lengths, "actions": places.masked_fill(~real, 0)}
