"""From a model's name or folder to a policy."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftConfig
from transformers import AutoModel, AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME, cached_file
from transformers.utils.hub import extract_commit_hash

from rlhf.errors import InputError
from rlhf.lm.adapters import adapter_base, fresh_adapter, trained_adapter, untrained_adapter
from rlhf.lm.four_bits import hold_in_four_bits
from rlhf.lm.gguf import checksum, gguf_file
from rlhf.lm.loading import opened
from rlhf.lm.model import Model, base_of, trunk_of
from rlhf.lm.policy import VALUE_HEAD, CausalLM
from rlhf.lm.precision import multiplies_only
from rlhf.lm.pretrained import located, pretrained, pretrained_config
from rlhf.lm.vocabulary import has_tokenizer, pretrained_tokenizer, require_room
from rlhf.settings import CountOrNone, Location, Positive, Seed, Settings, checked, made
from rlhf.sources import files_sums

# None: as the policy's own.
_REFERENCE_DTYPES = {"float32": None, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """Which model to train, and how much of it."""

    model: Location
    """Hub id or folder of a model or LoRA adapter, or a .gguf file; or a folder that a policy was saved to (with its
    critic)."""
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
    quantize: Literal["none", "nf4"] = "none"
    """nf4: beside a LoRA adapter, linear layers but the head are held in 4 bits (QLoRA); takes rlhf[qlora]."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    reference_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of a frozen reference copy; once the policy moves, KL in bfloat16 has an error of its rounding."""
    reference: Location = ""
    """Hub id or folder of another model, with the same tokenizer, that KL is measured against, such as a teacher; empty
    is the policy as it is at the start."""

    def __post_init__(self) -> None:
        if self.critic_model and self.critic != "separate":
            raise InputError(f"critic_model is given but critic is {self.critic}; use critic separate.")


def load_model_config(model: str) -> PretrainedConfig:
    """The transformers config of a model, adapter or saved policy, without its weights."""
    return pretrained_config(_base_source(model))


def context_length(model: str) -> int | None:
    """The most tokens a model can take; None where its config names no limit."""
    return getattr(load_model_config(model).get_text_config(), "max_position_embeddings", None)


def load_tokenizer(model: str) -> Any:
    """The tokenizer of a model, adapter or saved policy; an adapter that has none of its own uses its base model's."""
    source = _source(model)
    return pretrained_tokenizer(source if has_tokenizer(source) else _base_source(model))


def stop_tokens(model: str, tokenizer: Any) -> tuple[int, ...]:
    """What ends a response: the tokenizer's end of sequence, and all that the model's files name as ends."""
    source = _base_source(model)
    config = pretrained_config(source)
    # Not every config has the field.
    ends = [getattr(part, "eos_token_id", None) for part in (config, config.get_text_config())]
    named = [tokenizer.eos_token_id, *ends]
    if opened(cached_file, source, filename=GENERATION_CONFIG_NAME, _raise_exceptions_for_missing_entries=False):
        named.append(opened(GenerationConfig.from_pretrained, source).eos_token_id)
    found = [token for each in named for token in (each if isinstance(each, list) else [each])]
    return tuple(dict.fromkeys(token for token in found if token is not None))


@checked
def load_policy(model: str, *, temperature: Positive = 1.0, seed: Seed = 0, **settings: Any) -> CausalLM:
    """A pretrained model as a policy, with its tokenizer and with what ends its responses.

    Args:
        model: Hub id or folder of a causal language model or of a LoRA adapter, or a .gguf file; or a folder that a
            policy was saved to.
        temperature: Of sampling, and of scoring alike.
        seed: Of a fresh adapter's weights.
        settings: Fields of ModelConfig: critic, lora_rank, gradient_checkpointing, ...
    """
    config = made(ModelConfig, {"model": model, **settings})
    tokenizer = load_tokenizer(model)
    require_room(tokenizer, load_model_config(model).get_text_config().vocab_size, f"the model {model!r}")
    policy = policy_of(config, temperature=temperature, seed=seed)
    policy.tokenizer, policy.end_tokens = tokenizer, stop_tokens(model, tokenizer)
    if config.reference:
        policy.refer_to(_teacher(config, tokenizer))
    policy.inputs = partial(_inputs, config)
    return policy


