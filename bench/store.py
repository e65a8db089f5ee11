"""The row store of one results folder: one JSON file per cell, written whole or not at all.

``rows/<key>.json`` is the current row of a cell. Rows that it replaced, and attempts that did not
replace it, are kept in ``rows/earlier/``; files that are not intact rows go to ``rows/aside/``.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from quantarena.bench import files
from quantarena.bench.documents import clean_text, parse_json, read_text
from quantarena.bench.schema import Measurement, Row, Status
from quantarena.bench.spec import Cell, canonical_json, content_hash, content_key

OUTLINE = 0
"""Schema version of an outline (``storage/outlines.py``), which is no whole row."""
_DIGEST = "digest"
DIGITS = 32
"""Length of a digest in hexadecimal digits."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# With literal beginnings, which are searched for quickly.
_TINY = re.compile(rb"e-([0-9])(?=[,\]}])")
_SMALL = re.compile(rb"0\.0000([1-9])([0-9]*)(?=[,\]}])")
Warn = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Planned:
    """The plan of a results folder.

    Attributes:
        title: title of the page.
        command: command line that reproduces the folder.
        cells: every planned cell, in the order of the plan.
    """

    title: str
    command: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Store:
    """The rows of one results folder.

    Attributes:
        folder: the results folder, such as ``results/quick``.
        warn: called with one line for each file that cannot be read.
        foreign: whether the folder belongs to another run, whose files stay where they are.
    """

    folder: Path
    warn: Warn = lambda line: None
    foreign: bool = False

    @property
    def rows_folder(self) -> Path:
        """The folder of the row files."""
        return self.folder / "rows"

    def path(self, key: str) -> Path:
        """The file of the row with that key."""
        return self.rows_folder / f"{key}.json"

    def get(self, key: str) -> Row | None:
        """The current row of a cell, None when there is none or its file is damaged."""
        path = self.path(key)
        return self._read(path) if path.is_file() else None

    def rows(self) -> tuple[Row, ...]:
        """Every readable row, in the order of their keys; damaged files are moved aside.

        Those of a foreign folder stay: a run of it may be reading them now.
        """
        rows = (self._read(path) for path in sorted(self.rows_folder.glob("*.json")))
        return tuple(row for row in rows if row is not None)

    def put(self, row: Row, *, force: bool = False) -> Row:
        """Store a new attempt at a cell. It is on disk when this returns.

        The newest attempt becomes the current row, but an ok row is replaced only by another ok
        row, or with ``force``.

        Returns:
            The row as stored, with its attempt number.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        current = self.get(row.key)
        row = replace(storable(row), attempt=self._next_attempt(row.key, current))
        if current is not None and not force and holds(current, row):
            self.keep_earlier(row)
            return row
        if current is not None:
            self.keep_earlier(current)
        self._write(row, self.path(row.key))
        return row

    def keep_earlier(self, row: Row) -> None:
        """Keep a row in ``earlier``, beside others of the same attempt that differ from it."""
        self._write(row, self._earlier(row, signed_text(row).encode()))

    def amend(self, row: Row) -> Row:
        """Replace the current row by the same attempt with more in it, such as its latency."""
        row = storable(row)
        self._write(row, self.path(row.key))
        return row

    def lock(
        self, *, beside_others: bool = False
    ) -> contextlib.AbstractContextManager[files.FolderLock]:
        """A lock on this folder: alone, or beside other runs of it."""
        return files.locked(self.folder, beside_others=beside_others)

    def retire(self, rows: Iterable[Row]) -> None:
        """Move rows that are no longer wanted into ``earlier``; one that is gone is left out."""
        for row in rows:
            path = self.path(row.key)
            with files.plain_errors("move", path), contextlib.suppress(FileNotFoundError):
                earlier = self._earlier(row, path.read_bytes())
                earlier.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, earlier)

    def write_planned(self, planned: Planned) -> None:
        """Write the plan of this folder, for later calls of ``rank`` and ``render``."""
        # a cell at a time, so that memory for thousands of them is not taken at once
        cells = ",\n  ".join(json.dumps(dataclasses.asdict(cell)) for cell in planned.cells)
        head = json.dumps({"title": planned.title, "command": planned.command}, indent=1)
        text = f'{head[:-2]},\n "cells": [\n  {cells}\n ]\n}}\n'
        files.write_atomic(self.folder / "plan.json", text)

    def read_planned(self) -> Planned | None:
        """The plan of this folder, None when there is none or its file is damaged."""
        path = self.folder / "plan.json"
        try:
            return read_text(Planned, files.read_text(path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self.warn(f"{path} is damaged and ignored ({error})")
            return None

    def _earlier(self, row: Row, data: bytes) -> Path:
        """Where a row's bytes are kept: attempts of two machines may have the same number."""
        path = self.rows_folder / "earlier" / f"{row.key}.{row.attempt}.json"
        number = 1
        while path.is_file() and path.read_bytes() != data:
            number += 1
            path = path.with_name(f"{row.key}.{row.attempt}.{number}.json")
        return path

    def _next_attempt(self, key: str, current: Row | None) -> int:
        names = (self.rows_folder / "earlier").glob(f"{key}.*.json")
        numbers = [int(text) for path in names if (text := path.name.split(".")[1]).isdigit()]
        return 1 + max([current.attempt if current else 0, *numbers])

    def _write(self, row: Row, path: Path) -> None:
        if row.schema_version == OUTLINE:
            raise ValueError(f"an outline is no row: {row.cell.label}")
        files.write_atomic(path, signed_text(row))

    def _read(self, path: Path) -> Row | None:
        try:
            text = files.read_text(path)
        except OSError as error:
            self.warn(f"{path} cannot be read ({error.strerror}); its cell counts as missing")
            return None
        except ValueError:
            return self._aside(path, "it is no text")
        try:
            row = _intact(text) or parse_row(text)
        except ValueError as error:
            return self._aside(path, str(error))
        if row.key != path.stem:
            return self._aside(path, f"it holds the row {row.key}")
        return row

    def _aside(self, path: Path, reason: str) -> Row | None:
        if self.foreign:
            self.warn(f"{path} is no intact row ({reason}); it is left out of the estimate")
            return None
        target = self.rows_folder / "aside" / path.name
        number = 1
        while target.exists():
            number += 1
            target = target.with_name(f"{path.stem}.{number}.json")
        where = ""
        with contextlib.suppress(OSError):
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
            where = f"; moved to {target.relative_to(self.folder)}"
        self.warn(f"{path} is no intact row ({reason}); its cell counts as missing{where}")
        return None


