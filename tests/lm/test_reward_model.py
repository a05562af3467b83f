"""A classifier as a reward function: padding, EOS and labels cannot move its score, and it is no policy's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
)

from rlhf.errors import InputError
from rlhf.lm import templates
from rlhf.lm.reward_model import RewardModel
from rlhf.lm.rewards import Rewards, Samples
from tests.lm.words import EOS, TEMPLATE, WORDS, word_tokenizer

CPU = torch.device("cpu")
PROMPTS = ["a", "a b c", "b", "e f g a b", "c d"]
RESPONSES = [" b", " d", " c d e f g a", " f", ""]
FINISHED = [True, False, True, True, True]

_SIZES = {"vocab_size": len(WORDS), "eos_token_id": EOS, "bos_token_id": 1, "initializer_range": 0.3}
CONFIGS: dict[str, Any] = {
    "gpt2": GPT2Config(n_positions=32, n_embd=16, n_layer=2, n_head=2, pad_token_id=None, **_SIZES),
    # What most people have: pad is eos, so transformers reads the score one token before the end.
    "llama": LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        pad_token_id=EOS,
        **_SIZES,
    ),
    "bert": BertConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        pad_token_id=EOS,
        **_SIZES,
    ),
}


def save(folder: Path, architecture: str, *, template: str | None = None, **changes: Any) -> str:
    config = type(CONFIGS[architecture]).from_dict(CONFIGS[architecture].to_dict() | {"num_labels": 1} | changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    word_tokenizer(template=template).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=list(CONFIGS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("classifier"), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("llama"), "llama")


def scores_of(model: RewardModel) -> list[float]:
    return model(PROMPTS, RESPONSES, FINISHED)


def test_score_in_a_padded_batch_is_the_score_alone(folder: str):
    """Bug 17 of the peers: the padded position read."""
    together = RewardModel(folder, device=CPU, max_tokens=1000)
    alone = RewardModel(folder, device=CPU, max_tokens=1)
    torch.testing.assert_close(torch.tensor(scores_of(together)), torch.tensor(scores_of(alone)), rtol=0, atol=1e-5)


def test_score_is_the_classifiers_own_logit(folder: str):
    """transformers alone, one row at a time, on rows that do not end with the pad token."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    expected = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        tokens = AutoTokenizer.from_pretrained(folder)(prompt + response, return_tensors="pt")["input_ids"]
        expected.append(model(input_ids=tokens).logits.item())
    scores = RewardModel(folder, device=CPU)(PROMPTS, RESPONSES, [False] * 5)
    torch.testing.assert_close(torch.tensor(scores), torch.tensor(expected), rtol=0, atol=1e-5)


def test_score_of_a_finished_response_is_read_at_its_eos_even_where_pad_is_eos(llama: str):
    """Bug 17 of the peers: EOS stripped before scoring, or taken for padding."""
    model = AutoModelForSequenceClassification.from_pretrained(llama).eval()
    tokens = torch.tensor([word_tokenizer()("a b")["input_ids"] + [EOS]])
    with torch.no_grad():
        at_eos = model.score(model.model(tokens).last_hidden_state[:, -1]).item()
    finished, cut = RewardModel(llama, device=CPU)(["a", "a"], [" b", " b"], [True, False])
    assert finished == pytest.approx(at_eos, abs=1e-5)
    assert abs(finished - cut) > 1e-2
    (without,) = RewardModel(llama, device=CPU, append_eos=False)(["a"], [" b"], [True])
    assert without == pytest.approx(cut, abs=1e-6)


def test_dropout_is_off_and_nothing_is_trained(tmp_path: Path):
    source = save(tmp_path, "gpt2", resid_pdrop=0.5, embd_pdrop=0.5)
    model = RewardModel(source, device=CPU)
    assert scores_of(model) == scores_of(model)
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


