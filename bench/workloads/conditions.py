"""Prompts and class numbers from files: text, CSV, TSV, JSON. No torch."""

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from quantarena.bench.errors import UserError, did_you_mean

USUAL = ("prompt", "caption", "text", "class", "label", "class_id")
"""Columns looked for, whatever their case, where none is named."""
_RANGE = re.compile(r"(\d{1,9})-(\d{1,9})")
MOST_CLASSES = 1_000_000


def read_conditions(file: Path, kind: str, column: str = "") -> tuple[str, ...]:
    """The conditions in a file, in its order.

    ``.csv`` and ``.tsv`` have a header; ``.json`` holds a list of values or of objects, or an
    object with such a list in it (``annotations`` of COCO); other files have one condition a line.

    Args:
        file: to read.
        kind: ``prompt`` or ``class``.
        column: of a table; "" for the first of ``USUAL`` that is there.

    Raises:
        UserError: it cannot be read, holds nothing, has no such column, or a class is no number.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f"conditions file {file} cannot be read: {error.strerror or error}"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"conditions file {file} is no UTF-8 text") from None
    suffix = file.suffix.lower()
    if suffix in (".csv", ".tsv"):
        values = _table(file, text, "\t" if suffix == ".tsv" else ",", column)
    elif suffix == ".json":
        values = _json(file, text, column)
    else:
        values = text.splitlines()
    found = tuple(value.strip() for value in values if value.strip())
    if not found:
        raise UserError(f"conditions file {file} holds no {kind}: write one a line")
    if kind == "class":
        for value in found:
            if not value.isdecimal():
                raise UserError(f"conditions file {file}: {value!r} is no class number")
    return found


def class_range(text: str) -> tuple[str, ...]:
    """``0-999`` as its class numbers, both ends included; empty for anything else.

    Raises:
        UserError: the range is empty or absurd.
    """
    match = _RANGE.fullmatch(text)
    if match is None:
        return ()
    first, last = (int(number) for number in match.groups())
    if not first <= last < first + MOST_CLASSES:
        raise UserError(f"classes {text}: the range must go up")
    return tuple(str(number) for number in range(first, last + 1))


def _table(file: Path, text: str, delimiter: str, column: str) -> list[str]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    names = [name for name in reader.fieldnames or () if name]
    chosen = _column(file, names, column)
    try:
        return [row[chosen] or "" for row in reader]
    except csv.Error as error:
        raise UserError(f"conditions file {file}, line {reader.line_num}: {error}") from None


def _column(file: Path, names: Sequence[str], column: str) -> str:
    if column:
        if column in names:
            return column
        raise UserError(f"{file} has no column {column!r}: {did_you_mean(column, names)}")
    for usual in USUAL:
        for name in names:
            if name.strip().lower() == usual:
                return name
    raise UserError(
        f"{file} has the columns {', '.join(names) or '(none)'}: say which one with column=NAME"
    )


def _json(file: Path, text: str, column: str) -> list[str]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise UserError(f"conditions file {file} is no JSON: {error}") from None
    lists = [data] if isinstance(data, list) else _lists(data)
    rows = next((rows for rows in lists if _is_column(rows, column)), None)
    if rows is None and lists:
        rows = lists[0]
    if not rows:
        raise UserError(f"conditions file {file} holds no list of prompts or classes")
    if not isinstance(rows[0], dict):
        return [str(value) for value in _plain(file, rows)]
    chosen = _column(file, list(rows[0]), column)
    return [str(row.get(chosen, "")) for row in rows if isinstance(row, dict)]


def _lists(data: Any) -> list[list[Any]]:
    """Lists in an object, those of COCO's annotations among its images and licences."""
    values: Iterable[Any] = data.values() if isinstance(data, dict) else ()
    return [value for value in values if isinstance(value, list) and value]


def _is_column(rows: list[Any], column: str) -> bool:
    if not rows or not isinstance(rows[0], dict):
        return False
    names = {str(name).lower() for name in rows[0]}
    return column in rows[0] if column else bool(names & set(USUAL))


def _plain(file: Path, rows: list[Any]) -> list[Any]:
    for row in rows:
        if isinstance(row, bool) or not isinstance(row, str | int):
            raise UserError(f"conditions file {file}: {row!r} is no prompt and no class number")
    return rows