def _teacher(config: ModelConfig, tokenizer: Any) -> CausalLM:
    """The model that KL is measured against, in the precision that a copy would have.

    Raises:
        InputError: Its tokens are others.
    """
    if load_tokenizer(config.reference).get_vocab() != tokenizer.get_vocab():
        raise InputError(
            f"the reference {config.reference!r} has another tokenizer than {config.model!r}, so it cannot say how "
            "likely the policy's tokens are; give a model of the same family."
        )
    teacher = policy_of(ModelConfig(model=config.reference, critic="none"), temperature=1.0, seed=0)
    teacher.tokenizer = tokenizer
    dtype = _REFERENCE_DTYPES[config.reference_dtype]
    if dtype is not None and dtype != torch.float32:
        for parameter in teacher.parameters():
            parameter.data = parameter.data.to(dtype)
        teacher.frozen_dtype = dtype
    return teacher.requires_grad_(False)


def _inputs(config: ModelConfig) -> dict[str, str]:
    """What a resumed run must find the same: the files of the model, and what is made of them beside an adapter."""
    held = {} if config.quantize == "none" else {"model's frozen layers": config.quantize}
    teacher = model_sums(config.reference, what="reference") if config.reference else {}
    return model_sums(config.model) | held | teacher


def model_sums(model: str, *, what: str = "model") -> dict[str, str]:
    """Checksums of the files of a model, of an adapter and the model it was made for, or of a saved policy with its
    critic; of what is on the hub, the revision.
    """
    base, file = adapter_base(_source(model)), gguf_file(model)
    if file is not None:
        return {f"{what}: {file.name}": checksum(file)} | _sums(_source(model), what)
    return _sums(model, what) | ({} if base is None else _sums(base, f"base {what}"))


# What is read of a model's folder: weights, configs, tokenizer, chat template, code of its own.
_READ = (".safetensors", ".bin", ".json", ".model", ".txt", ".jinja", ".tiktoken", ".py")


def _sums(model: str, what: str) -> dict[str, str]:
    folder = Path(model)
    if folder.is_dir():
        files = [path for place in ("*", "model/*", "critic/*") for path in folder.glob(place)]
        return files_sums(what, (path for path in files if path.suffix in _READ and path.is_file()), below=folder)
    for name in ("config.json", "adapter_config.json"):
        path = cached_file(model, name, _raise_exceptions_for_missing_entries=False)
        if path is not None:
            return {f"{what}: {model}": f"revision {extract_commit_hash(path, None)}"}
    return {}


