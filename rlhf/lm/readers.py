"""Rows as they come from files and from the hub."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf.errors import InputError
from rlhf.lm.hub import require_hub


def _read_jsonl(path: Path) -> list[Any]:
    rows = []
    # Not splitlines: JSON strings may hold other line separators, such as U+2028, as they are.
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            rows.append(_parse(line, f"{path}, line {number}"))
    return rows


def _read_json(path: Path) -> list[Any]:
    rows = _parse(_read_text(path), str(path))
    if not isinstance(rows, list):
        raise InputError(f"{path} holds {type(rows).__name__}; it must hold a list of rows, or end in .jsonl.")
    return rows


def _read_csv(path: Path) -> list[Any]:
    """Every cell as the text that it is: a CSV has no types, and 00501, 1.10 or NA may mean just that."""
    text = _read_text(path)
    # The module refuses cells above 131,072 characters unless it is told otherwise.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Any] = []
    header: list[str] | None = None
    try:
        for cells in lines:
            if header is None:
                header = cells
                _require_distinct(header, f"{path}: the header")
            elif cells:
                if len(cells) != len(header):
                    raise InputError(
                        f"{path}, line {lines.line_num}: {len(cells)} cells under {len(header)} columns; give each row "
                        "a cell for each column, and quote cells that hold commas."
                    )
                rows.append(dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise InputError(f"{path}, line {lines.line_num}: not CSV ({error}).") from error
    return rows


def _read_text(path: Path) -> str:
    content = _read_bytes(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line}: not UTF-8 text ({error}); save the file as UTF-8.") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise InputError(f"{path}, line {line}: there is a NUL, which no text holds; save the file as UTF-8 text.")
    return text


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _object(pairs, where))
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error}).") from error
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        # Numbers of thousands of digits, and thousands of brackets.
        raise InputError(f"{where}: JSON that cannot be read ({error}).") from error


def _object(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        _require_distinct([name for name, _ in pairs], where)
    return found


def _read_parquet(path: Path) -> list[Any]:
    import pyarrow
    from pyarrow import parquet

    try:
        _require_distinct(parquet.read_schema(path).names, str(path))
        return parquet.read_table(path).to_pylist()
    except InputError:
        raise
    # Damaged files raise OSError or ValueError as well.
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error


def _require_distinct(names: Iterable[str], where: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(
            f"{where} has {twice[0]!r} more than once, and only one could be kept; rename or drop the others."
        )


READERS: dict[str, Callable[[Path], list[Any]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def read_hub(name: str, split: str, subset: str | None) -> list[Any]:
    import datasets

    if not Path(name).is_dir():
        require_hub(name, "dataset")
    try:
        return datasets.load_dataset(name, subset, split=split).to_list()
    except (FileNotFoundError, ValueError, ConnectionError) as error:
        raise InputError(f"data set {name} (split {split}, subset {subset}) cannot be loaded: {error}") from error


def require_characters(row: Mapping[str, Any], where: str) -> None:
    """Refuses half a character anywhere in a row: no tokenizer takes it, and no file could hold it."""
    waiting: list[Any] = [row]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError as error:
                shown = value[max(error.start - 20, 0) : error.start + 20]
                raise InputError(
                    f"{where} holds half a character, as text that was cut may have it: {shown!r}; mend the row or "
                    "leave it out."
                ) from error
