"""What scoring and sampling need to know of a transformers causal LM: its parts, its randomness, what it allows."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.activations import NewGELUActivation

from rlhf.errors import InputError
from rlhf.lm.loading import one_line
from rlhf.lm.packing import Layout, Layouts, Sequences, packed, sharing

Model = PreTrainedModel | PeftModel
# Of the largest number compared. Rounding gives 1e-6, another sequence's tokens or a soft cap far more.
_TOLERANCE = 1e-4
_NO_WINDOW = 2**62


class Abilities(NamedTuple):
    """What a few random tokens have shown of a model.

    Args:
        layouts: The layouts in which it says of each sequence what it says of it alone.
        plain_head: The logits are the LM head's matrix times the hidden states and nothing more (no soft cap, no
            scale), so they need not be held whole.
        width: Size of a hidden state.
    """

    layouts: Layouts
    plain_head: bool
    width: int


def base_of(model: Model) -> PreTrainedModel:
    """The transformers model itself; adapters are inside it."""
    return cast(PreTrainedModel, model.get_base_model()) if isinstance(model, PeftModel) else model


def trunk_of(model: Model) -> PreTrainedModel:
    """The model without its head: tokens to hidden states."""
    base = base_of(model)
    if base.base_model is base:
        raise InputError(f"{type(base).__name__} has no trunk apart from its head; use another model class.")
    return cast(PreTrainedModel, base.base_model)


def layers_of(module: nn.Module) -> list[nn.Module]:
    """What transformers never splits over devices: the repeated layers of all models in it, and not their own parts."""
    names = {name for part in module.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    found: list[nn.Module] = []
    inside: set[int] = set()
    for part in module.modules():
        # Of a layer that is sharded already its own class is the next.
        if id(part) not in inside and names & {kind.__name__ for kind in type(part).__mro__}:
            found.append(part)
            inside |= {id(inner) for inner in part.modules()}
    return found


def head_of(model: Model) -> Any:
    """The module that turns hidden states into logits."""
    head = base_of(model).get_output_embeddings()
    if head is None:
        raise InputError(f"{type(base_of(model)).__name__} has no LM head; use a causal language model.")
    return head


def cached(model: nn.Module, cache: Cache) -> dict[str, Any]:
    """The keywords by which this model's forward reads and extends `cache`."""
    return {_cache_keyword(type(model).forward): cache, "use_cache": True}


@functools.cache
def _cache_keyword(forward: Callable[..., Any]) -> str:
    """transformers says `cache` from 5.24 on; before, `past_key_values` or, without attention, `cache_params`."""
    taken = inspect.signature(forward).parameters
    for name in ("cache", "past_key_values", "cache_params"):
        if name in taken:
            return name
    raise InputError(
        f"{forward.__qualname__} takes no cache by a name that is known here (cache, past_key_values, "
        "cache_params), so its responses cannot be sampled token by token; use another model class."
    )


def arguments(model: PreTrainedModel, layout: Layout) -> dict[str, Any]:
    """The keywords by which a model, or its trunk, reads such rows."""
    inputs = {"input_ids": layout.tokens, "position_ids": layout.position_ids, "use_cache": False}
    if layout.mask is None:
        return inputs
    mask = layout.mask
    if model.config._attn_implementation == "eager":
        # It adds the mask to what it takes the softmax of.
        mask = torch.zeros_like(mask, dtype=model.dtype).masked_fill(~mask, torch.finfo(model.dtype).min)
    return {**inputs, "attention_mask": mask}


def forget_casts() -> None:
    """Whoever reads weights under autocast begins with this: it keeps its casts of them for as long as it is on, also
    where they have been written to since, by whatever way, or were cast where no gradient was asked for.
    """
    torch.clear_autocast_cache()


