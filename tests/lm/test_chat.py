"""Chat templates: what they are shown and told reaches the model, and the programs that they are cannot do harm."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rlhf.errors import InputError
from rlhf.lm import templates
from rlhf.lm.data import demonstration_rollout, load_data, prompt_rows
from rlhf.lm.tokenizers import byte_pair_tokenizer

SHOWN = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
ADDED = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + ' ' }}{% endfor %}"
READS_PARTS = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %} {% endfor %}"
READS_BOTH = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %} {% endfor %}"
)
TOLD = (
    "{% if tools %}tools: {% for t in tools %}{{ t.function.name }} {% endfor %}{% endif %}"
    "{% for m in messages %}{{ m.content }} {% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_pair_tokenizer(["two plus two"], size=300)


def asked(content: Any, **columns: Any) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": content}], **columns}


def read(tokenizer: Any, template: Any, *rows: dict[str, Any]) -> str:
    """What the model reads of the last row."""
    tokenizer.chat_template = template
    return prompt_rows(load_data(rows), tokenizer, max_new_tokens=1, context=None)[-1].text


def learned(tokenizer: Any, template: Any, row: dict[str, Any]) -> str:
    tokenizer.chat_template = template
    return str(tokenizer.decode(demonstration_rollout(load_data([row]), tokenizer, context=None).inputs["tokens"][0]))


@pytest.mark.parametrize("template", [SHOWN, ADDED, READS_PARTS, READS_BOTH])
def test_content_in_text_parts_is_read_as_its_text(tokenizer: Any, template: str):
    parts = [{"type": "text", "text": "two plus"}, {"type": "text", "text": " two?"}]
    text = read(tokenizer, template, asked(parts))
    assert "two plus two?" in text
    assert "type" not in text
    row = {"prompt": asked(parts)["prompt"], "completion": [{"role": "assistant", "content": parts[1:]}]}
    assert "type" not in learned(tokenizer, template, row)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (42, "the content 42 must be a string"),
        (None, "the content None must be a string"),
        ({"text": "a"}, "must be a string, or a list of text parts"),
        ([], "must be a string, or a list of text parts"),
        (["a"], "'a' is a part of a content; only text parts can be read"),
        ([{"type": "text", "text": "a"}, {"type": "image", "url": "b"}], "'type': 'image'.* only text parts"),
        ([{"type": "text", "text": 3}], "only text parts"),
    ],
)
def test_content_that_is_no_text_is_refused_with_its_row(tokenizer: Any, content: Any, text: str):
    with pytest.raises(InputError, match=f"row 1: .*{text}"):
        read(tokenizer, SHOWN, asked("a"), asked(content))


def test_turn_that_only_calls_a_tool_needs_no_content(tokenizer: Any):
    turns = [
        {"role": "user", "content": "two plus two?"},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "add"}}]},
        {"role": "tool", "content": "four"},
    ]
    template = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}calls {{ c.function.name }} {% endfor %}"
        "{{ m.content or '' }} {% endfor %}"
    )
    assert "two plus two? calls add  four" in read(tokenizer, template, {"prompt": turns})


@pytest.mark.parametrize("prompt", [12, 1.5, True, {"role": "user", "content": "a"}, b"caf\xe9", float("nan")])
def test_prompt_that_is_no_text_is_refused_as_what_it_is(tokenizer: Any, prompt: Any):
    with pytest.raises(InputError, match=r"row 1: the prompt is .* must be a string or a list of messages"):
        read(tokenizer, SHOWN, asked("a"), {"prompt": prompt})


CHAT = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("text", [json.dumps(CHAT), f" {json.dumps(CHAT, indent=1)}\n", str(CHAT), json.dumps(CHAT[0])])
def test_conversation_stored_as_text_is_refused(tokenizer: Any, text: str):
    with pytest.raises(InputError, match=r"row 0: the prompt .* is a conversation stored as text"):
        read(tokenizer, SHOWN, {"prompt": text})
    with pytest.raises(InputError, match=r"row 0: .* is a conversation stored as text"):
        demonstration_rollout(load_data([{"prompt": text, "completion": "a"}]), tokenizer, context=None)
    with pytest.raises(InputError, match=r"row 0: .* must be a list of messages"):
        read(tokenizer, SHOWN, {"messages": text})


@pytest.mark.parametrize("text", ['{"answer": 4}', "[1, 2]", "[role] content", '{"role": "user"} what is the content?'])
def test_text_that_merely_looks_like_json_is_text(tokenizer: Any, text: str):
    assert read(tokenizer, SHOWN, {"prompt": text}) == text


@pytest.mark.parametrize(
    "columns",
    [
        {"tools": [ADD], "chat_template_kwargs": {"enable_thinking": False}},
        {"tools": json.dumps([ADD]), "chat_template_kwargs": '{"enable_thinking": false}'},
        {"tools": [ADD | {"strict": None}], "chat_template_kwargs": {"enable_thinking": False, "unknown": None}},
    ],
)
def test_tools_and_template_arguments_of_a_row_reach_its_template(tokenizer: Any, columns: dict[str, Any]):
    assert "tools: add two plus two? <think></think>" in read(tokenizer, TOLD, asked("two plus two?", **columns))
    turns = [{"role": "user", "content": "two?"}, {"role": "assistant", "content": "four"}]
    row = {"prompt": turns[:1], "completion": turns[1:], **columns}
    for each in (row, {"messages": turns, **columns}):
        assert "tools: add two? four" in learned(
            tokenizer, TOLD.replace("{% if enable", "{% if false and enable"), each
        )


@pytest.mark.parametrize("columns", [{}, {"tools": None}, {"tools": []}, {"tools": None, "chat_template_kwargs": {}}])
def test_row_that_tells_nothing_is_rendered_without(tokenizer: Any, columns: dict[str, Any]):
    text = read(
        tokenizer, TOLD, asked("other", tools=[ADD], chat_template_kwargs={}), asked("two plus two?", **columns)
    )
    assert text.strip() == "two plus two?"


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"tools": "hammer"}, "tools is 'hammer'; it must be a list"),
        ({"tools": ["add"]}, "tools is .*; it must be a list"),
        ({"tools": {"add": 1}}, "tools is .*; it must be a list"),
        ({"chat_template_kwargs": [1]}, r"chat_template_kwargs is \[1\]; it must be a dict"),
        (
            {"chat_template_kwargs": {"add_generation_prompt": False}},
            "'add_generation_prompt', which is not the data's",
        ),
        (
            {"chat_template_kwargs": {"enable_thinkin": False}},
            "the chat template reads nothing called 'enable_thinkin'",
        ),
    ],
)
def test_what_no_template_could_be_told_is_refused_with_its_row(tokenizer: Any, columns: dict[str, Any], text: str):
    with pytest.raises(InputError, match=f"row 0: .*{text}"):
        read(tokenizer, TOLD, asked("a", **columns))


def test_tools_that_the_template_does_not_read_are_refused(tokenizer: Any):
    with pytest.raises(InputError, match="row 0: the chat template reads nothing called 'tools'"):
        read(tokenizer, SHOWN, asked("a", tools=[ADD]))


def test_of_several_templates_the_default_or_the_one_for_tools_is_taken(tokenizer: Any):
    named = {"default": SHOWN, "tool_use": TOLD}
    assert read(tokenizer, named, asked("a")).strip() == "user: a"
    assert read(tokenizer, named, asked("a", tools=[ADD])).strip() == "tools: add a"
    with pytest.raises(InputError, match=r"row 0: the tokenizer has several chat templates \(rag, tool_use\)"):
        read(tokenizer, {"rag": SHOWN, "tool_use": TOLD}, asked("a"))


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{{ '' }}{% endfor %}{% endfor %}"
HARMFUL = {
    "loop": (ENDLESS, "does not end within"),
    "loop in the second row": (
        "{% if messages[0].content == 'b' %}" + ENDLESS + "{% endif %}a",
        "does not end",
    ),
    "power": ("{{ 9 ** (9 ** 9) }}", "does not end within"),
    "string": ("{{ 'a' * 10 ** 11 }}", "memory|refuses"),
    "list": ("{{ ([messages] * 10 ** 10) | length }}", "memory|refuses"),
    "long text": ("{% for i in range(99999) %}{{ 'a' * 200 }}{% endfor %}", "writes 19999800 characters"),
    "long range": ("{% for i in range(10 ** 9) %}a{% endfor %}", "refuses"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "refuses"),
    "syntax": ("{% for m in %}", "refuses"),
    "undefined": ("{{ nothing.at.all }}", "refuses"),
    "type": ("{{ messages + 1 }}", "refuses"),
    "division": ("{{ 1 / 0 }}", "refuses"),
    "escape": ("{{ ''.__class__.__mro__ }}", "refuses"),
    "file": ("{% include '/etc/passwd' %}", "refuses"),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_template_that_hangs_fills_memory_or_fails_is_refused(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setattr(templates, "LIMIT_SECONDS", 0.5)
    template, text = HARMFUL[name]
    start = time.perf_counter()
    row = 1 if "second" in name else 0
    with pytest.raises(InputError, match=f"row {row}: .*({text})"):
        read(tokenizer, template, asked("a"), asked("b"))
    assert time.perf_counter() - start < 5


def test_template_that_hangs_is_refused_for_demonstrations_too(tokenizer: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(templates, "LIMIT_SECONDS", 0.5)
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    with pytest.raises(InputError, match="row 0: the chat template does not end within"):
        learned(tokenizer, "{% if add_generation_prompt %}" + ENDLESS + "{% endif %}a", row)


DATED = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "today: {{ date_string }} {% for m in messages %}{{ m.content }} {% endfor %}"
)


def test_template_that_writes_todays_date_is_refused_and_a_date_of_the_data_is_taken(tokenizer: Any):
    with pytest.raises(InputError, match="row 0: the chat template writes today's date"):
        read(tokenizer, DATED, asked("a"))
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    with pytest.raises(InputError, match="row 0: the chat template writes today's date"):
        learned(tokenizer, DATED, row)
    given = asked("a", chat_template_kwargs={"date_string": "26 Jul 2024"})
    assert read(tokenizer, DATED, given).strip() == "today: 26 Jul 2024 a"
    unasked = "{% if strftime_now is defined and false %}{{ strftime_now('%Y') }}{% endif %}a"
    assert read(tokenizer, unasked, asked("a")).strip() == "a"


def test_an_answer_is_given_on_the_day_it_is_asked_for(tokenizer: Any):
    """Nothing is resumed there."""
    tokenizer.chat_template = DATED
    data = load_data([asked("a")])
    assert "today: " in prompt_rows(data, tokenizer, max_new_tokens=1, context=None, today=True)[0].text


def test_without_processes_to_fork_templates_are_rendered_here(tokenizer: Any, monkeypatch: pytest.MonkeyPatch):
    """As on Windows."""
    expected = read(tokenizer, SHOWN, asked("a"), asked("b"))
    monkeypatch.delattr(os, "fork")
    assert read(tokenizer, SHOWN, asked("a"), asked("b")) == expected


def test_empty_turn_that_a_template_does_not_write_is_refused(tokenizer: Any):
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}
    with pytest.raises(InputError, match="row 0: the chat template writes nothing for message 1"):
        learned(tokenizer, "{% for m in messages %}{{ m.content }}{% endfor %}", row)
