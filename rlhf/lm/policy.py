"""A causal language model as a policy: its head scores tokens, a value head scores the states they are taken in."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.utils import load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, Cache, DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from rlhf.acting import with_weights
from rlhf.budget import Passed
from rlhf.errors import InputError
from rlhf.lm.logprobs import head_logits, known_only
from rlhf.lm.model import (
    Abilities,
    Model,
    base_of,
    cached,
    forget_casts,
    head_of,
    layers_of,
    prepare,
    probe,
    probe_trunk,
    trunk_of,
)
from rlhf.lm.packing import Layouts, cells
from rlhf.lm.precision import hold_frozen, holds_frozen
from rlhf.lm.reference import freeze_copy, same_weights, trained_weights
from rlhf.lm.scoring import (
    Scores,
    action_states,
    hidden_and_logits,
    lay_out,
    read_sequences,
    run,
    score,
    score_all,
    spread,
)
from rlhf.lm.vocabulary import require_room, unknown_tokens, vocabulary_size
from rlhf.rollout import Categorical, PolicyOutput
from rlhf.sharded import is_sharded

VALUE_HEAD = "value_head.safetensors"


@contextmanager
def _without_bars() -> Iterator[None]:
    """Checkpoints come and go without the progress bars of transformers, which would draw over the run's display."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _in_own_precision(method: Callable[..., Any]) -> Callable[..., Any]:
    """Weights that are held in half precision are computed with under autocast, whoever calls."""

    @functools.wraps(method)
    def call(self: CausalLM, *args: Any, **kwargs: Any) -> Any:
        half = nullcontext() if self.frozen_dtype is None else torch.autocast(self.device.type, self.frozen_dtype)
        with half:
            return method(self, *args, **kwargs)

    return call


class Step(NamedTuple):
    """What a policy says after the last token of each row: `hidden` (B, d), `logits` (B, V), `values` (B,)."""

    hidden: Tensor
    logits: Tensor
    values: Tensor