def prepare(model: nn.Module) -> list[tuple[Any, dict[str, float]]]:
    """Makes passes in training mode deterministic; returns each config with the dropout it had, to be saved again.

    Every dropout probability becomes 0, in modules and in configs that are read while running. (Evaluation mode would
    do it too, but disables gradient checkpointing.) GPT-2's GELU gives way to the same function as one kernel.
    """
    configs: list[Any] = []
    for module in model.modules():
        for name in [name for name, value in vars(module).items() if _is_random(name, value)]:
            setattr(module, name, 0.0)
        if "Dropout" in type(module).__name__ and hasattr(module, "p"):
            module.p = 0.0  # type: ignore[assignment]
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
        if isinstance(module, PreTrainedModel):
            # Their padding check guesses from token ids; ours are kept apart by position ids and lengths.
            module.warn_if_padding_and_no_attention_mask = _no_warning  # type: ignore[method-assign]
            if not any(config is module.config for config in configs):
                configs.append(module.config)
    original = [(config, {k: v for k, v in vars(config).items() if _is_random(k, v)}) for config in configs]
    for config, dropout in original:
        vars(config).update(dict.fromkeys(dropout, 0.0))
    return original


def probe(model: Model) -> Abilities:
    """Tries packing, decoding and the head on ten tokens."""
    trunk, head, base = trunk_of(model), head_of(model), base_of(model)
    tokens, lengths = _probe_tokens(base.config.get_text_config().vocab_size, base.device)
    with torch.no_grad(), _refused_if_it_fails(model):
        layouts, hidden = _layouts(trunk, tokens, lengths)
        _require_decoding(trunk, tokens[:1], hidden)
        logits = base(input_ids=tokens[:1], use_cache=False).logits
        if isinstance(model, PeftModel) and not _close(model(input_ids=tokens[:1], use_cache=False).logits, logits):
            raise InputError("the adapter does more than change layers of the model; give a LoRA adapter.")
        # An adapter on the head, even one that adds nothing yet, is more than its matrix.
        plain_head = type(head) is nn.Linear and _close(F.linear(hidden, head.weight, head.bias), logits)
    return Abilities(layouts, plain_head, hidden.shape[-1])


def probe_trunk(trunk: PreTrainedModel) -> tuple[Layouts, int]:
    """The layouts that a trunk without a head reads, and its width."""
    tokens, lengths = _probe_tokens(trunk.config.get_text_config().vocab_size, trunk.device)
    with torch.no_grad(), _refused_if_it_fails(trunk):
        layouts, hidden = _layouts(trunk, tokens, lengths)
    return layouts, hidden.shape[-1]


@contextmanager
def _refused_if_it_fails(model: Model) -> Iterator[None]:
    """What a model of another kind raises when it is used as these are becomes a refusal by name."""
    name = type(base_of(model)).__name__
    if isinstance(model, PeftModel):
        name += f" with a {getattr(model.peft_type, 'value', model.peft_type)} adapter"
    try:
        yield
    except InputError as error:
        raise InputError(f"{name} cannot be used: {error}") from error
    except Exception as error:
        raise InputError(
            f"{name} cannot be read as a causal language model is, with position ids and a cache "
            f"({type(error).__name__}: {one_line(error)}); use another one."
        ) from error


def _layouts(trunk: PreTrainedModel, tokens: Tensor, lengths: Tensor) -> tuple[Layouts, Tensor]:
    """The layouts in which the trunk says of each sequence what it says of it alone; and the first one's hidden
    states."""
    trunk.train()
    alone = [_hidden(trunk, row[None, :length]) for row, length in zip(tokens, lengths.tolist(), strict=True)]
    if not torch.equal(alone[0], _hidden(trunk, tokens[:1])):
        raise InputError(f"{type(trunk).__name__} is random in training mode even with every dropout set to 0.")
    if not _close(_hidden(trunk, tokens[:1, :-1]), alone[0][:, :-1]):
        raise InputError(
            f"{type(trunk).__name__} says something else of tokens once others follow, as encoders do; use a causal "
            "language model."
        )
    layout = packed(tokens, lengths)
    together = _hidden(trunk, layout.tokens, layout.position_ids).flatten(0, 1)
    pairs = zip(alone, layout.starts.tolist(), lengths.tolist(), strict=True)
    packs = all(_close(one[0], together[start : start + length]) for one, start, length in pairs)
    return Layouts(packs, _most_shared(trunk, tokens)), alone[0]


