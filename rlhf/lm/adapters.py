"""Adapters of peft beside a model: a fresh LoRA, or one that was trained, of any kind that learns weights."""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import load_peft_weights
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import find_adapter_config_file

from rlhf.errors import InputError
from rlhf.lm.loading import listed, one_line, opened, require_finite
from rlhf.lm.pretrained import require_stored_whole


def adapter_base(source: str) -> str | None:
    """The model that an adapter was made for; None if `source` is no adapter."""
    if opened(find_adapter_config_file, source) is None:
        return None
    base = opened(PeftConfig.from_pretrained, source).base_model_name_or_path
    if not base:
        raise InputError(f"The adapter in {source} does not say what model it was made for (base_model_name_or_path).")
    return base


def fresh_adapter(base: PreTrainedModel, *, rank: int, alpha: float, targets: tuple[str, ...]) -> PeftModel:
    """The model with a LoRA adapter that adds nothing yet; all else is frozen."""
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=list(targets) or "all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),
    )
    try:
        return cast(PeftModel, get_peft_model(base, lora))
    except Exception as error:
        raise InputError(f"lora_targets {targets} do not fit {type(base).__name__}: {one_line(error)}") from error


def untrained_adapter(base: PreTrainedModel, source: str) -> PeftModel:
    """The model with an adapter of the kind and size of that in `source`, whose weights are not read."""
    config = opened(PeftConfig.from_pretrained, source)
    config.inference_mode = False
    return cast(PeftModel, get_peft_model(base, config))


def trained_adapter(base: PreTrainedModel, source: str) -> PeftModel:
    """The model with the adapter in `source`, which learns on; all else is frozen.

    Raises:
        InputError: The adapter learns no weights, is not all there, or rewrites weights that are not its own, as PiSSA,
            OLoRA, CorDA and LoftQ do when they are made: what it was trained beside is in no file.
    """
    config = opened(PeftConfig.from_pretrained, source)
    kind = _kind(config)
    if config.is_prompt_learning:
        raise InputError(
            f"the adapter in {source!r} is {kind}, which learns tokens before the prompt instead of weights; it cannot "
            "be trained here. Give a LoRA adapter, or a whole model."
        )
    if getattr(config, "alora_invocation_tokens", None):
        raise InputError(
            f"the adapter in {source!r} is an activated LoRA, which counts only after certain tokens; give a plain "
            "LoRA adapter, or a whole model."
        )
    require_stored_whole(source)
    before = [(name, parameter, _hash(parameter)) for name, parameter in base.named_parameters()]
    model = opened(functools.partial(PeftModel.from_pretrained, base), source, is_trainable=True)
    rewritten = [
        name for name, parameter, hashed in before if not parameter.requires_grad and _hash(parameter) != hashed
    ]
    if rewritten:
        raise InputError(
            f"the adapter in {source!r} ({kind}) rewrites weights of its model when it is made ({listed(rewritten)}), "
            "so it is only right beside weights that are in no file; convert it to a plain LoRA (peft's "
            "save_pretrained with path_initial_model_for_weight_conversion), or merge it into its model."
        )
    _require_same_weights(model, source, kind)
    require_finite(model, source)
    return model


def _require_same_weights(model: PeftModel, source: str, kind: str) -> None:
    """Refuses an adapter that is not all there or has parts left over, and one that peft would not save whole."""
    stored = opened(functools.partial(load_peft_weights, device="cpu"), source)
    saved = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    # With an embedding that it adapts, peft saves the embedding itself.
    missing, left_over = saved.keys() - stored.keys(), stored.keys() - saved.keys() - model.state_dict().keys()
    if missing or left_over:
        raise InputError(
            f"the adapter in {source!r} does not fit its model: {f'it lacks {listed(missing)}' if missing else ''}"
            f"{', ' if missing and left_over else ''}{f'it has {listed(left_over)} too many' if left_over else ''}. It "
            "was made for another model, or is not all there."
        )
    kept = {tensor.data_ptr() for tensor in saved.values()}
    learned = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    lost = [name for name, tensor in learned.items() if tensor.data_ptr() not in kept]
    if lost or not learned:
        raise InputError(
            f"the adapter in {source!r} ({kind}) "
            + (f"learns weights that peft does not save: {listed(lost)}" if lost else "has no weights that learn")
            + "; give a LoRA adapter, or a whole model."
        )


def _kind(config: PeftConfig) -> str:
    start = getattr(config, "init_lora_weights", True)
    name = str(getattr(config.peft_type, "value", config.peft_type))
    return name if isinstance(start, bool) else f"{name} with init_lora_weights {start}"


def _hash(tensor: Any) -> int:
    return int(torch.hash_tensor(tensor.detach()).view(torch.int64))
