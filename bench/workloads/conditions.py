"""Reads prompts and class numbers from text, CSV, TSV and JSON files. No torch."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from quantarena.bench.documents import parse_json
from quantarena.bench.errors import UserError, did_you_mean
from quantarena.bench.files import read_text

DEFAULT_COLUMNS = ("prompt", "caption", "text", "class", "label", "class_id")
"""The columns that are looked for, in any case, if the user names none."""
_RANGE = re.compile(r"(\d{1,9})-(\d{1,9})")
MOST_CLASSES = 1_000_000


def read_conditions(file: Path, kind: str, column: str = "") -> tuple[str, ...]:
    """Read the conditions in a file, in its order.

    ``.csv`` and ``.tsv`` files have a header. A ``.json`` file holds a list of values or objects,
    or an object with such a list in it (``annotations`` of COCO). Other files have one condition a
    line. An empty entry of a table or a list is an empty prompt; blank lines are left out.

    Args:
        file: the file.
        kind: ``prompt`` or ``class``.
        column: column of a table; "" for the first of ``DEFAULT_COLUMNS`` that is there.

    Raises:
        UserError: the file cannot be read or is empty, has no such column, or a class is no
            number.
    """
    try:
        text = read_text(file).removeprefix("\ufeff")
    except OSError as error:
        raise UserError(
            f"conditions file {file} cannot be read: {error.strerror or error}"
        ) from None
    except ValueError:
        raise UserError(f"conditions file {file} is no UTF-8 text") from None
    suffix = file.suffix.lower()
    if suffix in (".csv", ".tsv"):
        values = _table(file, text, "\t" if suffix == ".tsv" else ",", column)
    elif suffix == ".json":
        values = _json(file, text, column)
    else:
        if column:
            raise UserError(f"conditions file {file} is no table: it has no column {column!r}")
        values = [line for line in text.splitlines() if line.strip()]
    # An empty caption stays: without it, every later one would belong to another image.
    conditions = tuple(value.strip() for value in values)
    if not any(conditions):
        raise UserError(f"conditions file {file} holds no {kind}: write one a line")
    if kind == "class":
        for value in conditions:
            if not value.isdecimal():
                raise UserError(f"conditions file {file}: {value!r} is no class number")
    return conditions


def class_range(text: str) -> tuple[str, ...]:
    """The class numbers of a range such as ``0-999``, both ends included; () for other texts.

    Raises:
        UserError: the range is empty or has more than a million classes.
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
    try:
        names = [name for name in reader.fieldnames or () if name]
        chosen = _column(file, names, column)
        return ["" if row[chosen] is None else str(row[chosen]) for row in reader]
    except csv.Error as error:
        raise UserError(f"conditions file {file}, line {reader.line_num}: {error}") from None


def _column(file: Path, names: Sequence[str], column: str) -> str:
    if column:
        if column in names:
            return column
        raise UserError(f"{file} has no column {column!r}: {did_you_mean(column, names)}")
    for default in DEFAULT_COLUMNS:
        for name in names:
            if name.strip().lower() == default:
                return name
    raise UserError(
        f"{file} has the columns {', '.join(names) or '(none)'}: say which one with column=NAME"
    )


def _json(file: Path, text: str, column: str) -> list[str]:
    try:
        data = parse_json(text)
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
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"conditions file {file} mixes objects and other values")
    found = [row.get(chosen) for row in rows]
    return [str(value) for value in _plain(file, ["" if v is None else v for v in found])]


def _lists(data: Any) -> list[list[Any]]:
    """The lists among an object's values; one of them holds COCO's annotations."""
    values: Iterable[Any] = data.values() if isinstance(data, dict) else ()
    return [value for value in values if isinstance(value, list) and value]


def _is_column(rows: list[Any], column: str) -> bool:
    if not rows or not isinstance(rows[0], dict):
        return False
    names = {str(name).lower() for name in rows[0]}
    return column in rows[0] if column else bool(names & set(DEFAULT_COLUMNS))


def _plain(file: Path, rows: list[Any]) -> list[Any]:
    for row in rows:
        if isinstance(row, bool) or not isinstance(row, str | int):
            raise UserError(f"conditions file {file}: {row!r} is no prompt and no class number")
    return rows