def test_label_picks_one_of_several_outputs(tmp_path: Path):
    names = {"id2label": {0: "NEGATIVE", 1: "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}, "num_labels": 2}
    source = save(tmp_path, "gpt2", **names)
    by_name = scores_of(RewardModel(source, device=CPU, label="POSITIVE"))
    assert by_name == scores_of(RewardModel(source, device=CPU, label=1))
    assert by_name != scores_of(RewardModel(source, device=CPU, label=0))
    with pytest.raises(InputError, match=r"label None .* is none of its outputs: 0 \(NEGATIVE\), 1 \(POSITIVE\)"):
        RewardModel(source, device=CPU)


def test_it_reads_the_responses_and_not_the_policys_tokens(llama: str):
    samples = Samples(
        prompts=PROMPTS,
        responses=RESPONSES,
        completions=[[{"role": "assistant", "content": "never read"}]] * 5,
        completion_ids=[[10**6]] * 5,
        finished=FINISHED,
        columns={},
        sample_ids=list(range(5)),
    )
    model = RewardModel(llama, device=CPU)
    scores = Rewards([model])(samples)
    assert scores.parts == {"reward_model": scores_of(model)}


def test_chat_data_are_rendered_by_its_own_template(tmp_path: Path, llama: str):
    prompts, responses = [[{"role": "user", "content": "a"}]], ["b"]
    model = RewardModel(save(tmp_path, "llama", template=TEMPLATE), device=CPU)
    (expected,) = model(["user: a assistant: b <eos>"], [" ;"], [False])
    assert model(prompts, responses, [True]) == [pytest.approx(expected, abs=1e-6)]
    with pytest.raises(InputError, match="messages need a chat template"):
        RewardModel(llama, device=CPU)(prompts, responses, [True])


def test_response_that_was_cut_gets_no_end_from_the_tokenizer_either(tmp_path: Path):
    source = save(tmp_path, "llama")
    scores = {}
    for special in ("<bos> $A", "<bos> $A <eos>"):
        word_tokenizer(special=special).save_pretrained(source)
        scores[special] = RewardModel(source, device=CPU)(["a", "a"], [" b", " b"], [True, False])
    plain, ending = scores.values()
    assert ending == pytest.approx(plain, abs=1e-6)
    assert abs(plain[0] - plain[1]) > 1e-2


CHAT = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize("response", ["b", "b c", "b ", ""])
@pytest.mark.parametrize(
    "template", [TEMPLATE, TEMPLATE.replace("{{ message.content }}", "{{ message.content | trim }}")]
)
def test_chat_response_that_was_cut_is_shown_without_its_end(tmp_path: Path, template: str, response: str):
    model = RewardModel(save(tmp_path, "llama", template=template), device=CPU)
    (expected,) = model(["user: a assistant:"], [f" {response}"], [False])
    cut, finished = model([CHAT, CHAT], [response, response], [False, True])
    assert cut == pytest.approx(expected, abs=1e-6)
    assert abs(finished - cut) > 1e-2


def test_text_that_brings_its_bos_gets_no_second(tmp_path: Path):
    source = save(tmp_path, "llama")
    word_tokenizer(special="<bos> $A <eos>").save_pretrained(source)
    once, brought = RewardModel(source, device=CPU)(["a", "<bos> a"], [" b", " b"], [True, True])
    assert brought == pytest.approx(once, abs=1e-6)


def test_its_template_is_told_what_it_reads_of_a_row(tmp_path: Path):
    told = "{% if tools %}{{ tools[0].name }} {% endif %}{% if words %}{{ words }} {% endif %}" + TEMPLATE
    columns = {"tools": [[{"name": "c"}], None], "chat_template_kwargs": [{"words": "d", "unknown": 1}, None]}
    samples = Samples(
        prompts=[CHAT, CHAT],
        responses=["b", "b"],
        completions=[[], []],
        completion_ids=[[1], [1]],
        finished=[True, True],
        columns=columns,
        sample_ids=[0, 1],
    )
    reads, ignores = (
        RewardModel(save(tmp_path / name, "llama", template=template), device=CPU)
        for name, template in (("reads", told), ("ignores", TEMPLATE))
    )
    texts = ["c d user: a assistant: b <eos> ;", "user: a assistant: b <eos> ;"]
    expected = reads(texts, ["", ""], [False, False])
    for model, scores in ((reads, expected), (ignores, [expected[1]] * 2)):
        assert Rewards([model])(samples).parts["reward_model"] == pytest.approx(scores, abs=1e-6)


def test_template_that_hangs_is_refused_when_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(templates, "LIMIT_SECONDS", 0.5)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{{ '' }}{% endfor %}{% endfor %}"
    with pytest.raises(InputError, match=r"the reward model .*: the chat template does not end"):
        RewardModel(save(tmp_path, "llama", template=endless), device=CPU)


def test_text_longer_than_its_context_is_refused_with_numbers(llama: str):
    with pytest.raises(InputError, match="has 41 tokens, more than the context"):
        RewardModel(llama, device=CPU)(["a " * 20], ["b " * 20], [True])


def test_model_without_a_trained_head_is_refused(tmp_path: Path):
    GPT2LMHeadModel(CONFIGS["gpt2"]).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"would be random: score\.weight"):
        RewardModel(str(tmp_path), device=CPU)


def test_missing_model_is_the_users_error(tmp_path: Path):
    with pytest.raises(InputError, match=r"there is no folder .*nothing"):
        RewardModel(str(tmp_path / "nothing"), device=CPU)