class CausalLM(nn.Module):
    """A transformers causal LM (or a peft model around one) with a value head.

    Training and scoring go through `forward`. Sampling and scoring alike use softmax(logits / temperature); values do
    not. The value head starts at 0 everywhere. Dropout is off, so training mode is deterministic and gradient
    checkpointing stays on.

    Args:
        temperature: Above 0; may be set later (cloning uses 1).
        critic: "shared": the value head reads the policy's own hidden states; "separate": those of a copy of its
            trunk, or of the trunk given here; "none": values are 0.
        reference_dtype: Of a frozen copy of the model; None is the model's own.
    """

    memoryless = False
    end_tokens: tuple[int, ...] = ()
    """What ends a response beside the tokenizer's end of sequence, as the model's generation config says."""
    inputs: Callable[[], dict[str, str]] = dict
    """Gives checksums of what it was loaded from."""
    frozen_dtype: torch.dtype | None = None
    """The half precision in which layers that do not learn are held, so that all of it is computed in that; None: they
    are as the rest of the model."""

    def __init__(
        self,
        model: Model,
        *,
        temperature: float,
        critic: str | PreTrainedModel,
        reference_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise InputError(
                f"temperature is {temperature}; it must be above 0 (greedy evaluation needs no temperature)."
            )
        self.temperature = temperature
        self.reference_dtype = reference_dtype
        self.model = model
        if isinstance(model, PeftModel):
            _name_base_in_full(model)
        self._tokenizer: Any = None
        self.unknown_tokens: Tensor | None
        self.register_buffer("unknown_tokens", None, persistent=False)
        self._dropout = prepare(model)
        self.abilities: Abilities = probe(model)
        self.critic_trunk, self._critic_layouts, width = self._build_critic(critic)
        self.value_head = None
        if critic != "none":
            self.value_head = nn.Linear(width, 1, device=base_of(model).device, dtype=base_of(model).dtype)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
        # A tuple hides the frozen copy from parameters(), state_dict() and the wrappers of distributed training.
        self._frozen: tuple[Any, ...] = ()
        self._kept: dict[str, Tensor] = {}
        # Another model that is the reference, hidden in the same way.
        self._teacher: tuple[CausalLM, ...] = ()
        self.train()

    def _build_critic(self, critic: str | PreTrainedModel) -> tuple[PreTrainedModel | None, Layouts | None, int]:
        if isinstance(critic, str) and critic in ("shared", "none"):
            return None, None, self.abilities.width
        if isinstance(critic, str) and critic != "separate":
            raise InputError(f"critic is {critic!r}; choose shared, separate or none.")
        if isinstance(critic, str):
            if isinstance(self.model, PeftModel):
                raise InputError(
                    "A separate critic beside an adapter needs a trunk of its own: load_policy gives it one."
                )
            critic = copy.deepcopy(trunk_of(self.model))
        prepare(critic.requires_grad_(True))
        return critic, *probe_trunk(critic)

    @_in_own_precision
    def forward(self, inputs: dict[str, Tensor], *, distribution: bool = False) -> Any:
        """Scores the actions of `inputs` (see `scoring.score`); zeros in cells without an action.

        With `distribution` also a Categorical of the whole vocabulary, which can be differentiated twice.
        """
        forget_casts()
        if distribution:
            return self._forward_with_distribution(inputs)
        scores = score(self.model, self.abilities, inputs, temperature=self.temperature, unknown=self.unknown_tokens)
        return self._output(scores, inputs)

    def _forward_with_distribution(self, inputs: dict[str, Tensor]) -> tuple[PolicyOutput, Categorical]:
        scores, logits = score_all(
            self.model, self.abilities, inputs, temperature=self.temperature, unknown=self.unknown_tokens
        )
        actions, output = inputs["actions"], self._output(scores, inputs)
        rows = logits.new_zeros((*actions.shape, logits.shape[-1]))
        return output, Categorical(rows.masked_scatter((actions > 0).unsqueeze(-1), logits))

    def _output(self, scores: Scores, inputs: dict[str, Tensor]) -> PolicyOutput:
        actions = inputs["actions"]
        if self.critic_trunk is not None:
            values = self.critic_values(inputs)
        else:
            values = spread(self._value(scores.hidden), actions)
        return PolicyOutput(spread(scores.logprobs, actions), values, spread(scores.entropy, actions))

    def passed(self, inputs: dict[str, Tensor]) -> Passed:
        """How many tokens, padding included, a pass over some of these rows takes through the model, or through the
        separate critic if that is more."""
        sequences = read_sequences(inputs)
        readers = {self.abilities.layouts, self._critic_layouts} - {None}
        return lambda start, end: max(cells(sequences.some(start, end), layouts) for layouts in readers if layouts)

    def critic_parameters(self) -> list[nn.Parameter]:
        """Those that only the values depend on; all others are the actor's."""
        parts = [part for part in (self.critic_trunk, self.value_head) if part is not None]
        return [parameter for part in parts for parameter in part.parameters()]

    @_in_own_precision
    def critic_values(self, inputs: dict[str, Tensor]) -> Tensor:
        """`(B, T)` values of the actions' states by the separate critic."""
        assert self.critic_trunk is not None
        assert self._critic_layouts is not None
        layout = lay_out(inputs, self._critic_layouts)
        index, _ = action_states(inputs, layout)
        return spread(self._value(run(self.critic_trunk, layout, index)), inputs["actions"])

    def _value(self, hidden: Tensor) -> Tensor:
        if self.value_head is None:
            return hidden.new_zeros(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32))
        with torch.autocast(hidden.device.type, enabled=False):
            return self.value_head(hidden.to(self.value_head.weight.dtype)).squeeze(-1)

    @_in_own_precision
    def step(self, tokens: Tensor, attention_mask: Tensor | None, position_ids: Tensor, cache: Cache) -> Step:
        """Reads `tokens` (B, Q) after what `cache` holds. Values of a separate critic are left at 0."""
        inputs = {"input_ids": tokens, "attention_mask": attention_mask, "position_ids": position_ids}
        if self.abilities.plain_head:
            trunk = trunk_of(self.model)
            hidden = trunk(**inputs, **cached(trunk, cache)).last_hidden_state[:, -1]
            logits = head_logits(hidden, head_of(self.model))
        else:
            last = torch.arange(1, len(tokens) + 1, device=tokens.device) * tokens.shape[1] - 1
            hidden, logits = hidden_and_logits(self.model, last, **inputs, **cached(base_of(self.model), cache))
        logits = known_only(logits, self.unknown_tokens)
        if self.critic_trunk is not None:
            return Step(hidden, logits, hidden.new_zeros(len(hidden)))
        return Step(hidden, logits, self._value(hidden))

    def new_cache(self) -> DynamicCache:
        return DynamicCache(config=self.config)

    @property
    def tokenizer(self) -> Any:
        """Set it, and `save` puts it beside the weights, so that the folder is a whole model; tokens of the model that
        it does not know, such as those that fill a vocabulary up to a round size, then have probability 0."""
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        unknown = None
        if tokenizer is not None:
            sizes = {"the model": vocabulary_size(base_of(self.model))}
            if self.critic_trunk is not None:
                sizes["the critic's model"] = vocabulary_size(self.critic_trunk)
            for owner, size in sizes.items():
                require_room(tokenizer, size, owner)
            unknown = unknown_tokens(tokenizer, sizes["the model"])
        self._tokenizer = tokenizer
        self.unknown_tokens = None if unknown is None else unknown.to(self.device)

    @property
    def has_critic(self) -> bool:
        return self.value_head is not None

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """Token ids that end a response."""
        own = [] if self.tokenizer is None else [self.tokenizer.eos_token_id]
        return tuple(dict.fromkeys(token for token in (*own, *self.end_tokens) if token is not None))

    @property
    def context(self) -> int | None:
        """The most tokens the model can take; None where its config names no limit."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    @property
    def config(self) -> PretrainedConfig:
        return base_of(self.model).config

    @property
    def device(self) -> torch.device:
        return base_of(self.model).device

    @property
    def dtype(self) -> torch.dtype:
        return base_of(self.model).dtype

    @contextmanager
    def sampling_mode(self) -> Iterator[None]:
        """No gradients, and evaluation mode: gradient checkpointing would drop the cache in training mode."""
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(training)

    def require_precision(self, mixed_precision: str) -> None:
        """Refuses to compute in full precision with weights that an earlier run rounded."""
        if self.frozen_dtype is not None and mixed_precision == "no":
            raise InputError(
                "the policy's frozen weights were rounded to bfloat16 by an earlier run, and this one computes in "
                "float32; load the policy again from where that run was saved, or train with mixed precision bf16."
            )

    def compute_in(self, mixed_precision: str) -> None:
        """Under bf16, layers that do not learn are held in it from now on (see `precision.hold_frozen`)."""
        if mixed_precision == "bf16" and holds_frozen(self.model):
            hold_frozen(self.model, torch.bfloat16)
            self.frozen_dtype = torch.bfloat16

    @property
    def shardable(self) -> list[list[nn.Module]]:
        """The layers of the policy, and it itself last; the same of a copy that it keeps as reference."""
        return [[*layers_of(root), root] for root in (self, *self._frozen)]

    def refer_to(self, teacher: CausalLM) -> None:
        """From now on another model is the reference, whatever this one becomes."""
        self._teacher = (teacher,)

    @property
    def teacher(self) -> CausalLM | None:
        """The other model that is the reference, if one is."""
        return self._teacher[0] if self._teacher else None

    def make_reference(self) -> None:
        """From now on the reference is the model as it is at this moment, unless another one is; it never moves with
        training.

        A copy of the model; beside an adapter, which leaves most of the model as it is, of what learns only.
        """
        if self._teacher:
            return
        if isinstance(self.model, PeftModel):
            self._kept = trained_weights(self.model)
        else:
            self._frozen = (freeze_copy(self.model, self.reference_dtype),)

    def at_reference(self) -> bool:
        """The weights are still those of the reference, in its precision: there is no KL between the two."""
        kept = self._kept if not self._frozen else dict(self._frozen[0].named_parameters())
        return bool(kept) and same_weights(dict(self.model.named_parameters()), kept)

    @torch.no_grad()
    @_in_own_precision
    def reference_logprobs(self, inputs: dict[str, Tensor]) -> Tensor:
        """`(B, T)` log-probabilities of the actions under the reference, at the policy's temperature."""
        device = inputs["tokens"].device
        if self._teacher:
            (teacher,) = self._teacher
            teacher.to(device).temperature = self.temperature
            return teacher(inputs).logprobs
        assert self._frozen or self._kept, "call make_reference() first"
        forget_casts()
        how: dict[str, Any] = {"temperature": self.temperature, "unknown": self.unknown_tokens}
        if self._frozen:
            (frozen,) = self._frozen
            scores = score(frozen if is_sharded(frozen) else frozen.to(device), self.abilities, inputs, **how)
        else:
            self._kept = {name: tensor.to(device) for name, tensor in self._kept.items()}
            with with_weights(self.model, self._kept):
                scores = score(self.model, self.abilities, inputs, **how)
        return spread(scores.logprobs, inputs["actions"])

    @_without_bars()
    def save(self, folder: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Writes the whole policy, exactly: `folder/model` (loads with plain transformers or peft) and the critic.

        Args:
            state_dict: The gathered weights (`accelerator.get_state_dict`) where this process holds only a part.
        """

        def part(name: str) -> dict[str, Tensor] | None:
            prefix = f"{name}."
            if state_dict is None:
                return None
            return {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}

        with self._original_dropout():
            if isinstance(self.model, PeftModel):
                self.model.save_pretrained(
                    str(folder / "model"), state_dict=part("model"), selected_adapters=["default"]
                )
            else:
                self.model.save_pretrained(folder / "model", state_dict=part("model"))
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder / "model")
        if self.critic_trunk is not None:
            self.critic_trunk.save_pretrained(folder / "critic", state_dict=part("critic_trunk"))
        if self.value_head is not None:
            weights = part("value_head") or self.value_head.state_dict()
            save_file({name: tensor.contiguous().cpu() for name, tensor in weights.items()}, folder / VALUE_HEAD)

    @_without_bars()
    def load(self, folder: Path) -> None:
        """Reads in place what `save` wrote."""
        if isinstance(self.model, PeftModel):
            weights = load_peft_weights(str(folder / "model"), device="cpu")
            set_peft_model_state_dict(self.model, weights, adapter_name="default")
        else:
            saved = type(self.model).from_pretrained(folder / "model", dtype=self.model.dtype)
            self.model.load_state_dict(saved.state_dict())
        if self.critic_trunk is not None:
            saved = AutoModel.from_pretrained(folder / "critic", dtype=self.critic_trunk.dtype)
            self.critic_trunk.load_state_dict(saved.state_dict())
        self.load_value_head(folder)

    def load_value_head(self, folder: Path) -> None:
        if self.value_head is not None:
            self.value_head.load_state_dict(load_file(folder / VALUE_HEAD))

    @contextmanager
    def _original_dropout(self) -> Iterator[None]:
        zeroed = [(config, {name: vars(config)[name] for name in dropout}) for config, dropout in self._dropout]
        for config, dropout in self._dropout:
            vars(config).update(dropout)
        try:
            yield
        finally:
            for config, dropout in zeroed:
                vars(config).update(dropout)


def _name_base_in_full(model: PeftModel) -> None:
    """A saved adapter is found by others from wherever they are, so its base, if a folder, is named from the root."""
    for config in model.peft_config.values():
        base = config.base_model_name_or_path
        if base and Path(base).is_dir():
            config.base_model_name_or_path = str(Path(base).absolute())
