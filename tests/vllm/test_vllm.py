"""vLLM answers as the policy would, with the probabilities that it says."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from rlhf.errors import InputError
from rlhf.lm.engine import Generation, Sampling, respond
from rlhf.lm.generate import Decoder
from rlhf.lm.policy import CausalLM
from rlhf.lm.scoring import response_inputs
from rlhf.lm.vllm import VLLM
from tests.learning.results import result_of
from tests.lm.tiny import EOS, VOCABULARY, disturb, load_tiny, save_tiny, tiny_policy
from tests.lm.words import WORDS, word_tokenizer
from tests.processes import run
from tests.vllm.world import trained, vocabulary_policy

pytestmark = pytest.mark.vllm

# Its kernels for CPUs take heads of at least 32.
WIDE: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 128},
    "llama": {"hidden_size": 128},
    "qwen2": {"hidden_size": 128},
    "opt": {"hidden_size": 128, "word_embed_proj_dim": 128},
    "gemma": {"hidden_size": 128, "head_dim": 32},
    "falcon": {"hidden_size": 128},
}
PROMPTS = [[5, 6, 7], [9, 10], [11, 12, 13, 14, 15], [20]] * 3
SAMPLING = Sampling(max_new_tokens=12, stop_tokens=(EOS, 4))


def draws(seed: int = 0, rows: int = len(PROMPTS), steps: int = 12) -> Tensor:
    return torch.rand(rows, steps, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def answers(engine: Any, policy: CausalLM, uniforms: Tensor | None, sampling: Sampling = SAMPLING) -> Generation:
    return respond(engine, policy, PROMPTS, sampling=sampling, uniforms=uniforms, sample_ids=torch.arange(len(PROMPTS)))


def scored(policy: CausalLM, generation: Generation) -> Tensor:
    """What the policy's own forward says of the answers; 0 after them."""
    with torch.no_grad():
        logprobs: Tensor = policy(response_inputs(PROMPTS, generation.tokens, generation.lengths)).logprobs
    return logprobs


def wide(architecture: str, folder: Path, *, temperature: float = 0.7, **config: Any) -> CausalLM:
    return tiny_policy(save_tiny(architecture, folder, **WIDE[architecture]), temperature=temperature, **config)


def require_agreement(engine: VLLM, policy: CausalLM) -> None:
    """It says of what it samples what the policy says, and its likeliest tokens are our decoder's."""
    generation = answers(engine, policy, draws())
    torch.testing.assert_close(generation.logprobs, scored(policy, generation), rtol=0, atol=1e-4)
    assert len({tuple(row) for row in generation.tokens.tolist()}) > len(PROMPTS) // 2
    greedy, ours = (answers(each, policy, None) for each in (engine, Decoder()))
    assert torch.equal(greedy.tokens, ours.tokens)
    assert torch.equal(greedy.lengths, ours.lengths)
    assert torch.equal(greedy.finished, ours.finished)


@pytest.mark.parametrize("architecture", WIDE)
def test_it_answers_as_the_policy_before_and_after_every_weight_has_moved(architecture: str, tmp_path: Path) -> None:
    """GPT-2, Qwen2, OPT, Gemma and Falcon tie their heads to their embeddings."""
    policy, engine = wide(architecture, tmp_path), VLLM()
    require_agreement(engine, policy)
    before = scored(policy, answers(Decoder(), policy, draws()))
    disturb([weight for name, weight in policy.named_parameters() if "value_head" not in name], 0.1)
    assert (scored(policy, answers(Decoder(), policy, draws())) - before).abs().max() > 0.1
    require_agreement(engine, policy)


NF4 = {"lora_rank": 4, "quantize": "nf4"}


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("llama", {"lora_rank": 4}),
        ("gpt2", {"lora_rank": 4}),
        ("llama", NF4),
        ("gpt2", NF4),
        # Layers in 4 bits that are under no adapter.
        ("llama", {**NF4, "lora_targets": ("q_proj", "v_proj")}),
        ("gpt2", {**NF4, "lora_targets": ("c_attn",)}),
    ],
)
def test_it_answers_as_the_policy_with_its_adapter_and_leaves_both_as_they_are(
    architecture: str, config: dict[str, Any], tmp_path: Path
) -> None:
    policy, engine = wide(architecture, tmp_path, **config), VLLM()
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    require_agreement(engine, policy)
    after = policy.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    disturb([weight for name, weight in policy.named_parameters() if "lora" in name], 0.1)
    require_agreement(engine, policy)