def policy_of(config: ModelConfig, *, temperature: float, seed: int) -> CausalLM:
    """The policy, weights in float32; the critic and the adapter of a saved policy come along. It has no tokenizer.

    Args:
        seed: Of a fresh adapter's weights; torch's global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        source = _source(config.model)
        adapted = adapter_base(source) is not None
        _require_frozen(config, source if adapted else None)
        base = pretrained(AutoModelForCausalLM, _base_source(config.model), dtype=torch.float32)
        critic = _critic_trunk(config, base) if config.critic == "separate" else config.critic
        if config.quantize != "none":
            hold_in_four_bits(base)
        model: Model = base
        if adapted:
            model = trained_adapter(base, source)
        elif config.lora_rank > 0:
            model = fresh_adapter(base, rank=config.lora_rank, alpha=config.lora_alpha, targets=config.lora_targets)
        policy = _policy_of_parts(config, model, critic, temperature=temperature)
    folder = _folder(config.model)
    if _is_saved_policy(config.model) and config.critic == _saved_critic(folder):
        policy.load_value_head(folder)
    return policy


def random_policy(config: ModelConfig, architecture: PretrainedConfig) -> CausalLM:
    """A policy as `policy_of` makes it, but of another config and of random weights: none are read."""
    with torch.random.fork_rng(devices=[]):
        base = AutoModelForCausalLM.from_config(architecture, dtype=torch.float32)
        critic = copy.deepcopy(trunk_of(base)) if config.critic == "separate" else config.critic
        source = _source(config.model)
        adapted = adapter_base(source) is not None
        _require_frozen(config, source if adapted else None)
        if config.quantize != "none":
            hold_in_four_bits(base)
        model: Model = base
        if adapted:
            model = untrained_adapter(base, source)
        elif config.lora_rank > 0:
            model = fresh_adapter(base, rank=config.lora_rank, alpha=config.lora_alpha, targets=config.lora_targets)
        return _policy_of_parts(config, model, critic, temperature=1.0)


def _require_frozen(config: ModelConfig, adapter: str | None) -> None:
    """Refuses 4 bits for what learns; `adapter` is where that of the model is, if it has one."""
    if config.quantize == "none":
        return
    if adapter is None and not config.lora_rank:
        raise InputError("quantize is given and no adapter: weights in 4 bits do not learn; add lora_rank, such as 16.")
    if adapter is not None and not multiplies_only(opened(PeftConfig.from_pretrained, adapter)):
        raise InputError(
            f"the adapter in {adapter!r} computes with the weights beside it, which would stand in 4 bits; leave "
            "quantize out, or give a plain LoRA adapter."
        )


def _policy_of_parts(
    config: ModelConfig, model: Model, critic: str | PreTrainedModel, *, temperature: float
) -> CausalLM:
    if config.gradient_checkpointing:
        for each in (base_of(model), critic):
            _checkpoint_gradients(each)
    return CausalLM(
        model, temperature=temperature, critic=critic, reference_dtype=_REFERENCE_DTYPES[config.reference_dtype]
    )


def _critic_trunk(config: ModelConfig, base: PreTrainedModel) -> PreTrainedModel:
    saved = _folder(config.model) / "critic"
    if saved.is_dir():
        return pretrained(AutoModel, str(saved), dtype=torch.float32)
    if config.critic_model:
        return pretrained(AutoModel, located(config.critic_model), dtype=torch.float32)
    return copy.deepcopy(trunk_of(base))


def _checkpoint_gradients(model: Any) -> None:
    if not isinstance(model, PreTrainedModel):
        return
    # The name changed in transformers 5.2x, and the old one warns.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _is_saved_policy(model: str) -> bool:
    return (_folder(model) / "model").is_dir()


def _folder(model: str) -> Path:
    return Path(model).expanduser()


def _saved_critic(folder: Path) -> str:
    """The critic of a saved policy; one that was cloned, or trained by GRPO, may have none."""
    if (folder / "critic").is_dir():
        return "separate"
    return "shared" if (folder / VALUE_HEAD).is_file() else "none"


def _base_source(model: str) -> str:
    """Where the model itself is, whatever adapter is beside it."""
    source = _source(model)
    base = adapter_base(source)
    return source if base is None else located(base)


def _source(model: str) -> str:
    return str(_folder(model) / "model") if _is_saved_policy(model) else located(model)


def build_policy(
    config: PretrainedConfig,
    *,
    temperature: float,
    critic: Literal["shared", "separate", "none"],
    seed: int,
    gradient_checkpointing: bool = False,
    reference_dtype: Literal["float32", "bfloat16"] = "float32",
) -> CausalLM:
    """A policy of random weights from a transformers config; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        if gradient_checkpointing:
            _checkpoint_gradients(model)
        return CausalLM(
            model, temperature=temperature, critic=critic, reference_dtype=_REFERENCE_DTYPES[reference_dtype]
        )
