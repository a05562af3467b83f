"""Files of data: every cell and character as it stands there, or refused with the line or row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rlhf.errors import InputError
from rlhf.lm.data import load_data


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


CELLS = [
    "00501",
    "1.10",
    "NA",
    "null",
    "true",
    "1e5",
    "2020-01-01",
    "-0",
    "+1",
    "9" * 25,
    " a ",
    "",
    "é\u2028",
    "x" * 200_000,
]


def test_csv_keeps_every_cell_as_the_text_that_it_is(tmp_path: Path):
    rows = [{"prompt": "a", "answer": cell} for cell in CELLS]
    table = written(tmp_path, "rows.csv", "prompt,answer\n" + "".join(f"a,{cell}\n" for cell in CELLS))
    lines = written(tmp_path, "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert load_data(table).rows == load_data(lines).rows == rows


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfprompt,x\na,1\nb,2\n",
        b"prompt,x\r\na,1\r\nb,2\r\n",
        b"prompt,x\ra,1\rb,2",
        b"prompt,x\n\na,1\n\n\nb,2\n\n",
        b'"prompt","x"\n"a",1\n"b","2"',
    ],
)
def test_csv_is_read_with_a_mark_of_its_order_any_ends_of_lines_and_blank_lines(tmp_path: Path, content: bytes):
    assert load_data(written(tmp_path, "rows.csv", content)).rows == [
        {"prompt": "a", "x": "1"},
        {"prompt": "b", "x": "2"},
    ]


def test_csv_cells_hold_commas_quotes_and_ends_of_lines(tmp_path: Path):
    path = written(tmp_path, "rows.CSV", 'prompt,x\n"a, b","say ""c""\nd"\n')
    assert load_data(path).rows == [{"prompt": "a, b", "x": 'say "c"\nd'}]


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("rows.csv", "prompt,x\na,1\nb,1,2\n", "line 3: 3 cells under 2 columns"),
        ("rows.csv", "prompt,x\na,1\nb\n", "line 3: 1 cells under 2 columns"),
        ("rows.csv", 'prompt,x\n"a,1\n', "line 2: not CSV"),
        ("rows.csv", 'prompt,x\n"a" b,1\n', "line 2: not CSV"),
        ("rows.csv", "prompt,x,prompt\na,1,b\n", "the header has 'prompt' more than once"),
        ("rows.csv", "prompt,x\na,1\ncaf\xe9,2\n".encode("latin-1"), "line 3: not UTF-8 text"),
        ("rows.csv", "prompt,x\na,1\n".encode("utf-16"), "line 1: not UTF-8 text"),
        ("rows.csv", "prompt,x\na,1\n".encode("utf-16-le"), "line 1: there is a NUL"),
        ("rows.csv", "prompt,x\na\0b,1\n", "line 2: there is a NUL"),
        ("rows.csv", "", "has no rows"),
        ("rows.csv", "prompt,x\n", "has no rows"),
        ("rows.jsonl", "", "has no rows"),
        ("rows.jsonl", '{"prompt": "a"}\n{"prompt": "caf\xe9"}\n'.encode("latin-1"), "line 2: not UTF-8 text"),
        ("rows.jsonl", '{"prompt": "a"}\n{"prompt": "b", "prompt": "c"}\n', "line 2 has 'prompt' more than once"),
        ("rows.jsonl", '{"prompt": "a", "x": {"y": 1, "y": 2}}\n', "line 1 has 'y' more than once"),
        ("rows.jsonl", '{"prompt": "a", "x": ' + "9" * 5000 + "}\n", "line 1: JSON that cannot be read"),
        ("rows.jsonl", '{"prompt": "a", "x": ' + "[" * 100_000 + "]" * 100_000 + "}\n", "line 1: JSON that cannot"),
        ("rows.json", "", "not JSON"),
        ("rows.parquet", b"PAR1 this is no parquet PAR1", "cannot be read"),
        ("rows.parquet", b"", "cannot be read"),
    ],
)
def test_file_that_would_be_read_wrongly_is_refused_with_its_line(
    tmp_path: Path, name: str, content: str | bytes, text: str
):
    with pytest.raises(InputError, match=text):
        load_data(written(tmp_path, name, content))


def test_parquet_with_two_columns_of_one_name_is_refused(tmp_path: Path):
    columns = [pyarrow.array(["a"]), pyarrow.array(["b"])]
    pyarrow.parquet.write_table(pyarrow.table(columns, names=["prompt", "prompt"]), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match="'prompt' more than once"):
        load_data(tmp_path / "rows.parquet")


@pytest.mark.parametrize("position", range(4, 100, 7))
def test_damaged_parquet_is_read_or_refused(tmp_path: Path, position: int):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a", "b"]}), path)
    content = bytearray(path.read_bytes())
    content[-position] ^= 255
    path.write_bytes(content)
    try:
        load_data(path)
    except InputError as error:
        assert "rows.parquet" in str(error)  # noqa: PT017


@pytest.mark.parametrize("name", ["a" * 5000 + ".jsonl", "rows.jsonl/", "nowhere\0.csv"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path, name: str):
    (tmp_path / "rows.jsonl").mkdir()
    with pytest.raises(InputError, match="there is no data file"):
        load_data(tmp_path / name)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "cut \ud83d here"},
        {"prompt": "a", "answer": "\udc00"},
        {"prompt": [{"role": "user", "content": "\ud83d"}]},
        {"prompt": "a", "deep": {"list": [["\ud83d"]]}},
        {"prompt": "a", "\ud83d": 1},
    ],
)
def test_half_a_character_is_refused_with_its_row(tmp_path: Path, row: dict[str, Any]):
    path = written(tmp_path, "rows.jsonl", json.dumps({"prompt": "fine"}) + "\n" + json.dumps(row) + "\n")
    for source in (path, [{"prompt": "fine"}, row]):
        with pytest.raises(InputError, match="row 1 holds half a character"):
            load_data(source)


def test_whole_characters_beyond_16_bits_are_read(tmp_path: Path):
    path = written(tmp_path, "rows.jsonl", '{"prompt": "\\ud83d\\ude00 \\u0000"}\n')
    assert load_data(path).rows == [{"prompt": "\U0001f600 \0"}]


def test_columns_are_called_by_strings():
    with pytest.raises(InputError, match="a column called 1"):
        load_data([{"prompt": "a", 1: "b"}])