def test_the_same_draws_are_the_same_answers_and_others_are_others(tmp_path: Path) -> None:
    policy, engine = wide("gpt2", tmp_path), VLLM()
    first, again, other = (answers(engine, policy, draws(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.logprobs, again.logprobs)
    assert not torch.equal(first.tokens[:, 0], other.tokens[:, 0])


def test_how_often_it_draws_a_token_is_its_probability(tmp_path: Path) -> None:
    """First tokens of 4,000 answers; each of 61 frequencies lies within 4.5 deviations of what the policy says."""
    policy, engine, rows = wide("gpt2", tmp_path), VLLM(), 4000
    prompts = [[5, 6, 7]] * rows
    one = Sampling(max_new_tokens=1)
    drawn = respond(
        engine, policy, prompts, sampling=one, uniforms=draws(rows=rows, steps=1), sample_ids=torch.arange(rows)
    )
    inputs = response_inputs(
        [[5, 6, 7]] * VOCABULARY, torch.arange(VOCABULARY).unsqueeze(1), torch.ones(VOCABULARY).long()
    )
    with torch.no_grad():
        probabilities = policy(inputs).logprobs.squeeze(1).exp()
    frequencies = torch.bincount(drawn.tokens.flatten(), minlength=VOCABULARY) / rows
    deviations = (probabilities * (1 - probabilities) / rows).sqrt()
    assert ((frequencies - probabilities).abs() < 4.5 * deviations + 1e-9).all()


def test_tokens_that_the_tokenizer_does_not_know_have_probability_zero(tmp_path: Path) -> None:
    """Of 61 tokens the tokenizer has 14, on which the probabilities of the answers add up to 1 by the policy's word."""
    policy, engine = wide("qwen2", tmp_path), VLLM()
    policy.tokenizer = word_tokenizer()
    assert policy.unknown_tokens is not None
    for uniforms in (draws(), None):
        generation = answers(engine, policy, uniforms)
        assert int(generation.tokens.max()) < len(WORDS)
    generation = answers(engine, policy, draws())
    torch.testing.assert_close(generation.logprobs, scored(policy, generation), rtol=0, atol=1e-4)


def test_answers_end_at_stop_tokens_and_strings_which_are_kept(tmp_path: Path) -> None:
    """Without stops every answer is cut; each stop ends those that have it where they have it."""
    policy, engine = wide("qwen2", tmp_path), VLLM()
    policy.tokenizer = word_tokenizer()
    uncut = answers(engine, policy, draws(), Sampling(max_new_tokens=12))
    assert uncut.lengths.tolist() == [12] * len(PROMPTS)
    assert not uncut.finished.any()
    for sampling, ends in (
        (Sampling(max_new_tokens=12, stop_tokens=(5,)), lambda row: row.index(5)),
        (
            Sampling(max_new_tokens=12, stop_strings=("a",)),
            lambda row: min(row.index(t) for t in (4, 5, 12) if t in row),
        ),
    ):
        stopped = answers(engine, policy, draws(), sampling)
        rows = uncut.tokens.tolist()
        for row, length, finished in zip(rows, stopped.lengths.tolist(), stopped.finished.tolist(), strict=True):
            holds = 5 in row if sampling.stop_tokens else bool({4, 5, 12} & set(row))
            assert finished == holds
            assert length == (ends(row) + 1 if holds else 12)


def test_top_k_and_top_p_cut_the_distribution(tmp_path: Path) -> None:
    policy, engine = wide("gpt2", tmp_path), VLLM()
    greedy = answers(engine, policy, None)
    for cut in (
        Sampling(max_new_tokens=12, stop_tokens=(EOS, 4), top_k=1),
        Sampling(max_new_tokens=12, stop_tokens=(EOS, 4), top_p=1e-6),
    ):
        assert torch.equal(answers(engine, policy, draws(), cut).tokens, greedy.tokens)


def test_a_prompt_that_leaves_no_room_is_refused(tmp_path: Path) -> None:
    policy, engine = wide("gpt2", tmp_path), VLLM(max_model_len=16)
    with pytest.raises(InputError, match=r"The longest prompt has 5 tokens and max_new_tokens is 12: .* room for 16"):
        answers(engine, policy, None)


def test_options_that_follow_from_the_policy_are_refused() -> None:
    with pytest.raises(InputError, match="load_format follows from the policy"):
        VLLM(load_format="auto")


def test_a_model_that_it_cannot_hold_is_refused_with_its_reason(tmp_path: Path) -> None:
    policy = tiny_policy(save_tiny("gpt2", tmp_path))
    with pytest.raises(InputError, match=r"vLLM cannot hold GPT2LMHeadModel with .*no_such_option"):
        answers(VLLM(no_such_option=1), policy, None)


class Warm(VLLM):
    """Samples at another temperature than the policy's."""

    def generate(self, policy: CausalLM, prompts: Any, **how: Any) -> Generation:
        own, policy.temperature = policy.temperature, 1.3 * policy.temperature
        try:
            return super().generate(policy, prompts, **how)
        finally:
            policy.temperature = own


class Forgetful(VLLM):
    """Has the weights with which it began."""

    first: Any = None

    def generate(self, policy: CausalLM, prompts: Any, **how: Any) -> Generation:
        self.first = self.first or copy.deepcopy(policy)
        return super().generate(self.first, prompts, **how)


class Stale(VLLM):
    """Has the weights of another model."""

    other: Any = None

    def generate(self, policy: CausalLM, prompts: Any, **how: Any) -> Generation:
        self.other.temperature = policy.temperature
        return super().generate(self.other, prompts, **how)


@pytest.mark.parametrize("engine", [Warm, Stale])
def test_another_temperature_or_other_weights_are_refused_in_the_first_update(engine: Any, tmp_path: Path) -> None:
    policy, wrong = vocabulary_policy(tmp_path / "model"), engine()
    if isinstance(wrong, Stale):
        wrong.other = vocabulary_policy(tmp_path / "other", seed=1)
    with pytest.raises(RuntimeError, match=r"differ from the learner's by .* rounding explains at most 0.01"):
        trained(policy, wrong, tmp_path / "run")


def test_weights_that_do_not_arrive_are_noticed_when_they_have_moved(tmp_path: Path) -> None:
    """In the second update, since in the first they are those of the policy."""
    with pytest.raises(RuntimeError, match=r"differ from the learner's by .* rounding explains at most 0.01"):
        trained(vocabulary_policy(tmp_path / "model"), Forgetful(), tmp_path / "run", learning_rate=0.05)
    assert (tmp_path / "run" / "ppo" / "metrics.jsonl").read_text().count("\n") == 2


def test_one_engine_serves_one_policy_after_the_other(tmp_path: Path) -> None:
    engine = VLLM()
    for number, architecture in enumerate(("llama", "gpt2")):
        require_agreement(engine, wide(architecture, tmp_path / str(number)))


def test_under_bfloat16_it_differs_by_rounding_and_leaves_threads_and_generators_as_they_are(tmp_path: Path) -> None:
    policy = wide("llama", tmp_path, lora_rank=4)
    policy.compute_in("bf16")
    torch.manual_seed(5)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):
        generation = answers(VLLM(), policy, draws())
        off = (generation.logprobs - scored(policy, generation)).abs()
    assert 1e-4 < float(off.sum() / generation.lengths.sum()) < 0.1
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"target_modules": ["lm_head"]}, "are one weight in this model"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["norm"]}, "with more to it"),
        ({"target_modules": ["q_proj"], "use_dora": True}, "with more to it"),
    ],
)
def test_adapters_that_are_no_part_of_the_weights_are_refused(
    adapter: dict[str, Any], message: str, tmp_path: Path
) -> None:
    base = load_tiny(save_tiny("qwen2", tmp_path, **WIDE["qwen2"]))
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, **adapter))
    with pytest.raises(InputError, match=message):
        answers(VLLM(), CausalLM(model, temperature=1.0, critic="none"), None)