def _most_shared(trunk: PreTrainedModel, tokens: Tensor) -> int:
    """Up to how many tokens sequences may share their prompt by a mask of our own: as many as the least window of its
    attention, of which such a mask knows nothing."""
    config = trunk.config.get_text_config()
    rows = torch.cat([tokens[:1, :2].expand(3, 2), tokens[:, 2:]], dim=1)
    sizes = [5, 3, 4]
    layout = sharing(rows, Sequences(sizes, [0, 0, 0], [2, 2, 2]))
    columns = torch.arange(rows.shape[1], device=rows.device).expand_as(rows)
    try:
        together = trunk(**arguments(trunk, layout)).last_hidden_state.flatten(0, 1)
    # It has not learned to read such a mask, and says so in a way of its own.
    except Exception:
        return 0
    for row, size, cells in zip(rows, sizes, layout.cell(columns), strict=True):
        if not _close(_hidden(trunk, row[None, :size])[0], together[cells[:size]]):
            return 0
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min([window for window in windows if window], default=_NO_WINDOW)


def _require_decoding(trunk: PreTrainedModel, tokens: Tensor, hidden: Tensor) -> None:
    """Refuses a model that does not say of a left-padded row, one token at a time, what it says of it whole, or that
    says something else of it once it has read another row in between."""
    name = type(trunk).__name__
    rows = F.pad(tokens, (2, 0))
    mask = torch.arange(rows.shape[1], device=rows.device).unsqueeze(0) >= 2
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    trunk.eval()

    def read(row: Tensor, part: slice, cache: Cache) -> Tensor:
        inputs = {"attention_mask": mask[:, : part.stop], "position_ids": positions[:, part]}
        return trunk(input_ids=row[:, part], **inputs, **cached(trunk, cache)).last_hidden_state[:, -1]

    most, last = slice(0, -1), slice(-1, rows.shape[1])
    said = []
    for others in ([], [rows.flip(1)]):
        cache = DynamicCache(config=trunk.config)
        try:
            for row, its_cache in [(rows, cache), *((other, DynamicCache(config=trunk.config)) for other in others)]:
                read(row, most, its_cache)
            said.append(read(rows, last, cache))
        except (AttributeError, TypeError) as error:
            raise InputError(
                f"{name} cannot be read with the cache of transformers ({error}), so its responses cannot be sampled "
                "token by token; use another model class."
            ) from error
    trunk.train()
    if not torch.equal(*said):
        raise InputError(
            f"{name} keeps what it has read in itself and not in the cache, so that responses that are sampled side by "
            "side would be mixed up; use another model class."
        )
    if not _close(said[0], hidden[:, -1]):
        raise InputError(
            f"{name} says something else of left-padded tokens read one at a time than of the whole sequence, so its "
            "samples would not be scored as they were drawn; use another model class."
        )


def _hidden(trunk: nn.Module, tokens: Tensor, position_ids: Tensor | None = None) -> Tensor:
    return trunk(input_ids=tokens, position_ids=position_ids, use_cache=False).last_hidden_state


def _probe_tokens(vocab_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Three sequences that pack into two rows: several rows, and several sequences in one of them."""
    tokens = torch.randint(vocab_size, (3, 5), generator=torch.Generator().manual_seed(0))
    return tokens.to(device), torch.tensor([5, 3, 2], device=device)


def _close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= _TOLERANCE * theirs.abs().max())


def _is_random(name: str, value: object) -> bool:
    return isinstance(value, float) and value > 0 and ("drop" in name or "jitter" in name)


def _no_warning(*_: object) -> None:
    pass
