"""From a model's name or folder to a policy."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import find_adapter_config_file

from rlhf.errors import InputError
from rlhf.lm.model import Model, trunk_of
from rlhf.lm.policy import VALUE_HEAD, CausalLM
from rlhf.settings import CountOrNone, Location, Positive, Seed, Settings, checked, made


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """Which model to train, and how much of it."""

    model: Location
    """Hub id or folder of a model or LoRA adapter; or a folder that a policy was saved to (with its critic)."""
    critic: Literal["shared", "separate", "none"] = "shared"
    """Value head on the policy's own trunk; on a trunk of its own, all of it trained; or no values."""
    critic_model: Location = ""
    """Model whose trunk a separate critic starts from, such as a reward model; empty is the policy's own."""
    lora_rank: CountOrNone = 0
    """Rank of a fresh LoRA adapter; 0 trains all weights. A model that is an adapter already is trained on as it is."""
    lora_alpha: Positive = 32.0
    """Scale of a fresh LoRA adapter, which adds alpha / rank times its product."""
    lora_targets: tuple[str, ...] = ()
    """Modules that get a fresh adapter; empty is every linear layer but the head."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    reference_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of a frozen reference copy. In bfloat16 its KL is not exactly 0 at the start."""

    def __post_init__(self) -> None:
        if self.critic_model and self.critic != "separate":
            raise InputError(f"critic_model is given but critic is {self.critic}; use critic separate.")


def load_model_config(model: str) -> PretrainedConfig:
    """The transformers config of a model, adapter or saved policy, without its weights."""
    source = _source(model)
    return _asked(AutoConfig.from_pretrained, _adapter_base(source) or source)


def context_length(model: str) -> int | None:
    """The most tokens a model can take; None where its config names no limit."""
    return getattr(load_model_config(model).get_text_config(), "max_position_embeddings", None)


def load_tokenizer(model: str) -> Any:
    """The tokenizer of a model, adapter or saved policy; an adapter that has none of its own uses its base model's."""
    source = _source(model)
    base = _adapter_base(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError):
        tokenizer = _asked(AutoTokenizer.from_pretrained, base or source)
    # Where a folder holds no tokenizer, transformers may make up one without a single word.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise InputError(f"{model!r} holds no tokenizer; save the model's own beside it (tokenizer.save_pretrained).")
    return tokenizer


def stop_tokens(model: str, tokenizer: Any) -> tuple[int, ...]:
    """What ends a response: the tokenizer's end of sequence and whatever the model's generation config adds."""
    source = _source(model)
    try:
        listed = GenerationConfig.from_pretrained(_adapter_base(source) or source).eos_token_id
    except OSError:
        listed = None
    found = [tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])]
    return tuple(dict.fromkeys(token for token in found if token is not None))


@checked
def load_policy(model: str, *, temperature: Positive = 1.0, seed: Seed = 0, **settings: Any) -> CausalLM:
    """A pretrained model as a policy, with its tokenizer and with what ends its responses.

    Args:
        model: Hub id or folder of a causal language model or of a LoRA adapter; or a folder that a policy was saved to.
        temperature: Of sampling, and of scoring alike.
        seed: Of a fresh adapter's weights.
        settings: Fields of ModelConfig: critic, lora_rank, gradient_checkpointing, ...
    """
    config = made(ModelConfig, {"model": model, **settings})
    tokenizer = load_tokenizer(model)
    policy = policy_of(config, temperature=temperature, seed=seed)
    policy.tokenizer, policy.end_tokens = tokenizer, stop_tokens(model, tokenizer)
    return policy


def policy_of(config: ModelConfig, *, temperature: float, seed: int) -> CausalLM:
    """The policy, weights in float32; the critic and the adapter of a saved policy come along. It has no tokenizer.

    Args:
        seed: Of a fresh adapter's weights; torch's global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        source = _source(config.model)
        base_source = _adapter_base(source)
        base = _asked(AutoModelForCausalLM.from_pretrained, base_source or source, dtype=torch.float32)
        critic = _critic_trunk(config, base) if config.critic == "separate" else config.critic
        model = base
        if base_source is not None or config.lora_rank > 0:
            model = _with_adapter(base, config, source if base_source is not None else None)
        if config.gradient_checkpointing:
            for each in (base, critic):
                _checkpoint_gradients(each)
        dtype = None if config.reference_dtype == "float32" else torch.bfloat16
        policy = CausalLM(model, temperature=temperature, critic=critic, reference_dtype=dtype)
    if _is_saved_policy(config.model) and config.critic == _saved_critic(Path(config.model)):
        policy.load_value_head(Path(config.model))
    return policy


def _with_adapter(base: PreTrainedModel, config: ModelConfig, source: str | None) -> Model:
    """The model with the adapter in `source`, or a fresh one if None; all else frozen."""
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 for a property by its old name.
        warnings.simplefilter("ignore", FutureWarning)
        if source is not None:
            return PeftModel.from_pretrained(base, source, is_trainable=True)
        lora = LoraConfig(
            task_type="CAUSAL_LM",
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,  # type: ignore[arg-type]
            target_modules=list(config.lora_targets) or "all-linear",
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),
        )
        try:
            return cast(PeftModel, get_peft_model(base, lora))
        except ValueError as error:
            raise InputError(f"lora_targets {config.lora_targets} do not fit {type(base).__name__}: {error}") from error


def _critic_trunk(config: ModelConfig, base: PreTrainedModel) -> PreTrainedModel:
    if Path(config.model, "critic").is_dir():
        return _asked(AutoModel.from_pretrained, str(Path(config.model, "critic")), dtype=torch.float32)
    if config.critic_model:
        return _asked(AutoModel.from_pretrained, config.critic_model, dtype=torch.float32)
    return copy.deepcopy(trunk_of(base))


def _checkpoint_gradients(model: Any) -> None:
    if not isinstance(model, PreTrainedModel):
        return
    # The name changed in transformers 5.2x, and the old one warns.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _is_saved_policy(model: str) -> bool:
    return Path(model, "model").is_dir()


def _saved_critic(folder: Path) -> str:
    """The critic of a saved policy; one that was cloned, or trained by GRPO, may have none."""
    if (folder / "critic").is_dir():
        return "separate"
    return "shared" if (folder / VALUE_HEAD).is_file() else "none"


def _source(model: str) -> str:
    if model.startswith(("/", ".", "~")) and not Path(model).is_dir():
        raise InputError(f"there is no folder {model} to load a model from.")
    return str(Path(model, "model")) if _is_saved_policy(model) else model


def _adapter_base(source: str) -> str | None:
    """The model that an adapter was made for; None if `source` is no adapter."""
    if _asked(find_adapter_config_file, source) is None:
        return None
    base = PeftConfig.from_pretrained(source).base_model_name_or_path
    if not base:
        raise InputError(f"The adapter in {source} does not say what model it was made for (base_model_name_or_path).")
    return base


def _asked(load: Any, source: str, **options: Any) -> Any:
    try:
        return load(source, **options)
    except (OSError, ValueError) as error:
        raise InputError(f"Could not load {source!r}: {error}") from error


def build_policy(
    config: PretrainedConfig,
    *,
    temperature: float,
    critic: Literal["shared", "separate", "none"],
    seed: int,
    gradient_checkpointing: bool = False,
) -> CausalLM:
    """A policy of random weights from a transformers config; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        if gradient_checkpointing:
            _checkpoint_gradients(model)
        return CausalLM(model, temperature=temperature, critic=critic)