def test_a_run_that_is_resumed_goes_on_bitwise(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for name, updates in (("whole", (4,)), ("parts", (2, 4))):
        for until in updates:
            trained(vocabulary_policy(folder), VLLM(), tmp_path / name, until, resume=until != updates[0])
    rows = {}
    for name in ("whole", "parts"):
        lines = [json.loads(line) for line in next((tmp_path / name).rglob("metrics.jsonl")).open()]
        rows[name] = [
            {key: value for key, value in line.items() if "second" not in key and "memory" not in key} for line in lines
        ]
    assert [row["update"] for row in rows["whole"]] == [0, 1, 2, 3, 4]
    last = {name: rows[name][-1] for name in rows}
    assert last["whole"] == last["parts"]
    assert 0 < rows["whole"][1]["mismatch"] < 1e-5


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """Each has an engine of its own; one has nothing to evaluate."""
    found = {}
    for name, processes in (("one", 1), ("two", 2)):
        run("tests/vllm/world.py", tmp_path / name, processes=processes)
        lines = (next((tmp_path / name).rglob("samples.jsonl"))).read_text().splitlines()
        samples = [json.loads(line) for line in lines]
        found[name] = [(row["update"], row["kind"], row["response"]) for row in samples]
        rows = [json.loads(line) for line in next((tmp_path / name).rglob("metrics.jsonl")).open()]
        found[f"{name}: loss"] = [row["loss"] for row in rows if "loss" in row]
        assert json.loads((tmp_path / name / "processes.json").read_text()) == processes
    # The main process writes down samples of its own.
    assert set(found["two"]) < set(found["one"])
    assert {kind for _, kind, _ in found["two"]} == {"evaluation", "training"}
    assert len(found["one: loss"]) == 2
    assert found["one: loss"] == pytest.approx(found["two: loss"], rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_arithmetic_is_learned_through_it_as_with_our_decoder(seed: int) -> None:
    """The bounds of tests/learning/test_learning.py."""
    result = result_of("arithmetic-vllm", seed, "recipes/arithmetic.py", "--improve.engine", "vllm")
    assert max(result["exact_match_before"], result["greedy_match_before"]) <= 0.70
    assert min(result["exact_match_after"], result["greedy_match_after"]) >= 0.95
