"""Model folders as downloads, converters and other tools leave them: opened whole, or refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, T5Config

from rlhf.errors import InputError
from rlhf.lm.load import ModelConfig, load_policy, load_tokenizer, policy_of
from rlhf.lm.policy import CausalLM
from rlhf.lm.reward_model import RewardModel
from tests.lm.tiny import random_inputs, save_tiny
from tests.lm.words import EOS, WORDS, word_tokenizer

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def weights(change: Callable[[str, torch.Tensor], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        changed: dict[str, torch.Tensor] = {}
        for name, tensor in load_file(folder / WEIGHTS).items():
            changed |= change(name, tensor)
        save_file(changed, folder / WEIGHTS, metadata={"format": "pt"})

    return harm


def config(**values: object) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        path = folder / CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return harm


def without(part: str) -> Callable[[Path], None]:
    return weights(lambda name, tensor: {} if part in name else {name: tensor})


def with_one(part: str, number: float) -> Callable[[Path], None]:
    def change(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        if part in name:
            tensor.view(-1)[-1] = number
        return {name: tensor}

    return weights(change)


def with_bias(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    bias = {f"{name.removesuffix('weight')}bias": tensor[0].clone()} if "q_proj" in name else {}
    return {name: tensor} | bias


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def sharded_in_part(folder: Path) -> None:
    names = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00002-of-00002.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


HARMS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no head": (without("lm_head"), "lacks weights of LlamaForCausalLM, which would be random: lm_head"),
    "a layer is missing": (without("layers.1.mlp"), "would be random: .*layers.1.mlp"),
    "torch.compile": (weights(lambda name, tensor: {f"_orig_mod.{name}": tensor}), "would be random"),
    "wrapped": (weights(lambda name, tensor: {f"module.{name}": tensor}), "would be random"),
    "other size": (config(intermediate_size=64), "not of one model"),
    "fewer layers": (config(num_hidden_layers=1), "has no place by its config.json: model.layers.1"),
    "a digit too many": (config(num_hidden_layers=10**7), "names 10,000,000 layers, and its weights are"),
    "biases": (weights(with_bias), "has no place by its config.json: model.layers.0.self_attn.q_proj.bias"),
    "NaN": (with_one("layers.1.mlp.up_proj", float("nan")), "layers.1.mlp.up_proj.weight .* NaN"),
    "infinite": (with_one("embed_tokens", float("inf")), "model.embed_tokens.weight .* NaN or infinite"),
    "bitsandbytes": (config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}), "quantised"),
    "gptq": (config(quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128}), "quantised"),
    "codes": (weights(lambda name, tensor: {name: tensor.to(torch.int8)}), "is stored as I8, so quantised"),
    "cut": (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:5000]), "no whole safetens"),
    "git-lfs": (
        lambda folder: (folder / WEIGHTS).write_text("version https://git-lfs\noid sha256:0\n"),
        "no whole safe",
    ),
    "empty": (lambda folder: (folder / WEIGHTS).write_bytes(b""), "no whole safetensors"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "holds no weights as safetensors"),
    "pickle": (pickled, "pytorch_model.bin, a pickle"),
    "shards": (sharded_in_part, "could not load"),
    "unknown type": (config(model_type="nobody_knows"), "nobody_knows"),
    "code of its own": (config(auto_map={"AutoConfig": "own.Config"}, model_type="own"), "custom code"),
    "no config": (lambda folder: (folder / CONFIG).unlink(), "could not load"),
    "config is no JSON": (lambda folder: (folder / CONFIG).write_text("{"), "could not load"),
    "config is a list": (lambda folder: (folder / CONFIG).write_text("[]"), "could not load"),
    "heads that do not divide": (config(num_attention_heads="four"), "could not load"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    save_tiny("llama", folder, vocab_size=len(WORDS), eos_token_id=EOS, pad_token_id=EOS)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "model")


def refusal(load: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        load()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", HARMS)
def test_a_broken_folder_is_refused_in_one_line(folder, name):
    harm, message = HARMS[name]
    harm(folder)
    refusal(lambda: load_policy(str(folder)), message)


@pytest.mark.parametrize("name", ["no head", "a layer is missing", "NaN", "cut", "pickle", "gptq", "unknown type"])
def test_reward_models_and_models_for_critics_pass_the_same_doors(whole, folder, name):
    harm, message = HARMS[name]
    harm(folder)
    if name != "no head":
        loading = {"critic": "separate", "critic_model": str(folder)}
        refusal(lambda: policy_of(ModelConfig(model=str(whole), **loading), temperature=1.0, seed=0), message)
    message = message.replace("LlamaForCausalLM", "LlamaForSequenceClassification").replace("lm_head", "score")
    shape = AutoConfig.from_pretrained(whole, num_labels=1)
    with torch.random.fork_rng():
        AutoModelForSequenceClassification.from_config(shape).save_pretrained(folder)
    (without("score") if name == "no head" else harm)(folder)
    refusal(lambda: RewardModel(str(folder), device=torch.device("cpu")), message)


def test_a_tokenizer_of_another_version_is_refused_and_no_other_is_taken_for_it(folder):
    words = folder / "tokenizer.json"
    words.write_text(words.read_text().replace('"WordLevel"', '"WordLevel2"'))
    refusal(lambda: load_tokenizer(str(folder)), "could not load")
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "elsewhere", "peft_type": "LORA"})
    )
    refusal(lambda: load_tokenizer(str(folder)), "could not load")


@pytest.mark.parametrize("kind", [BertConfig, T5Config])
def test_models_that_are_no_causal_language_models_are_refused(tmp_path, kind):
    sizes = {"num_layers": 1, "d_model": 16, "num_heads": 2} if kind is T5Config else {"hidden_size": 16}
    shape = kind(vocab_size=61, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, **sizes)
    if kind is BertConfig:
        AutoModelForCausalLM.from_config(shape).save_pretrained(tmp_path)
    else:
        shape.save_pretrained(tmp_path)
    message = "encoders do" if kind is BertConfig else "a t5 model"
    refusal(lambda: policy_of(ModelConfig(model=str(tmp_path)), temperature=1.0, seed=0), message)


SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48}
OTHERS: dict[str, dict[str, object]] = {
    "minimax": {
        **SIZES,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "block_size": 8,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "openai-gpt": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
    "rwkv": SIZES,
}


@pytest.mark.parametrize("kind", OTHERS)
def test_models_whose_forward_is_another_are_refused_by_name(kind):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=61, **OTHERS[kind]))
    refusal(lambda: CausalLM(model, temperature=1.0, critic="none"), "use a")


def test_tied_weights_and_those_of_other_heads_may_be_left_out(tiny_folder, tmp_path):
    """A tied head is not stored, and a classifier's head is of no use to a critic."""
    assert "lm_head.weight" not in load_file(tiny_folder("qwen2") / WEIGHTS)
    shape = AutoConfig.from_pretrained(tiny_folder("qwen2"), num_labels=1)
    AutoModelForSequenceClassification.from_config(shape).save_pretrained(tmp_path)
    loading = {"critic": "separate", "critic_model": str(tmp_path)}
    policy = policy_of(ModelConfig(model=str(tiny_folder("qwen2")), **loading), temperature=1.0, seed=0)
    assert policy(random_inputs()).logprobs.isfinite().all()
