"""A model in one .gguf file, as llama.cpp keeps it: turned once into a folder that every tool loads."""

from __future__ import annotations

import copy
import functools
import hashlib
import shutil
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from rlhf.errors import InputError
from rlhf.lm.gguf_tokenizer import from_gguf, gguf_tokenizer
from rlhf.lm.loading import listed, one_line, require_finite
from rlhf.runs.disk import free_bytes, readable, reason

# Ids of the tokens that end a response: of a text, of a turn, of a message to a tool.
_ENDS = ("eos", "eot", "eom")


def gguf_file(model: str) -> Path | None:
    """The .gguf file that a model's name means, itself or as the one in a folder without other weights; None if none.

    Raises:
        InputError: The folder holds several.
    """
    place = Path(model).expanduser()
    if place.is_file():
        return place if place.suffix.lower() == ".gguf" else None
    if not place.is_dir() or any(place.glob("*.safetensors")):
        return None
    found = sorted(path for path in place.iterdir() if path.suffix.lower() == ".gguf" and path.is_file())
    if len(found) > 1:
        raise InputError(
            f"{model} holds {len(found)} .gguf files ({listed(path.name for path in found)}); give the path of one."
        )
    return found[0] if found else None


def checksum(file: Path) -> str:
    """The sha256 of a file, computed once for each time that it is written."""
    status = file.stat()
    return _sha256(file.absolute(), status.st_size, status.st_mtime_ns)


@functools.cache
def _sha256(file: Path, size: int, written: int) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def converted(file: Path) -> Path:
    """The folder beside a .gguf file that holds the same model for transformers and peft; made if it is not there.

    Its name ends in the file's checksum: with the file changed it is another, and what was trained on the first keeps
    its base.
    """
    folder = file.absolute().with_name(f"{file.stem}-{checksum(file)[:12]}")
    if not folder.is_dir():
        try:
            # The processes of a run all come here.
            with FileLock(folder.with_name(f".{folder.name}.lock")):
                if not folder.is_dir():
                    convert(file, folder)
        except OSError as error:
            raise InputError(
                f"could not turn {file} into a folder beside it ({reason(error) or one_line(error)}); move it to where "
                "there is room and you may write."
            ) from error
    return folder


def convert(file: Path, folder: Path) -> None:
    """Writes the model as a folder, whole or not at all; its weights as float32, which holds what any .gguf does.

    Raises:
        InputError: The file is broken, or of no causal language model with a tokenizer that can be read.
    """
    metadata, sizes = _read(file)
    numbers = sum(sizes)
    tokenizer = gguf_tokenizer(file, metadata)
    config = from_gguf(AutoConfig, file)
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise InputError(f"{file} is a {config.model_type} model, which is no causal language model; give another.")
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    # Each would be made, with weights or without: a wrong digit takes hours.
    if layers > len(sizes):
        raise InputError(
            f"{file} names {layers:,} layers, and its weights are {len(sizes)} tensors; download it again."
        )
    free = free_bytes(folder.parent)
    if 4 * numbers > free:
        raise InputError(
            f"{file} needs {readable(4 * numbers)} beside it for its weights as float32, and {readable(free)} are "
            "free; make room there, or move it."
        )
    # As the file says it, whatever transformers makes of it.
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    tokenizer.model_max_length = getattr(config, "max_position_embeddings", tokenizer.model_max_length)
    model = _model(file, config, numbers)
    ends = [metadata[key] for name in _ENDS if (key := f"tokenizer.ggml.{name}_token_id") in metadata]
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=ends if len(ends) != 1 else ends[0],
        pad_token_id=config.pad_token_id,
    )
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)


def _read(file: Path) -> tuple[dict[str, Any], list[int]]:
    """What the file says of its model, and how many numbers each of its tensors is."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise InputError(f"reading {file} takes the package gguf: pip install 'rlhf[gguf]'.") from error
    # It fails in any way on what it does not expect.
    try:
        reader = GGUFReader(file)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        sizes = [int(tensor.n_elements) for tensor in reader.tensors]
    except Exception as error:
        raise InputError(
            f"{file} is no whole .gguf file ({one_line(error)}); it may be cut: download it again."
        ) from error
    if metadata.get("split.count", 1) > 1:
        raise InputError(f"{file} is one of several parts; join them (llama-gguf-split --merge) and give the whole.")
    return metadata, sizes


def _model(file: Path, config: PretrainedConfig, numbers: int) -> PreTrainedModel:
    """The model with all of the file's weights, each of them finite, and free of what reads .gguf, which is not saved.

    Args:
        numbers: How many the weights in the file are.
    """
    read, info = from_gguf(
        AutoModelForCausalLM,
        file,
        config=copy.deepcopy(config),
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        output_loading_info=True,
        # They are refused below, by name.
        ignore_mismatched_sizes=True,
    )
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    held, wanted = read.state_dict(), model.state_dict()
    misshapen = {name for name, tensor in held.items() if tensor.shape != wanted[name].shape}
    lacking = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"]), *misshapen}
    described = sum(parameter.numel() for parameter in model.parameters())
    if lacking or described != numbers:
        raise InputError(
            f"{file} holds {numbers:,} numbers, and the {config.model_type} model that it describes has {described:,}"
            + (f", of which it lacks {listed(lacking)}" if lacking else "")
            + "; transformers does not read it right. Give the model as a folder of safetensors."
        )
    require_finite(read, str(file))
    model.load_state_dict(held, assign=True)
    model.tie_weights()
    return model
