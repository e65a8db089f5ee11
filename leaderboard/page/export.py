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

ENDS = ("", ".low", ".high", ".n")
"""Endings of the four columns of a measurement, after its name."""


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

    def value(self, row: Row) -> Any:
        """The cell of this column for a row; None where a part of the path is None."""
        value: Any = row
        for name in self.path:
            value = None if value is None else getattr(value, name)
        return canonical_json(value) if self.json and value is not None else value


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


def flat_row(row: Row) -> dict[str, object]:
    """One row as scalars; mappings and lists become canonical JSON."""
    flat: dict[str, object] = {column.name: column.value(row) for column in COLUMNS}
    flat["seconds_total"] = sum(row.seconds.values())
    for figure in row.measurements:
        numbers = (figure.value, figure.low, figure.high, figure.n)
        flat |= {figure.name + end: number for end, number in zip(ENDS, numbers, strict=True)}
    flat["schema_version"] = row.schema_version
    return flat


def rows_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """All rows: fixed columns first, then the measurements by name, then the schema version."""
    names = sorted({figure.name for row in rows for figure in row.measurements})
    measured = [name + end for name in names for end in ENDS]
    columns = [*FIXED_COLUMNS, *measured, "schema_version"]
    frame = pd.DataFrame([flat_row(row) for row in rows], columns=columns, dtype=object)
    # Each column has one type whatever the rows hold, also where it is empty.
    kinds = {column.name: column.dtype for column in COLUMNS} | {"schema_version": "Int64"}
    kinds |= dict.fromkeys(["seconds_total", *measured], "Float64")
    return frame.astype(kinds)


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
