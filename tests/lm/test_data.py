"""Data: what is read, which tokens become prompts and actions, and what is refused with which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch

from rlhf.errors import InputError
from rlhf.lm.data import Data, demonstration_rollout, hold_out, lm_inputs, load_data, prompt_rows
from rlhf.rollout import Rollout
from tests.lm.words import ASSISTANT, BOS, EOS, TEMPLATE, USER, A, B, C, D, word_tokenizer


def data(*rows: dict[str, Any]) -> Data:
    return load_data(rows)


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def learned(rollout: Rollout, row: int = 0) -> tuple[list[int], list[int]]:
    """A row's real tokens, and which of them are actions."""
    tokens = rollout.inputs["tokens"][row, : rollout.inputs["lengths"][row]]
    return tokens.tolist(), tokens[rollout.inputs["actions"][row][rollout.mask[row]]].tolist()


ROWS = [{"prompt": "a b", "answer": 1}, {"prompt": "c", "answer": 2}]


def write(folder: Path, suffix: str) -> Path:
    path = folder / f"rows{suffix}"
    if suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    elif suffix == ".json":
        path.write_text(json.dumps(ROWS))
    elif suffix == ".csv":
        path.write_text("prompt,answer\na b,1\nc,2\n")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_load_data_reads_every_kind_of_file(tmp_path: Path, suffix: str):
    # A CSV holds no numbers, only text.
    expected = [row | {"answer": str(row["answer"])} for row in ROWS] if suffix == ".csv" else ROWS
    assert load_data(write(tmp_path, suffix)).rows == expected


def test_load_data_fills_columns_that_a_row_lacks():
    assert data({"prompt": "a"}, {"prompt": "b", "answer": 3}).rows[0] == {"prompt": "a", "answer": None}


def test_load_data_renames_columns():
    loaded = load_data([{"question": "a", "id": 7}], rename={"question": "prompt"})
    assert loaded.rows == [{"prompt": "a", "id": 7}]


