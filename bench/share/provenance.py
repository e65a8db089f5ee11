"""Where the rows of a joined results folder come from, and what was checked. Plain data, no torch.

``merged.json`` beside ``rows/`` holds it. ``rows/elsewhere/KEY.N.json`` holds each row that lost
its cell to another one, whole and as it came: its times stay on the page.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from quantarena.bench.documents import parse_json, read
from quantarena.bench.files import read_text, write_atomic

FILE = "merged.json"
VERSION = 1
ELSEWHERE = "elsewhere"
"""Folder below ``rows`` of the rows that lost their cell to another one."""
SOURCE = "source"
"""Key of a row's ``machine`` that names the submission which it came in."""


class Standing(StrEnum):
    """What was found of a row.

    Some figures stay their sender's own word even where a row is verified: ``Origin.own_word``.

    ``verified``: its settings are those of this package, its files are those that it states, its
    numbers follow from them, and the sampled images were scored again. ``self-reported``: nothing
    contradicts it, and something of that could not be checked. ``refused``: something contradicts.
    """

    VERIFIED = "verified"
    SELF_REPORTED = "self-reported"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the row of a cell comes from.

    Attributes:
        source: name of its source.
        digest: of the row as it came.
        standing: what was found of it.
        reasons: why it is self-reported; empty where it is verified.
        notes: what differs from this package without contradicting it.
        rescored: numbers of the images that were scored again.
        own_word: figures that nobody but its sender has computed, verified or not.
    """

    source: str
    digest: str
    standing: Standing
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    rescored: tuple[int, ...] = ()
    own_word: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """One results folder or submission that was joined.

    Attributes:
        name: of the source, which no other one has.
        kind: ``results`` or ``submission``.
        machines: on which its rows were measured.
        rows: number of rows in it.
        standings: number of its rows by what was found of them.
        package: versions of quantarena that wrote it.
    """

    name: str
    kind: str
    machines: tuple[str, ...]
    rows: int
    standings: dict[str, int]
    package: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two rows of one cell, from two sources.

    Attributes:
        key: of the cell.
        label: of the cell.
        kept: source of the row that stands in the cell.
        other: source of the row in ``rows/elsewhere``.
        why: the part of the rule that decided.
    """

    key: str
    label: str
    kept: str
    other: str
    why: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that was not joined.

    Attributes:
        source: name of its source.
        row: its key or file name.
        reason: why, in one line.
    """

    source: str
    row: str
    reason: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """All that ``merged.json`` says.

    Attributes:
        version: of this document.
        rule: how conflicts are decided, in words.
        share: share of the images that were scored again.
        sources: in the order of the command line.
        origins: by the key of the row.
        conflicts: rows of one cell.
        left_out: rows that were not joined.
    """

    version: int
    rule: str
    share: float
    sources: tuple[Source, ...]
    origins: dict[str, Origin] = field(default_factory=dict)
    conflicts: tuple[Conflict, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


def write_provenance(folder: Path, provenance: Provenance) -> None:
    """Write ``merged.json``."""
    text = json.dumps(dataclasses.asdict(provenance), indent=1)
    write_atomic(folder / FILE, text + "\n")


def read_provenance(folder: Path) -> Provenance | None:
    """What a results folder says of its sources; None where it is of one run.

    Raises:
        ValueError: the file is damaged or of another version; one line says which.
    """
    try:
        document = parse_json(read_text(folder / FILE))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{FILE} cannot be read: {error.strerror or error}") from None
    version = document.get("version") if isinstance(document, dict) else None
    if version != VERSION:
        raise ValueError(f"{FILE} has version {version!r}, but this quantarena reads {VERSION}")
    return read(Provenance, document)
