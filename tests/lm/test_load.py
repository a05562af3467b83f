"""What is known of a model before its weights load."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from rlhf.errors import InputError
from rlhf.lm.load import ModelConfig, context_length, load_tokenizer, model_sums, policy_of, stop_tokens
from tests.lm.tiny import save_tiny, tiny_policy
from tests.lm.words import EOS, WORDS, D, word_tokenizer


@pytest.fixture
def model(tmp_path):
    folder = save_tiny("gpt2", tmp_path / "model", vocab_size=len(WORDS), eos_token_id=EOS, pad_token_id=EOS)
    word_tokenizer().save_pretrained(folder)
    return folder


def change(config: Path, **values: object) -> None:
    config.write_text(json.dumps(json.loads(config.read_text()) | values))


@pytest.mark.parametrize(("architecture", "length"), [("gpt2", 64), ("llama", 64), ("bloom", None), ("mamba", None)])
def test_the_context_is_read_from_the_config(tiny_folder, architecture, length):
    assert context_length(str(tiny_folder(architecture))) == length


def test_the_tokenizer_of_an_adapter_is_its_own_or_that_of_its_base_model(model, tmp_path):
    tiny_policy(model, lora_rank=2).save(tmp_path / "policy")
    for folder in (tmp_path / "policy", tmp_path / "policy" / "model"):
        assert load_tokenizer(str(folder))("a b")["input_ids"] == word_tokenizer()("a b")["input_ids"]
    own = AutoTokenizer.from_pretrained(model)
    own.add_tokens(["z"])
    own.save_pretrained(tmp_path / "policy" / "model")
    assert load_tokenizer(str(tmp_path / "policy"))("z")["input_ids"] == [len(WORDS)]


def test_a_model_without_a_tokenizer_is_refused(tiny_folder):
    """transformers makes up one that knows no word."""
    with pytest.raises(InputError, match="holds no tokenizer"):
        load_tokenizer(str(tiny_folder("gpt2")))


def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path):
    for load in (load_tokenizer, context_length):
        with pytest.raises(InputError, match="there is no folder"):
            load(str(tmp_path / "nowhere"))


def test_responses_stop_at_every_end_that_tokenizer_config_and_generation_config_name(model):
    tokenizer = word_tokenizer()
    assert stop_tokens(str(model), tokenizer) == (EOS,)
    change(model / "config.json", eos_token_id=[EOS, 5])
    GenerationConfig(eos_token_id=[EOS, D]).save_pretrained(model)
    assert stop_tokens(str(model), tokenizer) == (EOS, 5, D)
    # As many trainers leave it.
    (model / "generation_config.json").unlink()
    assert stop_tokens(str(model), tokenizer) == (EOS, 5)
    tokenizer.eos_token = None
    change(model / "config.json", eos_token_id=None)
    assert stop_tokens(str(model), tokenizer) == ()


def test_an_adapter_stops_at_the_ends_of_its_base_model(model, tmp_path):
    tiny_policy(model, lora_rank=2).save(tmp_path / "policy")
    change(model / "config.json", eos_token_id=[EOS, 5])
    assert stop_tokens(str(tmp_path / "policy"), word_tokenizer()) == (EOS, 5)


def test_a_policy_saved_without_a_critic_gets_a_fresh_one(model, tmp_path):
    """As after supervised fine-tuning or GRPO, from which PPO goes on; a fresh critic says 0."""
    for critic in ("none", "shared"):
        tiny_policy(model, critic=critic).save(tmp_path / critic)
    configs = (ModelConfig(model=str(tmp_path / critic), critic="shared") for critic in ("none", "shared"))
    fresh, kept = (policy_of(config, temperature=1.0, seed=0).value_head.weight for config in configs)
    assert not fresh.any()
    assert kept.any()


def test_saving_and_loading_draw_no_bars(model, tmp_path, capsys):
    policy = tiny_policy(model)
    capsys.readouterr()
    policy.save(tmp_path / "policy")
    policy.load(tmp_path / "policy")
    assert capsys.readouterr() == ("", "")


def test_an_adapter_names_its_base_from_the_root(model, tmp_path, monkeypatch):
    """So that it loads from wherever somebody is."""
    monkeypatch.chdir(model.parent)
    made = policy_of(ModelConfig(model=model.name, lora_rank=2), temperature=1.0, seed=0)
    made.save(tmp_path / "saved")
    config = tmp_path / "saved" / "model" / "adapter_config.json"
    assert json.loads(config.read_text())["base_model_name_or_path"] == str(model)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = policy_of(ModelConfig(model=str(tmp_path / "saved")), temperature=1.0, seed=1)
    for name, weights in made.named_parameters():
        assert torch.equal(weights, again.get_parameter(name)), name


def test_a_model_is_known_by_the_checksum_of_every_file_that_is_read(tmp_path):
    save_tiny("gpt2", tmp_path)
    (tmp_path / "README.md").write_text("read by people")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("of a run that is kept in here")
    names = {"config.json", "generation_config.json", "model.safetensors"}
    assert model_sums(str(tmp_path)) == {
        f"model: {name}": hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names
    }


def test_a_model_of_the_hub_is_known_by_its_revision(monkeypatch):
    revision = "0123456789abcdef0123456789abcdef01234567"
    # What transformers gives for a name on the hub: a file in its cache.
    place = f"/cache/models--some--name/snapshots/{revision}"
    monkeypatch.setattr("rlhf.lm.pretrained.require_hub", lambda name, what: None)
    monkeypatch.setattr("rlhf.lm.adapters.find_adapter_config_file", lambda source: None)
    monkeypatch.setattr("rlhf.lm.load.cached_file", lambda source, name, **_: f"{place}/{name}")
    assert model_sums("some/name") == {"model: some/name": f"revision {revision}"}
