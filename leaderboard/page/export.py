"""Rows as one flat table with fixed columns, for CSV, Parquet and spreadsheets."""

import dataclasses
import os
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from quantarena.bench.files import plain_errors, write_atomic
from quantarena.bench.schema import Row
from quantarena.bench.spec import canonical_json

ENDS = {"": "value", ".low": "low", ".high": "high", ".n": "n"}
"""Endings of the four columns of a measurement after its name, and the fields that they hold."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column that every table has.

    Attributes:
        name: heading.
        path: fields from the row to the value, such as ``("latency", "ratio")``.
        dtype: pandas type; each of them knows missing values.
        json: the value is a mapping or a list, written as canonical JSON.
    """

    name: str
    path: tuple[str, ...]
    dtype: str
    json: bool = False


def _columns(kind: type, prefix: str = "", path: tuple[str, ...] = ()) -> Iterator[Column]:
    """The columns of a dataclass by the types of its fields, those of its parts under a prefix."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint, place = _without_none(hints[field.name]), (*path, field.name)
        name = prefix + field.name
        if place in (("measurements",), ("schema_version",)):  # these come after all others
            continue
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            # The fields of a cell are what people sort and filter by: they have plain names.
            yield from _columns(hint, "" if field.name == "cell" else f"{name}_", place)
        elif isinstance(hint, type) and issubclass(hint, str):
            yield Column(name, place, "string")
        elif hint is int:
            yield Column(name, place, "Int64")
        elif hint is float:
            yield Column(name, place, "Float64")
        else:
            yield Column(f"{name}_json", place, "string", json=True)


def _without_none(hint: Any) -> Any:
    """``T`` of ``T | None``; any other type as it is."""
    if isinstance(hint, types.UnionType):
        (hint,) = [part for part in typing.get_args(hint) if part is not type(None)]
    return hint


COLUMNS = (Column("key", ("key",), "string"), *_columns(Row))
FIXED_COLUMNS = (*(column.name for column in COLUMNS), "seconds_total")


def rows_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """All rows: fixed columns first, then the measurements by name, then the schema version.

    A column is read as a whole, and has one type whatever the rows hold, also where it is empty.
    Mappings and lists become canonical JSON.
    """
    parts: dict[tuple[str, ...], list[Any]] = {(): list(rows)}
    found: dict[str, Any] = {}
    for column in COLUMNS:
        values = _part(column.path, parts)
        if column.json:
            values = [None if value is None else canonical_json(value) for value in values]
        kind: Any = column.dtype
        found[column.name] = pd.array(values, dtype=kind)
    seconds = [sum(spent.values()) for spent in _part(("seconds",), parts)]
    found["seconds_total"] = pd.array(seconds, dtype="Float64")
    figures = [{figure.name: figure for figure in row.measurements} for row in rows]
    for name in sorted(set().union(*figures)):
        own = [of_row.get(name) for of_row in figures]
        for end, field in ENDS.items():
            values = [None if figure is None else getattr(figure, field) for figure in own]
            found[name + end] = pd.array(values, dtype="Float64")
    found["schema_version"] = pd.array([row.schema_version for row in rows], dtype="Int64")
    return pd.DataFrame(found)


def _part(path: tuple[str, ...], parts: dict[tuple[str, ...], list[Any]]) -> list[Any]:
    """That field of each row; None where a part of the path is. ``parts`` keeps what was read."""
    if path not in parts:
        *place, name = path
        whole = _part(tuple(place), parts)
        parts[path] = [None if value is None else getattr(value, name) for value in whole]
    return parts[path]


def export_tables(rows: Sequence[Row], folder: Path) -> tuple[Path, Path]:
    """Write ``rows.csv`` and ``rows.parquet``, each whole or not at all."""
    frame = rows_frame(rows)
    csv, parquet = folder / "rows.csv", folder / "rows.parquet"
    write_atomic(csv, frame.to_csv(index=False, lineterminator="\n"))
    fresh = folder / f".rows.{os.getpid()}.parquet"
    with plain_errors("write", parquet):
        try:
            frame.to_parquet(fresh, index=False)
            os.replace(fresh, parquet)
        finally:
            fresh.unlink(missing_ok=True)
    return csv, parquet