def test_load_data_keeps_line_separators_inside_json_strings(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a\u2028b"}\n', encoding="utf-8")
    assert load_data(path).rows == [{"prompt": "a\u2028b"}]


def test_load_data_names_the_file_and_line_that_is_broken(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": \n')
    with pytest.raises(InputError, match=r"rows\.jsonl, line 2: not JSON"):
        load_data(path)


@pytest.mark.parametrize(
    ("source", "rename", "text"),
    [
        ("nowhere/rows.jsonl", {}, "there is no data file"),
        ([], {}, "has no rows"),
        (["a"], {}, "row 0 is str 'a'; each row must be a dict"),
        ([{"question": "a"}], {"qestion": "prompt"}, "no column 'qestion' to rename; its columns are question"),
        ([{"prompt": "a", "question": "b"}], {"question": "prompt"}, "two columns have one name"),
    ],
)
def test_load_data_says_what_is_wrong(source: Any, rename: dict[str, str], text: str):
    with pytest.raises(InputError, match=text):
        load_data(source, rename=rename)


def test_load_data_refuses_a_file_it_cannot_read(tmp_path: Path):
    (tmp_path / "rows.xlsx").write_text("")
    with pytest.raises(InputError, match=r"must end in \.jsonl, \.json, \.csv, \.parquet"):
        load_data(tmp_path / "rows.xlsx")


def test_hold_out_splits_every_row_once_and_always_alike():
    train, held = hold_out(50, num_held_out=10, seed=3)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(50))
    assert len(held) == 10
    again = hold_out(50, num_held_out=10, seed=3)[1]
    assert torch.equal(held, again)
    assert not torch.equal(held, hold_out(50, num_held_out=10, seed=4)[1])


def test_hold_out_must_leave_rows_to_train_on():
    with pytest.raises(InputError, match="5 rows cannot be held out of 5"):
        hold_out(5, num_held_out=5, seed=0)


def test_prompt_keeps_bos_and_drops_the_eos_that_a_tokenizer_appends():
    (prompt,) = prompt_rows(data(ROWS[0]), word_tokenizer(special="<bos> $A <eos>"), max_new_tokens=1, context=None)
    assert prompt.tokens == [BOS, A, B]
    assert (prompt.row, prompt.text, prompt.columns) == (0, "a b", {"answer": 1})


def test_chat_prompt_ends_where_the_assistants_turn_begins():
    tokenizer = word_tokenizer(template=TEMPLATE)
    (prompt,) = prompt_rows(data({"prompt": [user("a b")]}), tokenizer, max_new_tokens=1, context=None)
    assert prompt.tokens == [USER, A, B, ASSISTANT]
    assert prompt.prompt == [user("a b")]
    assert prompt.text == "user: a b assistant:"


def test_prompt_that_leaves_no_room_is_refused_with_its_numbers():
    """Bug 23 of the peers: an IndexError deep in the model."""
    rows = data({"prompt": "a"}, {"prompt": "a b c"})
    assert len(prompt_rows(rows, word_tokenizer(), max_new_tokens=5, context=8)) == 2
    with pytest.raises(InputError, match="row 1: 3 prompt tokens and max_new_tokens 6 exceed the model's context of 8"):
        prompt_rows(rows, word_tokenizer(), max_new_tokens=6, context=8)


@pytest.mark.parametrize("empty", ["", "  ", None, []])
def test_empty_prompt_is_refused_with_its_row(empty: Any):
    with pytest.raises(InputError, match="row 1 has an empty prompt"):
        prompt_rows(data({"prompt": "a"}, {"prompt": empty}), word_tokenizer(), max_new_tokens=1, context=None)


def test_missing_prompt_column_is_refused_with_the_columns_there_are():
    with pytest.raises(InputError, match="no column 'prompt'; its columns are question, id"):
        prompt_rows(data({"question": "a", "id": 1}), word_tokenizer(), max_new_tokens=1, context=None)


def test_without_a_prompt_column_conversations_are_asked_for_their_last_answer():
    turns = [user("a"), assistant("b"), user("c"), assistant("d")]
    rows = data({"messages": turns}, {"messages": turns[:3]})
    prompts = prompt_rows(rows, word_tokenizer(template=TEMPLATE), max_new_tokens=1, context=None)
    assert [prompt.prompt for prompt in prompts] == [turns[:3], turns[:3]]
    assert prompts[0].columns == {"messages": turns}
    with pytest.raises(InputError, match="row 0: 'a' must be a list of messages"):
        prompt_rows(data({"messages": "a"}), word_tokenizer(template=TEMPLATE), max_new_tokens=1, context=None)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        (5, "must be a string or a list of messages"),
        ([{"content": "a"}], "'role' and 'content'"),
        ([user("a"), assistant("b")], "it is its turn again"),
    ],
)
def test_malformed_messages_are_refused(prompt: Any, text: str):
    with pytest.raises(InputError, match=text):
        prompt_rows(data({"prompt": prompt}), word_tokenizer(template=TEMPLATE), max_new_tokens=1, context=None)


def test_messages_without_a_chat_template_are_refused():
    with pytest.raises(InputError, match="row 0: messages need a chat template"):
        prompt_rows(data({"prompt": [user("a")]}), word_tokenizer(), max_new_tokens=1, context=None)


def test_what_a_template_refuses_is_the_users_error():
    template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match="row 0: the chat template refuses the conversation: roles must alternate"):
        prompt_rows(data({"prompt": [user("a")]}), word_tokenizer(template=template), max_new_tokens=1, context=None)


def test_completion_is_learned_with_its_eos_even_where_pad_is_eos():
    """Bug 6 of the peers: masks from `ids != pad` never train the end."""
    tokenizer = word_tokenizer()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    rows = data({"prompt": "a b", "completion": " c"}, {"prompt": "a", "completion": " b c d"})
    rollout = demonstration_rollout(rows, tokenizer, context=None)
    assert learned(rollout) == ([A, B, C, EOS], [C, EOS])
    assert learned(rollout, 1) == ([A, B, C, D, EOS], [B, C, D, EOS])
    assert rollout.costs.tolist() == [4, 5]
    assert rollout.sample_ids.tolist() == [0, 1]
    assert rollout.mask.tolist() == [[True, True, False, False], [True] * 4]
    assert rollout.inputs["actions"].tolist() == [[2, 3, 0, 0], [1, 2, 3, 4]]


def test_completion_that_has_its_eos_gets_no_second():
    rollout = demonstration_rollout(data({"prompt": "a", "completion": " b <eos>"}), word_tokenizer(), context=None)
    assert learned(rollout) == ([A, B, EOS], [B, EOS])


def test_completion_follows_the_tokens_of_its_prompt_where_a_word_would_span_both():
    rollout = demonstration_rollout(data({"prompt": "a", "completion": "b"}), word_tokenizer(), context=None)
    assert learned(rollout) == ([A, B, EOS], [B, EOS])


