"""The policy against naive scoring with plain transformers; its reference; what it saves."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from rlhf.errors import InputError
from rlhf.lm.load import ModelConfig, load_model_config, policy_of
from rlhf.lm.policy import CausalLM
from rlhf.lm.scoring import response_inputs
from tests.lm.tiny import ARCHITECTURES, ODD_ARCHITECTURES, disturb, load_tiny, random_inputs, save_tiny, tiny_policy

KINDS = [
    {},
    {"critic": "separate"},
    {"critic": "none"},
    {"lora_rank": 4},
    {"lora_rank": 4, "critic": "separate"},
]


def naive(policy, inputs):
    """Full logits of each row alone, log_softmax, and the value head on all hidden states."""
    outputs = []
    for tokens, length, actions in zip(inputs["tokens"], inputs["lengths"].tolist(), inputs["actions"], strict=True):
        result = policy.model(tokens[None, :length], output_hidden_states=True)
        places = actions[actions > 0]
        logprobs = (result.logits[0, places - 1] / policy.temperature).log_softmax(dim=-1)
        values = policy.value_head(result.hidden_states[-1][0, places - 1]).squeeze(-1)
        chosen = logprobs.gather(1, tokens[places].unsqueeze(1)).squeeze(1)
        outputs.append((chosen, values, -(logprobs.exp() * logprobs).sum(dim=-1)))
    width = inputs["actions"].shape[1]
    return [pad_sequence([*each, torch.zeros(width)], batch_first=True)[:-1] for each in zip(*outputs, strict=True)]


def objective(logprobs, values, entropy):
    """Any function in which every cell counts differently."""
    tilt = torch.linspace(0.5, 2, logprobs.numel()).view_as(logprobs)
    return (tilt * (logprobs + 0.3 * logprobs**2 + values**2 + 0.1 * entropy)).mean()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES + ODD_ARCHITECTURES)
def test_scores_and_gradients_are_those_of_the_naive_way(tiny_folder, architecture, checkpointing):
    policy = tiny_policy(tiny_folder(architecture), temperature=0.7, gradient_checkpointing=checkpointing)
    inputs = random_inputs()
    ours, theirs = policy(inputs), naive(policy, inputs)
    torch.testing.assert_close(list(ours), theirs, rtol=0, atol=2e-5)
    parameters = dict(policy.named_parameters())
    gradients = torch.autograd.grad(objective(*ours), list(parameters.values()))
    expected = torch.autograd.grad(objective(*theirs), list(parameters.values()))
    scale = torch.cat([gradient.flatten() for gradient in expected]).norm()
    for name, one, other in zip(parameters, gradients, expected, strict=True):
        assert (one - other).norm() <= 1e-5 * scale, name


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("architecture", ["llama", "opt", "gemma2"])
def test_every_trained_parameter_has_a_gradient_even_without_actions(tiny_folder, architecture, kind):
    policy = tiny_policy(tiny_folder(architecture), **kind)
    inputs = random_inputs()
    for actions in (inputs["actions"], torch.zeros_like(inputs["actions"])):
        policy.zero_grad()
        output = policy({**inputs, "actions": actions})
        (output.logprobs.sum() + 0 * output.values.sum() + 0 * output.entropy.sum()).backward()
        unused = [name for name, p in policy.named_parameters() if p.requires_grad and p.grad is None]
        assert not unused


def test_a_fresh_critic_says_zero(tiny_folder):
    for critic in ("shared", "separate", "none"):
        policy = policy_of(ModelConfig(model=str(tiny_folder("llama")), critic=critic), temperature=1.0, seed=0)
        assert policy(random_inputs()).values.abs().max() == 0


def test_a_separate_critic_reads_its_own_trunk(tiny_folder):
    policy, inputs = tiny_policy(tiny_folder("llama"), critic="separate"), random_inputs()
    before = policy(inputs)
    disturb(policy.model.parameters(), 0.1)
    assert torch.equal(policy(inputs).values, before.values)
    disturb(policy.critic_trunk.parameters(), 0.1)
    assert not torch.equal(policy(inputs).values, before.values)


def test_a_separate_critic_starts_from_the_model_it_is_given(tiny_folder, tmp_path):
    other = save_tiny("gpt2", tmp_path, n_embd=16)
    policy = tiny_policy(tiny_folder("llama"), critic="separate", critic_model=str(other))
    inputs = random_inputs()
    with torch.no_grad():
        states = load_tiny(other).transformer(inputs["tokens"][:1, :9]).last_hidden_state[0, 1:8]
        expected = policy.value_head(states).squeeze(-1)
    torch.testing.assert_close(policy(inputs).values[0, :7], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_training_mode_is_deterministic_and_checkpoints(tiny_folder, critic):
    policy, inputs = tiny_policy(tiny_folder("gpt2"), gradient_checkpointing=True, critic=critic), random_inputs()
    calls = []
    policy.model.transformer.h[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    output = policy(inputs)
    assert torch.equal(policy(inputs).logprobs, output.logprobs)
    calls.clear()
    output.logprobs.sum().backward()
    assert len(calls) == 1  # once more, in the backward pass


def test_dropout_of_an_adapter_is_off(tiny_folder, tmp_path):
    lora = LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(load_tiny(tiny_folder("llama")), lora).save_pretrained(tmp_path)
    policy, inputs = tiny_policy(tmp_path), random_inputs()
    assert torch.equal(policy(inputs).logprobs, policy(inputs).logprobs)
    policy.make_reference()
    assert torch.equal(policy.reference_logprobs(inputs), policy.reference_logprobs(inputs))


@pytest.mark.parametrize(
    ("architecture", "packs", "most_shared", "plain_head"),
    [
        ("gpt2", True, 2**62, True),
        ("llama", True, 2**62, True),
        # Its window.
        ("gemma2", True, 6, False),
        ("opt", False, 2**62, True),
        ("bloom", False, 0, True),
        ("lfm2", False, 0, True),
    ],
)
def test_probes_see_what_a_model_allows(tiny_folder, architecture, packs, most_shared, plain_head):
    abilities = tiny_policy(tiny_folder(architecture)).abilities
    assert abilities[:2] == ((packs, most_shared), plain_head)


def test_an_adapter_on_the_head_is_more_than_its_matrix(tiny_folder):
    policy = tiny_policy(tiny_folder("llama"), lora_rank=4, lora_targets=("lm_head", "q_proj"))
    assert not policy.abilities.plain_head
    inputs = random_inputs()
    torch.testing.assert_close(list(policy(inputs)), naive(policy, inputs), rtol=0, atol=2e-5)


def test_a_model_that_left_padding_misleads_is_refused(tiny_folder):
    with pytest.raises(InputError, match="left-padded"):
        tiny_policy(tiny_folder("mamba"))


def test_a_model_that_stays_random_in_training_mode_is_refused(tiny_folder):
    model = load_tiny(tiny_folder("llama"))
    model.model.norm.register_forward_hook(lambda module, _, output: output + module.training * torch.randn(1))
    with pytest.raises(InputError, match="random in training mode"):
        CausalLM(model, temperature=1.0, critic="shared")


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_autocast_scores_are_float32_and_near(tiny_folder, architecture):
    policy, inputs = tiny_policy(tiny_folder(architecture)), random_inputs()
    exact = policy(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = policy(inputs)
    assert all(each.dtype == torch.float32 for each in rough)
    assert (rough.logprobs - exact.logprobs).abs().mean() < 0.1


@pytest.mark.parametrize("kind", KINDS[:4], ids=str)
def test_reference_is_the_policy_at_first_and_stays_where_it_was(tiny_folder, kind):
    policy = policy_of(ModelConfig(model=str(tiny_folder("llama")), **kind), temperature=0.7, seed=0)
    inputs = random_inputs()
    policy.make_reference()
    before = policy(inputs).logprobs
    assert torch.equal(policy.reference_logprobs(inputs), before)
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    disturb(policy.parameters(), 0.1)
    assert not torch.equal(policy(inputs).logprobs, before)
    assert torch.equal(policy.reference_logprobs(inputs), before)
    assert trained == {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    policy.make_reference()
    assert torch.equal(policy.reference_logprobs(inputs), policy(inputs).logprobs)


def test_reference_of_an_adapter_loaded_trained_is_that_adapter(tiny_folder, tmp_path):
    trained, inputs = tiny_policy(tiny_folder("llama"), lora_rank=4), random_inputs()
    trained.save(tmp_path)
    policy = policy_of(ModelConfig(model=str(tmp_path)), temperature=1.0, seed=0)
    learning = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    policy.make_reference()
    before = policy(inputs).logprobs
    assert torch.equal(before, trained(inputs).logprobs)
    disturb(policy.parameters(), 0.1)
    after = policy(inputs).logprobs
    assert torch.equal(policy.reference_logprobs(inputs), before)
    assert torch.equal(policy(inputs).logprobs, after)
    assert not torch.equal(after, before)
    assert learning == {name for name, parameter in policy.named_parameters() if parameter.requires_grad}


def test_reference_of_a_fresh_adapter_takes_no_memory(tiny_folder):
    policy = policy_of(ModelConfig(model=str(tiny_folder("llama")), lora_rank=4), temperature=1.0, seed=0)
    parameters = len(policy.state_dict())
    policy.make_reference()
    assert len(policy.state_dict()) == parameters


def test_reference_copy_takes_a_lower_precision_and_no_part_in_training(tiny_folder):
    policy, inputs = tiny_policy(tiny_folder("llama"), reference_dtype="bfloat16"), random_inputs()
    parameters = len(list(policy.parameters()))
    policy.make_reference()
    assert len(list(policy.parameters())) == parameters
    rough = policy.reference_logprobs(inputs)
    assert rough.dtype == torch.float32
    assert 0 < (rough - policy(inputs).logprobs).abs().mean() < 0.1


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
def test_saved_policies_come_back_bit_for_bit(tiny_folder, tmp_path, architecture, kind):
    policy, inputs = tiny_policy(tiny_folder(architecture), **kind), random_inputs()
    disturb(policy.parameters(), 0.1)
    policy.save(tmp_path)
    fresh = policy_of(ModelConfig(model=str(tmp_path), critic=kind.get("critic", "shared")), temperature=1.0, seed=5)
    in_place = tiny_policy(tiny_folder(architecture), **kind)
    in_place.load(tmp_path)
    for other in (fresh, in_place):
        for name, tensor in policy.state_dict().items():
            assert torch.equal(other.state_dict()[name], tensor), name
        assert all(map(torch.equal, other(inputs), policy(inputs)))


def test_loading_in_place_keeps_the_parameters_an_optimizer_holds(tiny_folder, tmp_path):
    policy = tiny_policy(tiny_folder("llama"))
    policy.save(tmp_path)
    before = {name: parameter.data_ptr() for name, parameter in policy.named_parameters()}
    policy.load(tmp_path)
    assert {name: parameter.data_ptr() for name, parameter in policy.named_parameters()} == before


def test_saved_policies_in_float64_come_back_bit_for_bit(tiny_folder, tmp_path):
    policy = tiny_policy(tiny_folder("llama")).double()
    disturb(policy.parameters(), 1e-12)
    policy.save(tmp_path)
    other = tiny_policy(tiny_folder("llama")).double()
    other.load(tmp_path)
    assert all(map(torch.equal, other.parameters(), policy.parameters()))


def test_a_gathered_state_dict_is_saved_in_place_of_the_parameters(tiny_folder, tmp_path):
    policy, other = (tiny_policy(tiny_folder("llama"), critic="separate") for _ in range(2))
    disturb(other.parameters(), 0.1)
    policy.save(tmp_path, state_dict=other.state_dict())
    policy.load(tmp_path)
    assert all(map(torch.equal, policy.parameters(), other.parameters()))


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "gemma2"])
def test_saved_models_load_with_plain_transformers(tiny_folder, tmp_path, architecture):
    policy, inputs = tiny_policy(tiny_folder(architecture)), random_inputs()
    disturb(policy.parameters(), 0.01)
    policy.save(tmp_path)
    policy.model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    expected = naive(policy, inputs)
    again = policy_of(ModelConfig(model=str(tmp_path)), temperature=1.0, seed=0)
    torch.testing.assert_close(list(again(inputs)), expected, rtol=0, atol=2e-5)
    saved, original = tmp_path / "model" / "config.json", tiny_folder(architecture) / "config.json"
    assert json.loads(saved.read_text()) == json.loads(original.read_text())


def test_saved_adapters_load_with_plain_peft(tiny_folder, tmp_path):
    policy, inputs = tiny_policy(tiny_folder("llama"), lora_rank=4), random_inputs()
    policy.make_reference()
    policy.save(tmp_path)
    assert not any("reference" in str(path) for path in (tmp_path / "model").rglob("*"))
    assert not any("reference" in name for name in load_file(tmp_path / "model" / "adapter_model.safetensors"))
    plain = PeftModel.from_pretrained(load_tiny(tiny_folder("llama")), tmp_path / "model")
    tokens = inputs["tokens"][:1]
    torch.testing.assert_close(plain(tokens).logits, policy.model(tokens).logits, rtol=0, atol=1e-6)


def test_response_inputs_by_hand():
    responses, lengths = torch.tensor([[7, 8, 0], [9, 0, 0]]), torch.tensor([2, 1])
    inputs = response_inputs([[1], [2, 3, 4]], responses, lengths)
    assert inputs["tokens"].tolist() == [[1, 7, 8, 0], [2, 3, 4, 9]]
    assert inputs["lengths"].tolist() == [3, 4]
    assert inputs["actions"].tolist() == [[1, 2, 0], [3, 0, 0]]


def test_loading_leaves_the_global_generator(tiny_folder):
    state = torch.get_rng_state()
    tiny_policy(tiny_folder("llama"), lora_rank=4).make_reference()
    assert torch.equal(torch.get_rng_state(), state)


def test_the_seed_gives_the_adapter(tiny_folder):
    config = ModelConfig(model=str(tiny_folder("llama")), lora_rank=4)
    one, same, other = (policy_of(config, temperature=1.0, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_model_configs_are_read_without_weights(tiny_folder, tmp_path):
    assert load_model_config(str(tiny_folder("gpt2"))).max_position_embeddings == 64
    tiny_policy(tiny_folder("gpt2"), lora_rank=4).save(tmp_path)
    assert load_model_config(str(tmp_path)).max_position_embeddings == 64


@pytest.mark.parametrize("options", [{"lora_rank": -1}, {"critic_model": "x"}])
def test_model_configs_out_of_range_are_refused(options):
    with pytest.raises(InputError):
        ModelConfig(model="x", **options)


def test_models_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(InputError, match="nothing"):
        policy_of(ModelConfig(model=str(tmp_path / "nothing")), temperature=1.0, seed=0)


def test_policies_refuse_no_temperature_and_unknown_critics(tiny_folder):
    with pytest.raises(InputError, match="temperature is 0"):
        CausalLM(load_tiny(tiny_folder("llama")), temperature=0.0, critic="shared")
    with pytest.raises(InputError, match="choose shared, separate or none"):
        CausalLM(load_tiny(tiny_folder("llama")), temperature=1.0, critic="both")


def test_modules_without_such_a_layer_are_refused_as_adapter_targets(tiny_folder):
    with pytest.raises(InputError, match="lora_targets"):
        tiny_policy(tiny_folder("llama"), lora_rank=4, lora_targets=("c_attn",))
