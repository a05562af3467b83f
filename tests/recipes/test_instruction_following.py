"""The recipe on a tiny chat model: what it pays, what it measures beside that, and that it resumes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, BertModel

from recipes import instruction_following as recipe
from recipes.settings.language import Precision
from rlhf.errors import InputError
from rlhf.lm.settings import CollectResponses
from rlhf.lm.tokenizers import byte_pair_tokenizer
from rlhf.lm.verifiers.prompts import KINDS, instruction_prompts
from rlhf.loop import Duration
from rlhf.runs import summary
from rlhf.runs.log import read_lines
from tests.lm.tiny import save_tiny
from tests.recipes.small import run

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = byte_pair_tokenizer([row["request"] for row in instruction_prompts(num_rows=40, seed=1)], size=400)
    tokenizer.chat_template = TEMPLATE
    folder = tmp_path_factory.mktemp("chat") / "model"
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 1024}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": 1}
    save_tiny("llama", folder, **sizes, **ends)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the place of MiniLM, which is no part of the project."""
    folder = tmp_path_factory.mktemp("sentences") / "model"
    tokenizer = byte_pair_tokenizer(["what is asked for"], size=300)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def small(model: Path, folder: Path, method: str = "ppo", *, updates: int = 2, **changes: Any) -> recipe.Config:
    config = recipe.default_config(method)
    improve = replace(
        config.improve,
        collect=CollectResponses(prompts_per_rollout=2, responses_per_prompt=2),
        train=Duration(updates=updates, eval_every=0, checkpoint_every=1),
    )
    sizes = {"prompts": 12, "held_out": 4, "answers_each": 2, "max_new_tokens": 8, "lora_rank": 2, "temperature": 0.7}
    where = {"model": str(model), "output_dir": folder, "precision": Precision(mixed_precision="no")}
    return replace(config, improve=improve, **sizes, **where, **changes)


def test_what_is_paid_for_an_answer_by_hand() -> None:
    def on_topic(response: str, topic: str, kind: str = "punctuation:no_comma", **given: Any) -> float | None:
        return recipe.on_topic([response], [topic], [[kind]], [[given]])[0]

    assert on_topic("Polar foxes", "polar bears") == 0.5
    assert on_topic("POLARS, a bear", "polar bears") == 0.5
    assert on_topic("An ant.", "ants") == 0.0
    assert on_topic("Ants.", "ants") == 1.0
    assert on_topic("", "ants") == 0.0
    # "the" is taken up by anything.
    assert on_topic("The cats", "the Nile") == 0.0
    # Where following forbids it, it is not asked for.
    assert on_topic("Ameisen", "ants", "language:response_language", language="de") is None
    assert on_topic("", "the top of a volcano", "keywords:forbidden_words", forbidden_words=["Volcano", "it"]) is None
    assert on_topic("", "the top of a volcano", "keywords:forbidden_words", forbidden_words=["it"]) == 0.0
    less, more = ({"relation": each, "num_words": 30} for each in ("less than", "at least"))
    kind = "length_constraints:number_words"
    paid = recipe.substance(["a " * 10, "a " * 10, "a " * 99], [[kind]] * 3, [[less], [more], [more]])
    assert paid == [1.0, 0.4, 1.0]


def test_what_is_followed_is_paid_by_what_it_is_worth_as_an_answer() -> None:
    def paid(
        response: str,
        topic: str = "polar bears",
        kind: str = "punctuation:no_comma",
        finished: bool = True,
        **given: Any,
    ) -> float:
        return recipe.followed_in_an_answer([response], [topic], [[kind]], [[given]], [finished])[0]

    long = "Polar bears " + "swim " * 23
    assert paid(long) == 1.0
    assert paid(long, finished=False) == 0.75
    assert paid(long.replace("bears", "foxes")) == 0.75
    assert paid("swim " * 25) == 0.5
    assert paid("Polar bears " + "swim " * 3) == pytest.approx(5 / 25)
    # With a comma it is nearly followed, and a half of that counts.
    assert paid(long + ", yes") == pytest.approx(0.25)
    # Nothing is followed, or there is no answer.
    assert paid(long, kind="detectable_content:postscript", postscript_marker="P.S.") == 0.0
    assert paid("") == 0.0
    # The words of the topic are forbidden, so they are not missed.
    assert paid("swim " * 25, kind="keywords:forbidden_words", forbidden_words=["polar"]) == 1.0


def test_kinds_that_are_not_trained_are_evaluated_only() -> None:
    config = replace(recipe.Config(), held_out=20, answers_each=2, prompts=400)
    assert {kind for row in recipe.trained(config) for kind in row["instruction_id_list"]} == set(recipe.TRAINED)
    rows = recipe.evaluated(config)
    assert all(len(row["instruction_id_list"]) == 1 for row in recipe.trained(config) + rows)
    assert len(rows) == 2 * (20 + 10)
    for row in rows:
        assert (row["instruction_id_list"][0] in recipe.TRAINED) is row["trained"]
    assert set(recipe.TRAINED) < set(KINDS)


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_a_run_tells_what_no_reward_sees_and_resumes_to_the_same(
    method: str, model: Path, sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "write_report", lambda folder: None)
    asked = [{"prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}] * 2
    (tmp_path / "ifeval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    (tmp_path / "texts.jsonl").write_text('{"text": "foxes are red"}\n{"text": "a fox"}\n')
    data = {
        "sentence_model": str(sentences),
        "ifeval": str(tmp_path / "ifeval.jsonl"),
        "texts": str(tmp_path / "texts.jsonl"),
    }
    whole = run(recipe.main, small(model, tmp_path / "whole", method, **data))
    run(recipe.main, small(model, tmp_path / "parts", method, updates=1, **data))
    parts = run(recipe.main, small(model, tmp_path / "parts", method, resume=True, **data))
    assert {name: value for name, value in whole.items() if name != "seconds"} == {
        name: value for name, value in parts.items() if name != "seconds"
    }
    names = ["followed", "untrained_followed", "relevance", "length", "ifeval_by_prompt", "ifeval_by_instruction"]
    assert {f"{name}_{when}" for name in names for when in ("before", "after", "change_low", "change_high")} <= set(
        whole
    )
    rows = [row for row in read_lines(tmp_path / "whole" / method / "samples.jsonl") if row["kind"] == "evaluation"]
    last = [row for row in rows if row["update"] == 2 and row.get("of") is None][:8]
    assert whole["followed_after"] == pytest.approx(sum(row["parts"]["share_followed"] for row in last) / 8)
    assert whole["loss_on_texts_after"] != whole["loss_on_texts_before"]
    assert "## " in (tmp_path / "whole" / "answers.md").read_text()


@pytest.mark.parametrize(
    ("option", "line", "message"),
    [
        ("ifeval", '{"prompt": "Say it."}', "no column 'instruction_id_list'"),
        ("ifeval", '{"prompt": "a ", "instruction_id_list": ["no"], "kwargs": [{}]}', "row 0: there is no instruction"),
        ("texts", '{"text": "%s"}' % ("fox " * 2000), "more than the model's context of 1024"),
        ("texts", '{"words": "a fox"}', "demonstrations need text"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_made(
    option: str, line: str, message: str, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text(line + "\n")
    data = {option: str(tmp_path / "rows.jsonl"), "sentence_model": ""}
    with pytest.raises(InputError, match=message):
        recipe.main(small(model, tmp_path / "run", **data))
    assert not (tmp_path / "run").exists()
