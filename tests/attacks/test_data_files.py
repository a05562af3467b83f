"""Odd data files: refused in one line that names file and row, or read as documented; never silently something else.

Expected: R refused, status 2, without a folder; A accepted; ? and R? either, but clean.
"""

from __future__ import annotations

import datetime
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf.lm.data import load_data
from tests.attacks import rig

pytestmark = pytest.mark.attack

W = [f"a {w}" for w in "abcdefgabcde"]
ROWS = [{"prompt": w} for w in W]


def jl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(r) + "\n" for r in rows).encode()


def written(folder: Path) -> list[tuple[str, str, str]]:
    """The files: name, what is expected, what it is."""
    made: list[tuple[str, str, str]] = []

    def add(name: str, content: bytes, expected: str, what: str) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        made.append((name, expected, what))

    def table(name: str, expected: str, what: str, **columns: Any) -> None:
        pq.write_table(pa.table(columns), folder / name)
        made.append((name, expected, what))

    good = jl(ROWS)
    add("good.jsonl", good, "A", "twelve rows")
    add("empty.jsonl", b"", "R", "0 bytes")
    add("blank.jsonl", b"\n\n  \n\t\n", "R", "blank lines only")
    add("bom.jsonl", b"\xef\xbb\xbf" + good, "A", "UTF-8 BOM")
    add("utf16.jsonl", good.decode().encode("utf-16"), "R", "UTF-16")
    add("utf32.jsonl", good.decode().encode("utf-32"), "R", "UTF-32")
    add("latin1.jsonl", good + b'{"prompt": "caf\xe9"}\n', "R", "latin-1 byte in the last line")
    add("crlf.jsonl", good.replace(b"\n", b"\r\n"), "A", "CRLF")
    add("cr.jsonl", good.replace(b"\n", b"\r"), "R", "old Mac CR")
    add("blanks.jsonl", good.replace(b"\n", b"\n\n"), "A", "blank lines between")
    add("no_newline.jsonl", good.rstrip(b"\n"), "A", "no newline at the end")
    add("truncated.jsonl", good[:-8], "R", "last line cut")
    add("array.jsonl", json.dumps(ROWS).encode(), "R", "a JSON array in one line")
    add("pretty.jsonl", json.dumps(ROWS, indent=1).encode(), "R", "a pretty JSON array")
    add("pretty_objects.jsonl", "\n".join(json.dumps(r, indent=1) for r in ROWS).encode(), "R", "pretty objects")
    add("two_in_line.jsonl", b'{"prompt": "a"}{"prompt": "b"}\n' + good, "R", "two objects in a line")
    add("commas.jsonl", good.replace(b"}\n", b"},\n"), "R", "commas at the ends of lines")
    add("comment.jsonl", b"# comment\n" + good, "R", "a comment")
    add("single_quotes.jsonl", good.replace(b'"', b"'"), "R", "single quotes")
    add("numbers.jsonl", jl([1, 2, 3] * 4), "R", "numbers as rows")
    add("strings.jsonl", jl(W), "R", "strings as rows")
    add("lists.jsonl", jl([[w] for w in W]), "R", "lists as rows")
    add("nulls.jsonl", jl([None] * 12), "R", "nulls as rows")
    add("null_prompt.jsonl", jl([*ROWS[:5], {"prompt": None}, *ROWS[5:]]), "R", "null prompt")
    add("missing_prompt.jsonl", jl([*ROWS[:5], {"text": "a"}, *ROWS[5:]]), "R", "one row without prompt")
    add("empty_prompt.jsonl", jl([*ROWS, {"prompt": ""}]), "R", "empty prompt")
    add("space_prompt.jsonl", jl([*ROWS, {"prompt": " \n\t\u3000"}]), "R", "white prompt")
    add("zero_width.jsonl", jl([*ROWS, {"prompt": "\u200b"}]), "?", "zero-width space")
    add("nul.jsonl", jl([*ROWS, {"prompt": "a\u0000b"}]), "?", "NUL in a prompt")
    add("surrogate.jsonl", good + b'{"prompt": "a \\ud800 b"}\n', "?", "a lone surrogate")
    add("control.jsonl", jl([*ROWS, {"prompt": "a \x1b[2J\x07 b"}]), "?", "terminal escapes")
    add("u2028.jsonl", '{"prompt": "a \u2028 b"}\n'.encode() + good, "A", "U+2028 inside a string")
    add("raw_tab.jsonl", b'{"prompt": "a\tb"}\n' + good, "R", "a raw tab in a string")
    add("int_prompt.jsonl", jl([*ROWS, {"prompt": 7}]), "R", "a number as prompt")
    add("all_int.jsonl", jl([{"prompt": i} for i in range(12)]), "R", "all numbers")
    add("bool_prompt.jsonl", jl([*ROWS, {"prompt": True}]), "R", "a bool as prompt")
    add("false_prompt.jsonl", jl([*ROWS, {"prompt": False}]), "R", "false as prompt")
    add("dict_prompt.jsonl", jl([*ROWS, {"prompt": {"role": "user", "content": "a"}}]), "R", "a message, not a list")
    add(
        "chat_no_template.jsonl",
        jl([{"prompt": [{"role": "user", "content": w}]} for w in W]),
        "R",
        "chat data, no template",
    )
    add("mixed.jsonl", jl([*ROWS, {"prompt": [{"role": "user", "content": "a"}]}]), "R", "strings and messages")
    add("list_of_strings.jsonl", jl([{"prompt": [w]} for w in W]), "R", "prompt a list of strings")
    add("empty_list.jsonl", jl([*ROWS, {"prompt": []}]), "R", "prompt an empty list")
    add("bad_role.jsonl", jl([{"prompt": [{"role": 3, "content": None}]} for w in W]), "R", "odd role and content")
    add("duplicate_keys.jsonl", b'{"prompt": "a", "prompt": "b"}\n' + good, "R?", "duplicate keys")
    add("nan.jsonl", b'{"prompt": "a", "x": NaN}\n' + good, "R?", "NaN literal in a column")
    add("inf.jsonl", b'{"prompt": "a", "x": Infinity, "y": -Infinity}\n' + good, "R?", "Infinity literal")
    add("huge_int.jsonl", b'{"prompt": "a", "x": ' + b"9" * 5000 + b"}\n" + good, "?", "an integer of 5,000 digits")
    add("1e999.jsonl", b'{"prompt": "a", "x": 1e999}\n' + good, "?", "1e999")
    add(
        "deep.jsonl",
        b'{"prompt": "a", "x": ' + b"[" * 100000 + b"]" * 100000 + b"}\n" + good,
        "R",
        "100,000 brackets deep",
    )
    add("huge_line.jsonl", jl([{"prompt": "a " * 5_000_000}, *ROWS]), "R", "a prompt of 10 MB")
    add("huge_column.jsonl", jl([{"prompt": "a", "x": "y" * 20_000_000}, *ROWS]), "A", "another column of 20 MB")
    add("many_columns.jsonl", jl([{"prompt": w} | {f"c{i}": i for i in range(3000)} for w in W]), "A", "3,000 columns")
    add("reserved.jsonl", jl([{"prompt": w, "completions": 1} for w in W]), "R", "a column completions")
    add("reserved2.jsonl", jl([{"prompt": w, "prompts": 1} for w in W]), "R", "a column prompts")
    add(
        "odd_columns.jsonl",
        jl([{"prompt": w, "": 1, "a b": 2, "class": 3, "self": 4, "<b>": 5} for w in W]),
        "A",
        "odd column names",
    )
    add("case.jsonl", jl([{"Prompt": w} for w in W]), "R", "Prompt, capital")
    add("space_key.jsonl", jl([{" prompt": w} for w in W]), "R", "space before the key")
    add("question.jsonl", jl([{"question": w} for w in W]), "R", "question instead of prompt")
    add(
        "both.jsonl",
        jl([{"prompt": w, "messages": [{"role": "user", "content": w}]} for w in W]),
        "A",
        "prompt and messages",
    )
    add("one_row.jsonl", jl(ROWS[:1]), "R", "one row")
    add("five.jsonl", jl(ROWS[:5]), "R", "fewer than held out + rollout")
    add("same.jsonl", jl(ROWS[:1] * 12), "A", "twelve equal rows")
    add("long_one.jsonl", jl([*ROWS, {"prompt": "a " * 60}]), "R", "one prompt too long")
    add("unknown_words.jsonl", jl([{"prompt": "zzz"}] * 12), "A", "only unknown words")
    add("no_tokens.jsonl", jl([*ROWS, {"prompt": "\u0301"}]), "?", "a combining accent")
    add("good.json", json.dumps(ROWS).encode(), "A", "JSON array")
    add("object.json", json.dumps({"data": ROWS}).encode(), "R", "a JSON object")
    add("lines.json", good, "R", "lines in .json")
    add("empty.json", b"", "R", "empty .json")
    add("empty_list.json", b"[]", "R", "empty list")
    add("columns.json", json.dumps({"prompt": W}).encode(), "R", "columns")
    add("nan.json", b'[{"prompt": "a", "x": NaN}]', "R", "NaN in .json, one row")
    csv = "prompt,x\n" + "".join(f"{w},{i}\n" for i, w in enumerate(W))
    add("good.csv", csv.encode(), "A", "CSV")
    add("bom.csv", b"\xef\xbb\xbf" + csv.encode(), "A", "CSV with BOM")
    add("crlf.csv", csv.replace("\n", "\r\n").encode(), "A", "CSV CRLF")
    add(
        "quoted.csv",
        ('prompt,x\n"a, b",1\n"say ""c""",2\n"d\ne",3\n' + csv.split("\n", 1)[1]).encode(),
        "A",
        "quotes, commas, newlines",
    )
    add("semicolon.csv", csv.replace(",", ";").encode(), "R", "semicolons")
    add("tab.csv", csv.replace(",", "\t").encode(), "R", "tabs")
    add("no_header.csv", csv.split("\n", 1)[1].encode(), "R", "no header")
    add("duplicate_header.csv", csv.replace("prompt,x", "prompt,prompt").encode(), "R", "duplicate header")
    add("ragged.csv", (csv + "a b,1,2,3\n").encode(), "R", "a row too wide")
    add("short_row.csv", (csv + "a b\n").encode(), "R", "a row too narrow")
    add("unclosed.csv", (csv + '"a b,1\n').encode(), "R", "an open quote")
    add("empty.csv", b"", "R", "empty CSV")
    add("header_only.csv", b"prompt,x\n", "R", "header only")
    add("latin1.csv", csv.encode() + b"caf\xe9,3\n", "R", "latin-1 CSV")
    add(
        "numbers.csv",
        ("prompt\n" + "".join(f"{i}\n" for i in range(12))).encode(),
        "?",
        "prompts that look like numbers",
    )
    add(
        "leading_zero.csv",
        ("prompt\n" + "".join(f"00{i}\n" for i in range(12))).encode(),
        "?",
        "prompts with leading zeros",
    )
    add(
        "dates.csv",
        ("prompt\n" + "".join(f"2020-01-{i + 10}\n" for i in range(12))).encode(),
        "?",
        "prompts that look like dates",
    )
    add("true.csv", ("prompt\n" + "true\n" * 12).encode(), "?", "prompts true")
    add(
        "null_word.csv",
        ("prompt,x\n" + "".join(f"{w},1\n" for w in [*W, "null", "NA", "nan"])).encode(),
        "?",
        "prompts null, NA, nan",
    )
    add("nul.csv", csv.encode() + b"a\0b,3\n", "?", "NUL in CSV")
    add("empty_cell.csv", (csv + ",3\n").encode(), "R", "an empty prompt cell")
    table("good.parquet", "A", "parquet", prompt=W)
    table("dictionary.parquet", "A", "dictionary-encoded", prompt=pa.array(W).dictionary_encode())
    table("large.parquet", "A", "large_string", prompt=pa.array(W, pa.large_string()))
    table("binary.parquet", "R", "binary prompts", prompt=pa.array([w.encode() for w in W]))
    table("ints.parquet", "R", "ints", prompt=list(range(12)))
    table("floats.parquet", "R", "floats with NaN", prompt=[float("nan")] * 12)
    table("timestamps.parquet", "A", "a timestamp column", prompt=W, t=[datetime.datetime(2020, 1, 1)] * 12)
    table("decimal.parquet", "A", "a decimal column", prompt=W, d=pa.array([1] * 12, pa.decimal128(10, 2)))
    table("bytes_column.parquet", "A", "a binary column", prompt=W, b=pa.array([b"\xff"] * 12))
    table("nan_column.parquet", "A", "a NaN column", prompt=W, x=[float("nan")] * 12)
    table("nested.parquet", "R", "messages, no template", prompt=[[{"role": "user", "content": w}] for w in W])
    table("map.parquet", "A", "a map column", prompt=W, m=pa.array([[("k", 1)]] * 12, pa.map_(pa.string(), pa.int64())))
    table("null_type.parquet", "R", "null column", prompt=pa.nulls(12))
    table("zero.parquet", "R", "no rows", prompt=pa.array([], pa.string()))
    add("garbage.parquet", b"PAR1 this is not parquet PAR1", "R", "garbage")
    content = (folder / "good.parquet").read_bytes()
    add("cut.parquet", content[: len(content) // 2], "R", "cut in half")
    flipped = bytearray(content)
    flipped[20] ^= 255
    add("flipped.parquet", bytes(flipped), "?", "a flipped byte")
    add("is_jsonl.parquet", good, "R", "JSONL named parquet")
    (folder / "link.jsonl").symlink_to(folder / "good.jsonl")
    made.append(("link.jsonl", "A", "symlink"))
    (folder / "broken_link.jsonl").symlink_to(folder / "nowhere.jsonl")
    made.append(("broken_link.jsonl", "R", "broken symlink"))
    (folder / "loop.jsonl").symlink_to(folder / "loop.jsonl")
    made.append(("loop.jsonl", "R", "symlink to itself"))
    (folder / "dir.jsonl").mkdir()
    made.append(("dir.jsonl", "R", "a directory"))
    os.mkfifo(folder / "fifo.jsonl")
    made.append(("fifo.jsonl", "R", "a FIFO"))
    (folder / "good.jsonl.gz").write_bytes(gzip.compress(good))
    made.append(("good.jsonl.gz", "R", "gz"))
    add("gz.jsonl", gzip.compress(good), "R", "gz named jsonl")
    add("good.JSONL", good, "?", "upper-case suffix")
    add("good.ndjson", good, "R", "ndjson")
    add("good.txt", good, "R", "txt")
    add("good", good, "R", "no suffix")
    add("with space/дан ные.jsonl", good, "A", "spaces and Cyrillic in the path")
    (folder / "secret.jsonl").write_bytes(good)
    return made


# What some of the files hold, to the letter: nothing was taken for a number, a date, a truth or a gap.
PROMPTS = {
    "good.csv": W,
    "bom.csv": W,
    "crlf.csv": W,
    "quoted.csv": ["a, b", 'say "c"', "d\ne", *W],
    "leading_zero.csv": [f"00{i}" for i in range(12)],
    "numbers.csv": [str(i) for i in range(12)],
    "dates.csv": [f"2020-01-{i + 10}" for i in range(12)],
    "true.csv": ["true"] * 12,
    "null_word.csv": [*W, "null", "NA", "nan"],
    "good.jsonl": W,
    "bom.jsonl": W,
    "crlf.jsonl": W,
    "blanks.jsonl": W,
    "no_newline.jsonl": W,
    "u2028.jsonl": ["a \u2028 b", *W],
    "good.json": W,
    "good.parquet": W,
    "dictionary.parquet": W,
    "large.parquet": W,
}


def test_what_is_read_is_what_the_file_says(tmp_path: Path) -> None:
    tally = rig.Tally("data files read to the letter")
    written(tmp_path)
    for name, prompts in PROMPTS.items():
        read = load_data(str(tmp_path / name)).values("prompt")
        tally.add("equal" if read == prompts else "other", good=read == prompts, what=(name, read[:15]))
    tally.require_all_good()


def test_every_data_file_is_read_right_or_refused(jobs: dict[str, rig.Job], tmp_path: Path) -> None:
    files, here, tally = tmp_path / "files", tmp_path / "here", rig.Tally("data files")
    files.mkdir()
    job = jobs["lm"].with_options("--improve.train.updates", "1")
    for name, expected, what in written(files):
        done = rig.attempt(job.with_options("--data", str(files / name)), rig.fresh(here), resume=False, seconds=40)
        refused = done.status == 2 and not done.traceback and not (here / "run").exists()
        good = {"R": refused, "A": done.status == 0}.get(expected, refused or done.status == 0)
        outcome = "read" if done.status == 0 else "refused in one line" if refused else "neither"
        tally.add(outcome, good=good, what=(expected, name, what, done.status, done.last[:200]))
    tally.require_all_good()
