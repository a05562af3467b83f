"""Rows as they come from files and from the hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf.errors import InputError


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


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}).") from error


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error}).") from error


def _read_table(path: Path) -> list[Any]:
    import pyarrow
    from pyarrow import csv, parquet

    options = csv.ParseOptions(newlines_in_values=True)
    try:
        table = csv.read_csv(path, parse_options=options) if path.suffix == ".csv" else parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    return table.to_pylist()


READERS: dict[str, Callable[[Path], list[Any]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_table,
    ".parquet": _read_table,
}


def read_hub(name: str, split: str, subset: str | None) -> list[Any]:
    import datasets

    try:
        return datasets.load_dataset(name, subset, split=split).to_list()
    except (FileNotFoundError, ValueError, ConnectionError) as error:
        raise InputError(f"data set {name} (split {split}, subset {subset}) cannot be loaded: {error}") from error
