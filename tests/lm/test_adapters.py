"""Adapters of every kind of peft: the reference is the policy at first and never moves, or the kind is refused."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from rlhf.errors import InputError
from rlhf.lm.load import ModelConfig, policy_of
from rlhf.lm.policy import CausalLM
from tests.lm.tiny import disturb, load_tiny, random_inputs, save_tiny

LINEAR = {"target_modules": ["q_proj", "v_proj"]}
LORA = {"r": 4, **LINEAR}

# What learns in them: products, biases, magnitudes, whole modules, single embeddings, vectors, rotations, norms.
TRAINED = {
    "lora": LoraConfig(**LORA),
    "biases": LoraConfig(**LORA, bias="lora_only"),
    "all biases": LoraConfig(**LORA, bias="all"),
    "biases of its own": LoraConfig(**LORA, lora_bias=True),
    "dora": LoraConfig(**LORA, use_dora=True),
    "head": LoraConfig(**LORA, modules_to_save=["lm_head"]),
    "embedding": LoraConfig(**LORA, modules_to_save=["embed_tokens"]),
    "norm": LoraConfig(**LORA, modules_to_save=["norm"]),
    "new tokens": LoraConfig(**LORA, trainable_token_indices={"embed_tokens": [5, 6]}),
    "lora on embedding and head": LoraConfig(r=4, target_modules=["embed_tokens", "lm_head"]),
    "tokens alone": peft.TrainableTokensConfig(token_indices=[*range(60)], target_modules=["embed_tokens"]),
    "orthogonal": LoraConfig(**LORA, init_lora_weights="orthogonal"),
    "adalora": peft.AdaLoraConfig(**LINEAR, total_step=100),
    "ia3": peft.IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "vera": peft.VeraConfig(**LINEAR),
    "loha": peft.LoHaConfig(**LINEAR),
    "lokr": peft.LoKrConfig(**LINEAR),
    "oft": peft.OFTConfig(**LINEAR),
    "boft": peft.BOFTConfig(**LINEAR),
    "hra": peft.HRAConfig(**LINEAR),
    "fourier": peft.FourierFTConfig(**LINEAR, n_frequency=50),
    "randlora": peft.RandLoraConfig(**LINEAR),
    "norms": peft.LNTuningConfig(target_modules=["input_layernorm"]),
}
REFUSED = {
    "PROMPT_TUNING": peft.PromptTuningConfig(num_virtual_tokens=4),
    "PREFIX_TUNING": peft.PrefixTuningConfig(num_virtual_tokens=4),
    "P_TUNING": peft.PromptEncoderConfig(num_virtual_tokens=4),
    "pissa": LoraConfig(**LORA, init_lora_weights="pissa"),
    "pissa_niter_4": LoraConfig(**LORA, init_lora_weights="pissa_niter_4"),
    "olora": LoraConfig(**LORA, init_lora_weights="olora"),
    "activated LoRA": LoraConfig(**LORA, alora_invocation_tokens=[3, 4]),
    "POLY": peft.PolyConfig(**LINEAR),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("base"), attention_bias=True)


def saved(base: Path, folder: Path, config: Any, *, trained: bool) -> str:
    config.task_type = "CAUSAL_LM"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = get_peft_model(load_tiny(base), config)
    if trained:
        disturb(model.parameters(), 0.05)
    model.save_pretrained(str(folder))
    return str(folder)


def load(folder: str) -> CausalLM:
    return policy_of(ModelConfig(model=folder), temperature=1.0, seed=0)


# Before 0.21 peft did not save the biases that it trained.
SAVES_BIASES = Version(peft.__version__) >= Version("0.21")
BIASES = ["biases"] if SAVES_BIASES else []
FRESH = ["lora", *BIASES, "dora", "head", "new tokens", "vera"]
SAVED = [kind for kind in TRAINED if SAVES_BIASES or kind != "biases"]


@pytest.mark.parametrize(
    ("kind", "trained"), [(kind, False) for kind in FRESH] + [(kind, True) for kind in SAVED], ids=str
)
def test_the_reference_of_an_adapter_is_the_policy_at_first_and_never_moves(base, tmp_path, kind, trained):
    folder = saved(base, tmp_path, TRAINED[kind], trained=trained)
    policy, inputs = load(folder), random_inputs()
    plain = peft.PeftModel.from_pretrained(load_tiny(base), folder).eval()
    assert torch.equal(policy.model(inputs["tokens"]).logits, plain(inputs["tokens"]).logits)
    before = policy(inputs).logprobs
    policy.make_reference()
    assert torch.equal(policy(inputs).logprobs, before)
    assert torch.equal(policy.reference_logprobs(inputs), before)
    disturb(policy.parameters(), 0.1)
    after = policy(inputs).logprobs
    assert not torch.equal(after, before)
    assert torch.equal(policy.reference_logprobs(inputs), before)
    assert torch.equal(policy(inputs).logprobs, after)


@pytest.mark.parametrize("kind", [*BIASES, "dora", "head", "new tokens", "ia3", "vera"])
def test_an_adapter_comes_back_bit_for_bit_into_one_that_was_loaded_anew(base, tmp_path, kind):
    folder = saved(base, tmp_path / "start", TRAINED[kind], trained=True)
    policy, inputs = load(folder), random_inputs()
    disturb(policy.parameters(), 0.1)
    policy.save(tmp_path / "end")
    other = load(folder)
    other.load(tmp_path / "end")
    assert torch.equal(other(inputs).logprobs, policy(inputs).logprobs)


def test_biases_that_peft_does_not_save_are_refused_by_name(base, tmp_path):
    folder = saved(base, tmp_path, TRAINED["biases"], trained=True)
    with nullcontext() if SAVES_BIASES else pytest.raises(InputError, match=r"peft does not save: .*bias"):
        load(folder)


@pytest.mark.parametrize("kind", REFUSED)
def test_an_adapter_that_rewrites_its_model_or_learns_no_weights_of_layers_is_refused_by_name(base, tmp_path, kind):
    folder = saved(base, tmp_path, REFUSED[kind], trained=True)
    with pytest.raises(InputError, match=kind):
        load(folder)


def test_an_adapter_that_is_not_all_there_is_refused(base, tmp_path):
    folder = saved(base, tmp_path, TRAINED["lora"], trained=True)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    lacking = {name: tensor for name, tensor in weights.items() if "layers.1" not in name}
    further = weights | {name.replace("layers.1", "layers.2"): tensor.clone() for name, tensor in weights.items()}
    broken = weights | {next(iter(weights)): next(iter(weights.values())) * float("nan")}
    narrow = {name: tensor[:2].clone() for name, tensor in weights.items()}
    for changed, message in ((lacking, "it lacks"), (further, "too many"), (broken, "NaN"), (narrow, "size mismatch")):
        save_file(changed, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
        with pytest.raises(InputError, match=message):
            load(folder)


def test_an_adapter_of_an_adapter_is_refused(base, tmp_path):
    inner = saved(base, tmp_path / "inner", TRAINED["lora"], trained=True)
    folder = saved(base, tmp_path / "outer", TRAINED["lora"], trained=True)
    config = tmp_path / "outer" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": inner}))
    with pytest.raises(InputError, match="is an adapter, where a whole model is needed"):
        load(folder)


def test_targets_that_are_not_there_are_refused(base):
    with pytest.raises(InputError, match="do not fit LlamaForCausalLM"):
        policy_of(ModelConfig(model=str(base), lora_rank=2, lora_targets=("nothing",)), temperature=1.0, seed=0)