def test_text_is_learned_from_its_second_token():
    rollout = demonstration_rollout(data({"text": "a b c"}), word_tokenizer(), context=None)
    assert learned(rollout) == ([A, B, C, EOS], [B, C, EOS])


def test_text_after_bos_is_learned_whole():
    tokenizer = word_tokenizer(special="<bos> $A <eos>")
    assert learned(demonstration_rollout(data({"text": "a b"}), tokenizer, context=None)) == (
        [BOS, A, B, EOS],
        [A, B, EOS],
    )


def test_messages_are_learned_in_the_assistants_turns_to_their_ends():
    conversation = [user("a"), assistant("b c"), user("d"), assistant("a")]
    rollout = demonstration_rollout(data({"messages": conversation}), word_tokenizer(template=TEMPLATE), context=None)
    tokens, actions = learned(rollout)
    assert tokens[:7] == [USER, A, ASSISTANT, B, C, EOS, 13]
    assert actions == [B, C, EOS, A, EOS]
    assert tokens[-1] == EOS


def test_conversation_whose_template_writes_no_eos_gets_one():
    template = TEMPLATE.replace("<eos> ;", "")
    rollout = demonstration_rollout(
        data({"messages": [user("a"), assistant("b")]}), word_tokenizer(template=template), context=None
    )
    assert learned(rollout) == ([USER, A, ASSISTANT, B, EOS], [B, EOS])


def test_chat_completion_is_learned_and_not_the_turns_of_its_prompt():
    prompt = [user("a"), assistant("b"), user("c")]
    rollout = demonstration_rollout(
        data({"prompt": prompt, "completion": "d"}), word_tokenizer(template=TEMPLATE), context=None
    )
    assert learned(rollout)[1] == [D, EOS]


def test_template_that_rewrites_earlier_turns_is_refused():
    """As templates do that drop the reasoning of all turns but the last."""
    template = TEMPLATE.replace(
        "{{ message.content }}", "{{ message.content if loop.last or message.role == 'user' else 'g' }}"
    )
    rows = data({"messages": [user("a"), assistant("b"), user("c"), assistant("d")]})
    with pytest.raises(InputError, match="row 0: the chat template writes the messages before or up to message 1"):
        demonstration_rollout(rows, word_tokenizer(template=template), context=None)


def test_conversation_without_an_answer_is_refused():
    with pytest.raises(InputError, match="row 0: a conversation needs a turn of the assistant"):
        demonstration_rollout(data({"messages": [user("a")]}), word_tokenizer(template=TEMPLATE), context=None)


def test_demonstration_longer_than_the_context_is_refused_with_its_numbers():
    with pytest.raises(InputError, match="row 1 has 4 tokens, more than the model's context of 3"):
        demonstration_rollout(data({"text": "a"}, {"text": "a b c"}), word_tokenizer(), context=3)


def test_columns_that_fit_no_format_or_two_are_refused():
    with pytest.raises(InputError, match="columns label, which fit 0 of the formats"):
        demonstration_rollout(data({"label": 1}), word_tokenizer(), context=None)
    with pytest.raises(InputError, match="which fit 2 of the formats"):
        demonstration_rollout(data({"text": "a", "prompt": "a", "completion": "b"}), word_tokenizer(), context=None)


def test_tokenizer_without_an_end_is_refused_for_demonstrations():
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no end-of-sequence token"):
        demonstration_rollout(data({"text": "a"}), tokenizer, context=None)


def test_lm_inputs_come_from_lengths_alone():
    inputs, mask = lm_inputs([[A, EOS, B, EOS], [A, B]], [[2, 3], [1]])
    assert inputs["tokens"][0].tolist() == [A, EOS, B, EOS]
    assert inputs["lengths"].tolist() == [4, 2]
    assert inputs["actions"].tolist() == [[2, 3], [1, 0]]
    assert mask.tolist() == [[True, True], [True, False]]


@pytest.mark.slow  # importing datasets takes a second
def test_load_data_takes_a_data_set_by_name_and_refuses_its_unknown_splits(tmp_path: Path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write(tmp_path, ".jsonl")
    assert load_data(tmp_path).rows == ROWS
    with pytest.raises(InputError, match="split dev"):
        load_data(tmp_path, split="dev")


def test_a_label_of_zero_is_no_empty_cell() -> None:
    data = load_data([{"prompt": "a", "label": 0}, {"prompt": "b", "label": 1}])
    assert data.values("label") == [0, 1]
