"""Generation against transformers, exact softmaxes and itself in other batches."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig

from rlhf.errors import InputError
from rlhf.lm.engine import Sampling
from rlhf.lm.generate import Decoder, choose, inverse_cdf, require_context
from tests.lm.tiny import (
    ARCHITECTURES,
    EOS,
    ODD_ARCHITECTURES,
    load_tiny,
    random_prompts,
    random_uniforms,
    save_tiny,
    tiny_policy,
)
from tests.lm.words import WORDS, word_tokenizer


def draw(policy, prompts, *, greedy=False, tokenizer=None, uniforms=None, **sampling):
    sampling = Sampling(**{"max_new_tokens": 16, "stop_tokens": (), **sampling})
    if uniforms is None and not greedy:
        uniforms = random_uniforms(len(prompts), sampling.max_new_tokens)
    return Decoder(tokenizer).generate(policy, prompts, uniforms=uniforms, sampling=sampling)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *ODD_ARCHITECTURES, "qwen3", "mistral"])
def test_greedy_is_that_of_transformers(tiny_folder, architecture):
    model, prompts = load_tiny(tiny_folder(architecture)), random_prompts()
    ours = draw(tiny_policy(tiny_folder(architecture)), prompts, greedy=True, stop_tokens=(EOS,))
    for row, prompt in enumerate(prompts):
        theirs = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=16, eos_token_id=EOS)
        length = int(ours.lengths[row])
        assert ours.tokens[row, :length].tolist() == theirs[0, len(prompt) :].tolist()


def test_draws_have_the_frequencies_of_the_softmax(tmp_path):
    policy = tiny_policy(save_tiny("gpt2", tmp_path, vocab_size=3, eos_token_id=2, pad_token_id=2), temperature=0.7)
    with torch.no_grad():
        logits = policy.model(torch.tensor([[0, 1]])).logits[0, -1]
    probabilities = (logits / 0.7).softmax(dim=-1)
    # Evenly spaced draws fall into each token's share of [0, 1) in proportion, to one draw.
    uniforms = ((torch.arange(1000, dtype=torch.float64) + 0.5) / 1000).unsqueeze(1)
    drawn = draw(policy, [[0, 1]] * 1000, uniforms=uniforms, max_new_tokens=1)
    torch.testing.assert_close(drawn.tokens.flatten().bincount(minlength=3) / 1000, probabilities, rtol=0, atol=1e-3)
    torch.testing.assert_close(drawn.logprobs[:, 0].exp(), probabilities[drawn.tokens[:, 0]], rtol=0, atol=1e-6)


def test_inverse_cdf_by_hand():
    probabilities = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]]).repeat(5, 1)
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.999, 1 - 2**-53], dtype=torch.float64)
    assert inverse_cdf(probabilities, uniforms).tolist() == [1, 1, 3, 3, 3]


def test_inverse_cdf_normalises():
    probabilities = torch.tensor([[1.0, 3.0]])
    assert inverse_cdf(probabilities, torch.tensor([0.24], dtype=torch.float64)).tolist() == [0]
    assert inverse_cdf(probabilities, torch.tensor([0.26], dtype=torch.float64)).tolist() == [1]


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "opt"])
def test_rows_are_the_same_alone_in_chunks_and_as_others_end(tiny_folder, architecture):
    policy, prompts = tiny_policy(tiny_folder(architecture)).double(), random_prompts() * 2
    stops = tuple(range(12))
    together = draw(policy, prompts, stop_tokens=stops)
    assert together.lengths.unique().numel() > 1
    for budget in (1, 50):
        chunks = draw(policy, prompts, stop_tokens=stops, token_budget=budget)
        assert torch.equal(chunks.tokens, together.tokens)
        assert torch.equal(chunks.lengths, together.lengths)
        assert torch.equal(chunks.finished, together.finished)
        torch.testing.assert_close(chunks.logprobs, together.logprobs, rtol=0, atol=1e-9)
        torch.testing.assert_close(chunks.values, together.values, rtol=0, atol=1e-9)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *ODD_ARCHITECTURES])
def test_a_prompt_that_comes_several_times_is_read_once(tiny_folder, architecture):
    """And answered as if each had been read."""
    policy, sampling = tiny_policy(tiny_folder(architecture)), Sampling(max_new_tokens=5)
    prompts = [random_prompts()[row] for row in (0, 1, 0, 3, 1, 0)]
    draws, read = random_uniforms(6, 5), []
    hook = policy.model.get_input_embeddings().register_forward_pre_hook(lambda _, args: read.append(args[0].shape))
    together = Decoder().generate(policy, prompts, sampling=sampling, uniforms=draws)
    hook.remove()
    assert read[:2] == [(3, 7), (6, 1)]
    for row, prompt in enumerate(prompts):
        alone = Decoder().generate(policy, [prompt], sampling=sampling, uniforms=draws[row : row + 1])
        assert torch.equal(together.tokens[row : row + 1], alone.tokens)
        torch.testing.assert_close(together.logprobs[row : row + 1], alone.logprobs, rtol=0, atol=1e-5)


def test_stopping_only_cuts_what_would_have_been_drawn(tiny_folder):
    policy, prompts, stops = tiny_policy(tiny_folder("llama")).double(), random_prompts() * 2, list(range(12))
    free, stopped = draw(policy, prompts), draw(policy, prompts, stop_tokens=tuple(stops))
    for row in range(len(prompts)):
        drawn = free.tokens[row].tolist()
        hits = [step for step, token in enumerate(drawn) if token in stops]
        length = hits[0] + 1 if hits else 16
        assert stopped.lengths[row] == length
        assert stopped.finished[row] == bool(hits)
        assert stopped.tokens[row].tolist() == (drawn[:length] + [0] * 16)[: stopped.tokens.shape[1]]
        torch.testing.assert_close(stopped.logprobs[row, :length], free.logprobs[row, :length], rtol=0, atol=1e-9)
        assert stopped.logprobs[row, length:].abs().sum() == stopped.values[row, length:].abs().sum() == 0


def test_the_stop_token_is_an_action_even_where_it_is_the_padding_token(tiny_folder):
    policy = tiny_policy(tiny_folder("gpt2"))
    assert policy.config.pad_token_id == policy.config.eos_token_id == EOS
    drawn = draw(policy, random_prompts() * 8, stop_tokens=(EOS,))
    ended = drawn.finished.nonzero().squeeze(1)
    assert len(ended)
    last = drawn.lengths[ended] - 1
    assert (drawn.tokens[ended, last] == EOS).all()
    assert (drawn.logprobs[ended, last] < 0).all()


def test_responses_without_stops_run_to_the_end_whatever_the_model_config_says(tiny_folder):
    drawn = draw(tiny_policy(tiny_folder("gpt2")), random_prompts() * 8)
    assert (drawn.tokens == EOS).any()
    assert not drawn.finished.any()
    assert (drawn.lengths == 16).all()


def test_stop_strings_end_a_response_where_its_text_first_holds_one(tmp_path):
    tokenizer = word_tokenizer()
    policy, prompts = tiny_policy(save_tiny("gpt2", tmp_path, vocab_size=len(WORDS))), [[1], [4, 5], [2, 8, 9]] * 8
    free = draw(policy, prompts)
    stops = ("a b", "c g", "ab d", "never said")
    stopped = draw(policy, prompts, stop_strings=stops, tokenizer=tokenizer)
    assert stopped.finished.any()
    for row in range(len(prompts)):
        texts = [tokenizer.decode(free.tokens[row, : step + 1]) for step in range(16)]
        hits = [step for step, text in enumerate(texts) if any(stop in text for stop in stops)]
        assert stopped.finished[row] == bool(hits)
        assert stopped.lengths[row] == (hits[0] + 1 if hits else 16)


def test_values_are_those_of_the_state_before_each_token(tiny_folder):
    policy, prompt = tiny_policy(tiny_folder("llama")), random_prompts()[1]
    drawn = draw(policy, [prompt])
    response = drawn.tokens[0].tolist()
    with torch.no_grad():
        states = policy.model.model(torch.tensor([prompt + response])).last_hidden_state[0]
        by_hand = [policy.value_head(states[len(prompt) + step - 1]).item() for step in range(16)]
    torch.testing.assert_close(drawn.values[0], torch.tensor(by_hand), rtol=0, atol=1e-5)


def test_temperature_divides_logits_and_leaves_values(tiny_folder):
    policy, prompt = tiny_policy(tiny_folder("llama"), temperature=0.5), random_prompts()[1]
    drawn = draw(policy, [prompt])
    sequence = torch.tensor([prompt + drawn.tokens[0].tolist()])
    with torch.no_grad():
        logprobs = (policy.model(sequence).logits[0, len(prompt) - 1 : -1] / 0.5).log_softmax(dim=-1)
        states = policy.model.model(sequence).last_hidden_state[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(drawn.values[0], policy.value_head(states).squeeze(1), rtol=0, atol=1e-5)
    expected = logprobs.gather(1, drawn.tokens.T).squeeze(1)
    torch.testing.assert_close(drawn.logprobs[0], expected, rtol=0, atol=1e-5)


def test_top_k_of_one_is_greedy(tiny_folder):
    policy, prompts = tiny_policy(tiny_folder("gpt2")), random_prompts()
    assert torch.equal(draw(policy, prompts, top_k=1).tokens, draw(policy, prompts, greedy=True).tokens)


def test_top_p_keeps_the_fewest_tokens_of_that_probability():
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    sampling = Sampling(max_new_tokens=1, top_p=0.7)
    uniforms = torch.linspace(0, 0.999, 100, dtype=torch.float64)
    tokens, logprobs = choose(logits.repeat(100, 1), uniforms, temperature=1.0, sampling=sampling)
    assert set(tokens.tolist()) == {1, 3}
    expected = torch.where(tokens == 1, 2 / 3, 1 / 3).log()
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{"top_k": 5}, {"top_p": 0.9}])
def test_training_refuses_truncated_distributions(options):
    with pytest.raises(InputError, match="whole distribution"):
        Sampling(max_new_tokens=4, **options).require_exact()


def test_prompt_and_response_beyond_the_context_are_refused_by_number():
    config = AutoConfig.for_model("gpt2", n_positions=64)
    require_context(config, 48, 16)
    with pytest.raises(InputError, match=r"49 tokens.*16.*65.*64"):
        require_context(config, 49, 16)


def test_prompts_without_tokens_are_refused(tiny_folder):
    with pytest.raises(InputError, match="no tokens"):
        draw(tiny_policy(tiny_folder("gpt2")), [[1], []])


def test_stop_strings_without_a_tokenizer_are_refused(tiny_folder):
    with pytest.raises(InputError, match="tokenizer"):
        draw(tiny_policy(tiny_folder("gpt2")), [[1]], stop_strings=("x",))


def test_generation_leaves_the_global_generator_and_training_mode(tiny_folder):
    policy, state = tiny_policy(tiny_folder("gpt2")), torch.get_rng_state()
    draw(policy, random_prompts())
    assert torch.equal(torch.get_rng_state(), state)
    assert policy.training
