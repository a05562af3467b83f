"""Models as others left them, in a folder or on the hub: opened whole, or refused in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import find_adapter_config_file

from rlhf.errors import InputError
from rlhf.lm.gguf import converted, gguf_file
from rlhf.lm.hub import require_hub
from rlhf.lm.loading import listed, one_line, opened, require_finite

# Where the numbers of a weight stand as they are; others (I8, U8, F8_E4M3, ...) are codes that go with a scale.
_PLAIN = ("F64", "F32", "F16", "BF16")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def located(model: str) -> str:
    """Where transformers finds a model: a folder, such as a .gguf file is turned into, or a name that the hub knows."""
    if not model:
        raise InputError("there is no model: its name is empty; give a folder, a .gguf file, or a name on the hub.")
    file = gguf_file(model)
    if file is not None:
        return str(converted(file))
    folder = Path(model).expanduser()
    if folder.is_dir():
        return str(folder)
    if folder.exists():
        raise InputError(f"{model} is a file; give the folder of a model, a .gguf file, or its name on the hub.")
    if model.startswith(("/", ".", "~")) or folder.suffix == ".gguf":
        raise InputError(f"there is no folder or file {model} to load a model from.")
    require_hub(model, "model")
    return model


def pretrained_config(source: str) -> PretrainedConfig:
    """The config of a model whose weights are stored as they are computed with."""
    config = opened(AutoConfig.from_pretrained, source, trust_remote_code=False)
    for part in (config, config.get_text_config()):
        quantised = getattr(part, "quantization_config", None)
        if quantised is not None:
            method = quantised.get("quant_method") if isinstance(quantised, dict) else type(quantised).__name__
            raise InputError(
                f"{source!r} holds quantised weights ({method}), which cannot be trained; give the model that they "
                "were made from."
            )
    return config


def pretrained(auto: Any, source: str, *, dtype: torch.dtype) -> PreTrainedModel:
    """A transformers model with all of its weights and no others, each of them finite.

    Args:
        auto: AutoModelForCausalLM, AutoModel, ...
    """
    if opened(find_adapter_config_file, source) is not None:
        raise InputError(
            f"{source!r} is an adapter, where a whole model is needed; merge it into its model (peft's "
            "merge_and_unload) and give that."
        )
    config = pretrained_config(source)
    if type(config) not in auto._model_mapping:
        raise InputError(
            f"{source!r} is a {config.model_type} model, which {auto.__name__} of transformers does not make; give a "
            "model of another kind."
        )
    stored = require_stored_whole(source)
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    # Each would be made, with weights or without: a wrong digit takes hours.
    if stored and isinstance(layers, int) and layers > len(stored):
        raise InputError(
            f"config.json in {source!r} names {layers:,} layers, and its weights are {len(stored)} tensors; the "
            "weights and the config are not of one model."
        )
    model, info = opened(
        auto.from_pretrained,
        source,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        # They are refused below, by name.
        ignore_mismatched_sizes=True,
        trust_remote_code=False,
    )
    _require_fit(model, info, source)
    require_finite(model, source)
    return model


def require_stored_whole(source: str) -> list[str]:
    """The names of a folder's weights; refuses pickles (which run whatever code is in them), broken and quantised."""
    folder = Path(source)
    if not folder.is_dir():
        return []  # The hub keeps checksums, and transformers asks it for safetensors.
    files = sorted(folder.glob("*model*.safetensors"))
    if not files:
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        raise InputError(
            f"{folder} holds no weights as safetensors"
            + (f", only {pickles[0]}, a pickle, which may run any code" if pickles else "")
            + "; save the model with a current save_pretrained, and give that folder."
        )
    names: list[str] = []
    for path in files:
        try:
            with safe_open(path, "pt") as stored:
                kinds = {name: stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118
        except Exception as error:
            raise InputError(
                f"{path} is no whole safetensors file ({one_line(error)}); download or save it again."
            ) from error
        names += kinds
        for name, kind in kinds.items():
            if name.endswith("weight") and kind not in _PLAIN:
                raise InputError(
                    f"{name} in {path} is stored as {kind}, so quantised, which cannot be trained; give the model that "
                    "it was made from."
                )
    return names


def _require_fit(model: PreTrainedModel, info: dict[str, Any], source: str) -> None:
    """Refuses weights that do not cover the model, or that the model has no place for where it should have one."""
    name = type(model).__name__
    if info["missing_keys"]:
        raise InputError(
            f"{source!r} lacks weights of {name}, which would be random: {listed(info['missing_keys'])}. Give a model "
            "that was saved as one of this class."
        )
    for key, stored, needed in sorted(info["mismatched_keys"]):
        raise InputError(
            f"{key} in {source!r} has the shape {list(stored)}, and by config.json it has {list(needed)}; the weights "
            "and the config are not of one model."
        )
    left_over = [key for key in info["unexpected_keys"] if _belongs(key, model)]
    if left_over:
        raise InputError(
            f"{source!r} holds weights for which {name} has no place by its config.json: {listed(left_over)}; the "
            "weights and the config are not of one model."
        )


def _belongs(key: str, model: PreTrainedModel) -> bool:
    """Whether a stored weight is one more of a kind that the model has (a further layer), or one more of a layer (a
    bias), rather than a head or a tower that this class leaves out."""
    modules = dict(model.named_modules())
    kinds = {_kind(name) for name in model.state_dict()}
    for name in (key, f"{model.base_model_prefix}.{key}"):
        path = name.rpartition(".")[0]
        while path and path not in modules:
            path = path.rpartition(".")[0]
        owner = modules.get(path) if path else None
        if _kind(name) in kinds or (owner is not None and any(True for _ in owner.parameters(recurse=False))):
            return True
    return False


def _kind(name: str) -> str:
    return re.sub(r"\d+", "#", name)
