"""A .gguf file as a model: the weights that it holds, its own tokenizer, and what is refused in one line."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType as Type
from peft import AutoPeftModelForCausalLM
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM

from rlhf.errors import InputError
from rlhf.lm import gguf_tokenizer
from rlhf.lm.chat import Chat
from rlhf.lm.gguf import converted
from rlhf.lm.load import load_policy, load_tokenizer, model_sums, stop_tokens
from rlhf.lm.reward_model import RewardModel
from tests.lm.gguf_files import TEXT, byte_tokenizer, random_model, smollm_tokenizer, write_gguf
from tests.lm.tiny import disturb
from tests.lm.words import sentencepiece_tokenizer

TEXTS = (TEXT, "x=12, 3.50 ", "  1\n\n2\n 3", "naïve café 日本 ½ 🙂", "user's\t\ttab <|im_end|>", "")
TOKENS = torch.tensor([[1, 40, 41, 200, 7, 2, 99]])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tiny.gguf"


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.Q4_1, Type.Q8_0], ids=lambda kind: kind.name)
def test_a_gguf_file_is_the_model_of_its_dequantised_weights(file, kind):
    held = write_gguf(file, kind=kind)
    policy = load_policy(str(file))
    own = policy.model.state_dict()
    assert own.keys() - held.keys() == {"lm_head.weight"}
    for name, tensor in held.items():
        assert torch.equal(own[name], tensor), name
    plain = random_model("llama", len(held["model.embed_tokens.weight"]), tied=True)
    plain.load_state_dict(held, strict=False)
    assert torch.allclose(policy.model(TOKENS).logits, plain.eval()(TOKENS).logits, atol=1e-5)


@pytest.mark.parametrize(("architecture", "tied"), [("qwen2", True), ("llama", False), ("qwen3", False)])
def test_other_architectures_and_heads_are_read_as_they_are(file, architecture, tied):
    held = write_gguf(file, architecture=architecture, tied=tied)
    model = load_policy(str(file)).model
    assert model.config.model_type == architecture
    assert model.config.tie_word_embeddings is tied
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    plain = random_model(architecture, len(held["model.embed_tokens.weight"]), tied=tied)
    plain.load_state_dict(held, strict=False)
    assert torch.allclose(model(TOKENS).logits, plain.eval()(TOKENS).logits, atol=1e-5)


def gpt2_tokenizer() -> Tokenizer:
    return byte_tokenizer()


@pytest.mark.parametrize(
    ("rule", "original"), [("smollm", smollm_tokenizer), ("gpt-2", gpt2_tokenizer), (None, gpt2_tokenizer)]
)
def test_texts_are_split_by_the_rule_that_the_file_names(file, rule, original):
    write_gguf(file, tokenizer=original(), changes={"tokenizer.ggml.pre": rule})
    tokenizer = load_tokenizer(str(file))
    for text in TEXTS:
        tokens = tokenizer(text)["input_ids"]
        assert tokens == original().encode(text).ids
        assert tokenizer.decode(tokens) == text


@pytest.mark.parametrize("rule", gguf_tokenizer._SPLITS)
def test_every_rule_keeps_every_character(rule):
    metadata = {"tokenizer.ggml.tokens": list(pre_tokenizers.ByteLevel.alphabet()), "tokenizer.ggml.pre": rule}
    tokenizer = gguf_tokenizer._byte_level(Path("x.gguf"), metadata)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_tokenizer_is_the_files_own(file):
    write_gguf(file)
    policy = load_policy(str(file))
    tokenizer = policy.tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert (policy.config.bos_token_id, policy.config.eos_token_id, policy.config.pad_token_id) == (1, 2, 2)
    assert len(tokenizer) == policy.config.vocab_size == smollm_tokenizer().get_vocab_size()
    assert policy.context == tokenizer.model_max_length == 256
    assert policy.stop_tokens == (2,)
    # No token in front that the chat template does not write.
    assert tokenizer("a")["input_ids"] == tokenizer("a", add_special_tokens=False)["input_ids"]


def test_a_tokenizer_of_pieces_is_read_by_transformers(file):
    """As Llama 2, Mistral and Gemma have; llama.cpp keeps pieces with scores, and no merges."""
    original = sentencepiece_tokenizer()
    pieces = sorted(original.get_vocab(), key=original.get_vocab().get)
    told = {"model": "llama", "pre": "default", "padding_token_id": None, "add_bos_token": True}
    write_gguf(
        file,
        tokenizer=original.backend_tokenizer,
        changes={f"tokenizer.ggml.{name}": value for name, value in told.items()},
        scores=[-float(rank) for rank in range(len(pieces))],
    )
    tokenizer = load_tokenizer(str(file))
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")
    for text in ("the answer is four", "the cat  sat", "answer the\nfour"):
        assert tokenizer(text)["input_ids"] == original(text)["input_ids"]
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


@pytest.mark.parametrize("told", [{"eot": 1}, {"eot": 1, "eom": 0}])
def test_a_response_ends_at_every_end_that_the_file_names(file, told):
    write_gguf(file, changes={f"tokenizer.ggml.{name}_token_id": number for name, number in told.items()})
    assert stop_tokens(str(file), load_tokenizer(str(file))) == (2, *told.values())


@pytest.mark.parametrize(
    ("told", "bos", "eos"),
    [
        ({"add_bos_token": True}, [1], []),
        ({"add_bos_token": True, "add_eos_token": True}, [1], [2]),
        # As llama.cpp does where the file says nothing.
        ({"pre": "llama-bpe"}, [1], []),
        ({"pre": "llama-bpe", "add_bos_token": False}, [], []),
    ],
)
def test_a_text_begins_and_ends_with_what_the_file_asks_for(file, told, bos, eos):
    write_gguf(file, changes={f"tokenizer.ggml.{name}": value for name, value in told.items()})
    assert load_tokenizer(str(file))("sea")["input_ids"] == [*bos, *smollm_tokenizer().encode("sea").ids, *eos]


def test_chats_are_written_by_the_files_template(file):
    write_gguf(file)
    chat = Chat(messages=[{"role": "user", "content": "Hi"}], where="row 0")
    assert chat.text(load_tokenizer(str(file)), add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_folder_with_one_gguf_file_is_that_model(file):
    write_gguf(file)
    assert load_tokenizer(str(file.parent))("sea")["input_ids"] == load_tokenizer(str(file))("sea")["input_ids"]
    folders = [path for path in file.parent.iterdir() if path.is_dir()]
    assert len(folders) == 1, "it was turned into a folder twice"


def test_an_adapter_of_a_gguf_file_loads_with_peft_alone(file, tmp_path):
    write_gguf(file, kind=Type.Q8_0)
    policy = load_policy(str(file), lora_rank=2)
    disturb(policy.parameters(), 0.1)
    policy.save(tmp_path / "saved")
    logits = policy.model(TOKENS).logits
    plain = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "saved" / "model").eval()
    assert torch.equal(plain(TOKENS).logits, logits)
    base = json.loads((tmp_path / "saved" / "model" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert AutoModelForCausalLM.from_pretrained(base).dtype == torch.float32
    assert torch.equal(load_policy(str(tmp_path / "saved")).model(TOKENS).logits, logits)


def test_a_changed_file_is_another_model(file, tmp_path):
    write_gguf(file)
    before = model_sums(str(file))
    load_policy(str(file), lora_rank=2).save(tmp_path / "saved")
    kept = load_policy(str(tmp_path / "saved")).model(TOKENS).logits
    write_gguf(file, kind=Type.Q4_1)
    after = model_sums(str(file))
    assert {name for name in before if before[name] != after[name]} == {"model: tiny.gguf", "model: model.safetensors"}
    # What was trained on the first still stands on it.
    assert torch.equal(load_policy(str(tmp_path / "saved")).model(TOKENS).logits, kept)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def not_finite(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:-4] + b"\x00\x00\xc0\x7f")


def part(count: int) -> dict[str, Any]:
    return {"changes": {"split.count": count, "split.no": 0}}


HARMS: dict[str, tuple[dict[str, Any], Callable[[Path], object] | None, str]] = {
    "cut": ({}, cut, "no whole .gguf file .* cut: download it again"),
    "cut in its head": ({}, lambda file: file.write_bytes(file.read_bytes()[:3000]), "no whole .gguf file"),
    "empty": ({}, lambda file: file.write_bytes(b""), "no whole .gguf file"),
    "a page of the web": ({}, lambda file: file.write_text("<html>404</html>" * 99), "no whole .gguf file"),
    "not finite": ({}, not_finite, "NaN or infinite"),
    "no tokenizer": ({"without": ["tokenizer.ggml.tokens"]}, None, "without a tokenizer"),
    "no kind of tokenizer": ({"without": ["tokenizer.ggml.model"]}, None, "without a tokenizer"),
    "unknown rule": ({"changes": {"tokenizer.ggml.pre": "martian"}}, None, "by the rule 'martian'"),
    "no end": ({"changes": {"tokenizer.ggml.eos_token_id": 9999}}, None, "names a token 9999"),
    "unknown architecture": ({"changes": {"general.architecture": "martian"}}, None, "martian"),
    "one of several": (part(3), None, "one of several parts"),
    "a layer too many": ({"changes": {"llama.block_count": 1}}, None, "holds .* numbers, and the llama model .* has"),
    "a layer is missing": ({"changes": {"llama.block_count": 3}}, None, "it lacks model.layers.2"),
    "a tensor is missing": ({"without": ["blk.1.ffn_up.weight"]}, None, "it lacks model.layers.1.mlp.up_proj"),
    "a digit too many": ({"changes": {"llama.block_count": 2 * 10**9}}, None, "names 2,000,000,000 layers"),
    "a merge of nothing": ({"merges": ("sea gull",)}, None, "could not load"),
    "another width": ({"changes": {"llama.feed_forward_length": 96}}, None, "it lacks model.layers.0.mlp"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_cannot_be_read_is_refused_in_one_line(file, harm):
    options, change, message = HARMS[harm]
    write_gguf(file, **options)
    if change is not None:
        change(file)
    with pytest.raises(InputError, match=message) as refused:
        load_policy(str(file))
    assert "\n" not in str(refused.value)
    assert "tiny.gguf" in str(refused.value)
    assert not [path for path in file.parent.iterdir() if path.is_dir()], "it left a folder"


def test_all_who_come_at_once_get_the_one_folder(file):
    """As the processes of a run do."""
    write_gguf(file)
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(converted, [file] * 3))
    assert len(set(folders)) == 1
    assert sorted(path.name for path in file.parent.iterdir() if not path.name.endswith(".lock")) == sorted(
        [file.name, folders[0].name]
    )
    assert load_policy(str(file)).context is not None


def test_of_several_gguf_files_one_must_be_named(file):
    write_gguf(file)
    (file.parent / "other.gguf").write_bytes(file.read_bytes())
    with pytest.raises(InputError, match=r"holds 2 .gguf files \(other.gguf, tiny.gguf\); give the path of one"):
        load_policy(str(file.parent))


def test_a_gguf_file_that_is_not_there_is_not_looked_for_on_the_hub():
    with pytest.raises(InputError, match=r"there is no folder or file some/where\.gguf"):
        load_policy("some/where.gguf")


def test_without_the_package_the_extra_is_named(file, monkeypatch):
    write_gguf(file)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=re.escape("pip install 'rlhf[gguf]'")):
        load_policy(str(file))


def test_a_gguf_file_is_no_classifier(file):
    write_gguf(file)
    with pytest.raises(InputError, match="lacks weights of LlamaForSequenceClassification"):
        RewardModel(str(file), device=torch.device("cpu"))


def test_a_separate_critic_starts_from_a_gguf_file(file, tmp_path):
    held = write_gguf(file)
    critic = load_policy(str(file), critic="separate", critic_model=str(file)).critic_trunk
    assert torch.equal(critic.state_dict()["embed_tokens.weight"], held["model.embed_tokens.weight"])