def holds(current: Row, other: Row) -> bool:
    """Whether a row keeps its place whatever came later: it is ok, and the other one is not."""
    return current.status is Status.OK and other.status is not Status.OK


def signed_text(row: Row) -> str:
    """The text of a row's file, with the digest by which ``parse_row`` knows it as unedited."""
    document = row.to_dict()
    document[_DIGEST] = digest(document)
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _intact(text: str) -> Row | None:
    """A row that is as this version wrote it; None where ``parse_row`` has to look more closely.

    Of what a store wrote and nobody edited, the digest proves that ``parse_json`` would find no
    fault. orjson takes a tenth of json's time, and writes the canonical text of most rows once
    small floats are as Python writes them; where it does not, the digest does not fit.
    """
    if _SURROGATE.search(text) is not None:
        return None
    try:
        document = orjson.loads(text)
        stated = document.pop(_DIGEST, None) if isinstance(document, dict) else None
        canonical = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    except (ValueError, TypeError):
        return None
    canonical = _SMALL.sub(_with_exponent, _TINY.sub(rb"e-0\1", canonical))
    if not stated or stated != hashlib.sha256(canonical).hexdigest()[:DIGITS]:
        return None
    return Row.from_text(text, document, stated)


def _with_exponent(found: re.Match[bytes]) -> bytes:
    """``0.000012`` as Python writes it, ``1.2e-05``."""
    first, rest = found.groups()
    return first + (b"." + rest if rest else b"") + b"e-05"


def parse_row(text: str, *, signed: bool = True) -> Row:
    """Read a row file and check that nobody edited it.

    Args:
        text: content of the file.
        signed: whether a row without a digest is refused. A wrong digest always is.

    Raises:
        ValueError: truncated, foreign, edited or unfit for the schema; one line says which.
    """
    document = parse_json(text)
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    stated = document.pop(_DIGEST, None)
    canonical = canonical_json(document)
    if stated != content_hash(canonical, DIGITS) and (signed or stated is not None):
        raise ValueError("its digest does not fit, it was edited or written by another program")
    # A file in UTF-8 has lone surrogates only as escapes. To look for these is much faster.
    escaped = _SURROGATE.search(text) is not None
    if not escaped and stated and (row := Row.from_text(text, document, stated)) is not None:
        return row
    return Row.from_dict(_with_clean_text(document) if escaped else document)


def _with_clean_text(document: dict[str, Any]) -> dict[str, Any]:
    """The document with clean text everywhere but in its cell, whose text is in its key."""
    return {name: v if name in ("cell", "key") else clean_text(v) for name, v in document.items()}


def digest(document: dict[str, Any]) -> str:
    """Content hash of a row document; it changes with every number in it."""
    return content_key(document, DIGITS)


def storable(row: Row) -> Row:
    """The row without NaN, infinity and foreign types, none of which JSON can hold.

    A measurement that is not finite becomes 'not computed', with the reason. Anything else that
    is not finite or no plain data makes the row a failed one.
    """
    row = replace(
        row,
        reason=clean_text(row.reason),
        warnings=clean_text(row.warnings),
        measurements=tuple(_finite_measurement(m) for m in row.measurements),
    )
    bad = _not_finite(row.to_dict())
    reason = f"the result holds a number that is not finite: {bad}"
    if bad is None:
        try:
            canonical_json(row.to_dict())
            return row
        except (TypeError, ValueError) as error:
            reason = f"the result holds a value that is no plain data: {error}"
    return Row(row.cell, Status.FAILED, reason, started=row.started, finished=row.finished)


def _finite_measurement(m: Measurement) -> Measurement:
    if m.value is not None and not math.isfinite(m.value):
        return replace(m, value=None, low=None, high=None, reason=f"not finite ({m.value})")
    ends = {
        name: None
        for name in ("low", "high")
        if (end := getattr(m, name)) is not None and not math.isfinite(end)
    }
    return replace(m, **ends)  # type: ignore[arg-type]


def _not_finite(value: Any, where: str = "") -> str | None:
    """Dotted path of the first number that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return where
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list | tuple):
        children = enumerate(value)
    for name, child in children:
        place = _not_finite(child, f"{where}.{name}".lstrip("."))
        if place is not None:
            return place
    return None
