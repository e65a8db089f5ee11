"""What a store's own past says for a plan: seconds, bytes, and which shared stages are there."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantarena.bench.machine import same_machine
from quantarena.bench.plan.dag import model_key
from quantarena.bench.plan.estimate import FLOOR, IMAGES, PROBE, RECORD
from quantarena.bench.schema import Row, Status
from quantarena.bench.spec import Cell
from quantarena.bench.storage.prepared import Prepared, all_prepared
from quantarena.bench.storage.stages import use_of

_NAMES = {
    "trajectory": RECORD,
    "images": IMAGES,
    "latents": IMAGES,
    "probe": PROBE,
    "floor": FLOOR,
    "seedfloor": FLOOR,
}
"""The shared stage that a cache entry belongs to, by the entry's own stage."""


@dataclass(frozen=True, slots=True)
class Past:
    """What is known of a results folder's stage cache.

    Attributes:
        shared: (seconds, bytes) by shared key and name of a stage, of entries that exist and fit
            the present code.
        made_here: a cell, the name and the seconds of each shared stage that this machine made.
        models: bytes of each model in the cache, by ``model_key``.
    """

    shared: Mapping[tuple[str, str], tuple[float, int]] = field(default_factory=dict)
    made_here: tuple[tuple[Cell, str, float], ...] = ()
    models: Mapping[str, int] = field(default_factory=dict)


def past(
    cache: Path, cells: Iterable[Cell], rows: Iterable[Row], stamp: Any, here: dict[str, Any]
) -> Past:
    """Look into a stage cache.

    Args:
        cache: its folder.
        cells: that are planned: only their models are looked for.
        rows: of all runs that use the cache.
        stamp: function from a cell to the hash of its inputs; "" is unknown.
        here: the fingerprint of this machine.
    """
    notes = all_prepared(cache)
    shared: dict[tuple[str, str], tuple[float, int]] = {}
    for note in notes:
        if note.there(cache) and note.stamp == _current(stamp, note.cell):
            for name, (seconds, size) in _parts(note).items():
                shared[note.cell.shared_key, name] = (seconds, size)
    made = (
        (note.cell, name, seconds)
        for note in notes
        if all(same_machine(dict(use.machine), here) for use in note.uses)
        for name, (seconds, _) in _parts(note).items()
    )
    return Past(shared, tuple(made), dict(_models(cache, cells, rows, stamp)))


def _current(stamp: Any, cell: Cell) -> str:
    """The stamp of a cell now; of one whose workload is not part of the plan, nothing."""
    try:
        return str(stamp(cell))
    except KeyError:
        return ""


def _parts(note: Prepared) -> dict[str, tuple[float, int]]:
    found: dict[str, tuple[float, int]] = {}
    for use in note.uses:
        if name := _NAMES.get(use.stage):
            seconds, size = found.get(name, (0.0, 0))
            found[name] = (seconds + use.seconds, size + use.size)
    return found


def _models(
    cache: Path, cells: Iterable[Cell], rows: Iterable[Row], stamp: Any
) -> Iterator[tuple[str, int]]:
    """The models of planned cells that another row of the same code left in the cache."""
    wanted = {model_key(cell): cell for cell in cells if cell.method != "fp"}
    for row in rows:
        key = row.stage_keys.get("quantize")
        if not key or row.status is not Status.OK:
            continue
        cell = wanted.get(model_key(row.cell))
        if cell is None or row.stage_keys.get("inputs") != _current(stamp, cell):
            continue
        for stage in ("quantize", "rival"):
            use = use_of(cache / f"{stage}-{key}")
            if use is not None:
                yield model_key(cell), use.size
