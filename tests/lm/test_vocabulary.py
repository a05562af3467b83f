"""Tokens that a model has and its tokenizer does not: never said, in sampling and in scoring alike."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from rlhf.errors import InputError
from rlhf.lm.engine import Generation, Sampling, respond
from rlhf.lm.generate import Decoder
from rlhf.lm.load import ModelConfig, load_policy, policy_of
from rlhf.lm.policy import CausalLM
from tests.lm.tiny import load_tiny, random_uniforms, save_tiny
from tests.lm.words import EOS, WORDS, word_tokenizer

PADDED = 61
KNOWN = len(WORDS)
PROMPTS = [[1, 2, 3], [4], [5, 6]]
KINDS = [("llama", {}), ("llama", {"lora_rank": 4}), ("llama", {"critic": "separate"}), ("gemma2", {}), ("opt", {})]


def padded_policy(folder, architecture: str, *, temperature: float = 1.0, **config: object) -> CausalLM:
    save_tiny(architecture, folder, vocab_size=PADDED, eos_token_id=EOS, pad_token_id=EOS)
    word_tokenizer().save_pretrained(folder)
    return load_policy(str(folder), temperature=temperature, **config)


def sampled(policy: CausalLM, *, greedy: bool = False) -> Generation:
    draws = None if greedy else random_uniforms(len(PROMPTS), 8)
    sampling = Sampling(max_new_tokens=8)
    ids = torch.arange(len(PROMPTS))
    return respond(Decoder(), policy, PROMPTS, sampling=sampling, uniforms=draws, sample_ids=ids)


def inputs_of(generation: Generation) -> dict[str, torch.Tensor]:
    from rlhf.lm.scoring import response_inputs

    return response_inputs(PROMPTS, generation.tokens, generation.lengths)


@pytest.mark.parametrize(("architecture", "config"), KINDS, ids=str)
def test_unknown_tokens_are_never_drawn_and_take_no_probability(tmp_path, architecture, config):
    """Against plain transformers: softmax over the known tokens alone."""
    policy = padded_policy(tmp_path, architecture, temperature=0.7, **config)
    generation = sampled(policy)
    assert int(generation.tokens.max()) < KNOWN
    assert int(sampled(policy, greedy=True).tokens.max()) < KNOWN
    inputs = inputs_of(generation)
    policy.make_reference()
    output = policy(inputs)
    everything, distribution = policy(inputs, distribution=True)
    torch.testing.assert_close(output.logprobs, generation.logprobs, rtol=0, atol=1e-5)
    assert torch.equal(policy.reference_logprobs(inputs), output.logprobs)
    plain = load_tiny(tmp_path)
    for row, prompt in enumerate(PROMPTS):
        tokens = torch.tensor([[*prompt, *generation.tokens[row].tolist()]])
        with torch.no_grad():
            logits = plain(tokens).logits[0, len(prompt) - 1 : -1, :KNOWN]
        expected = (logits / 0.7).log_softmax(dim=-1)
        chosen = expected.gather(1, generation.tokens[row].unsqueeze(1)).squeeze(1)
        for found in (output, everything):
            torch.testing.assert_close(found.logprobs[row], chosen, rtol=0, atol=2e-5)
            torch.testing.assert_close(found.entropy[row], -(expected.exp() * expected).sum(-1), rtol=0, atol=2e-5)
        torch.testing.assert_close(distribution.logits.softmax(-1)[row, :, :KNOWN], expected.exp(), rtol=0, atol=2e-5)
    assert not distribution.logits.softmax(-1)[..., KNOWN:].any()
    assert not distribution.kl(distribution).any()


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_unknown_tokens_learn_nothing_from_the_head(tmp_path, architecture):
    policy = padded_policy(tmp_path, architecture)
    output = policy(inputs_of(sampled(policy)))
    head = policy.model.get_output_embeddings().weight
    (output.logprobs.sum() + output.entropy.sum()).backward()
    assert head.grad is not None
    assert head.grad.isfinite().all()
    assert head.grad[:KNOWN].any()
    if architecture == "llama":  # In the other one the head is the embedding.
        assert not head.grad[KNOWN:].any()


def test_holes_in_the_numbering_are_unknown_too(tmp_path):
    policy = padded_policy(tmp_path, "llama")
    tokenizer = word_tokenizer()
    hidden = tokenizer.get_vocab()["d"]
    words = {word: number for word, number in tokenizer.get_vocab().items() if number != hidden}
    tokenizer.get_vocab = lambda: words  # type: ignore[method-assign]
    policy.tokenizer = tokenizer
    assert policy.unknown_tokens.nonzero().flatten().tolist() == [hidden, *range(KNOWN, PADDED)]
    assert not (sampled(policy).tokens == hidden).any()


def test_a_model_of_the_tokenizers_own_size_is_left_as_it_is(tmp_path):
    folder = save_tiny("llama", tmp_path, vocab_size=KNOWN, eos_token_id=EOS, pad_token_id=EOS)
    word_tokenizer().save_pretrained(folder)
    policy = load_policy(str(folder))
    assert policy.unknown_tokens is None
    other = policy_of(ModelConfig(model=str(folder)), temperature=1.0, seed=0)
    inputs = inputs_of(sampled(policy))
    assert torch.equal(policy(inputs).logprobs, other(inputs).logprobs)


def test_an_engine_that_draws_unknown_tokens_is_refused(tmp_path):
    policy = padded_policy(tmp_path, "llama")

    class Other:
        exact, rounding = False, 1e-3

        def generate(self, policy, prompts, *, sampling, uniforms):
            shape = (len(prompts), 2)
            return Generation(
                torch.full(shape, KNOWN), torch.full(shape[:1], 2), torch.zeros(3).bool(), torch.zeros(shape), None
            )

    with pytest.raises(InputError, match="tokens of the model that its tokenizer does not know"):
        respond(
            Other(), policy, PROMPTS, sampling=Sampling(max_new_tokens=2), uniforms=None, sample_ids=torch.arange(3)
        )


def test_a_tokenizer_larger_than_the_model_or_its_critic_is_refused_with_both_numbers(tmp_path):
    folder = save_tiny("llama", tmp_path / "model", vocab_size=KNOWN, eos_token_id=EOS, pad_token_id=EOS)
    word_tokenizer().save_pretrained(folder)
    critic = save_tiny("llama", tmp_path / "critic", vocab_size=KNOWN - 1, eos_token_id=EOS, pad_token_id=EOS)
    with pytest.raises(InputError, match=f"the critic's model has embeddings for {KNOWN - 1}"):
        load_policy(str(folder), critic="separate", critic_model=str(critic))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=f"up to number {KNOWN}, but the model .* has embeddings for {KNOWN}"):
        load_policy(str(folder))
