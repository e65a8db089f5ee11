"""Joins results folders and submissions into one results folder. No torch before it re-scores.

The new folder has the usual layout, so that every verb which reads a run reads it too.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from quantarena.bench.content import bytes_sha256
from quantarena.bench.documents import clean_text
from quantarena.bench.errors import UserError
from quantarena.bench.files import draft_of, finish_replacing, plain_errors, put_in_place
from quantarena.bench.schema import SELF_REPORTED, Row, Status
from quantarena.bench.share.bounds import own_word
from quantarena.bench.share.conflicts import RULE, Candidate, ordered, other_settings, reason
from quantarena.bench.share.examine import Holding, examine, read_rows
from quantarena.bench.share.layout import SHARE, Problem, is_plain_file
from quantarena.bench.share.place import require_nothing_lost, taken
from quantarena.bench.share.provenance import (
    ELSEWHERE,
    FILE,
    SOURCE,
    VERSION,
    Conflict,
    LeftOut,
    Origin,
    Provenance,
    Source,
    Standing,
    write_provenance,
)
from quantarena.bench.share.reference import other_references
from quantarena.bench.share.verify import is_submission, standings, verify
from quantarena.bench.spec import Cell
from quantarena.bench.storage.remote import shown
from quantarena.bench.store import Planned, Store, signed_text

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Opened:
    """A source whose rows were examined.

    Attributes:
        source: its name and what was found.
        holding: its folder.
        candidates: its rows but the refused ones.
        left_out: the refused rows, and files that are no rows.
        planned: its plan, where it has one.
    """

    source: Source
    holding: Holding
    candidates: tuple[Candidate, ...]
    left_out: tuple[LeftOut, ...]
    planned: Planned | None


@dataclass(frozen=True, slots=True)
class Merged:
    """What was written.

    Attributes:
        folder: the joined results folder.
        rows: number of its rows.
        elsewhere: number of rows beside them that lost their cell.
        provenance: where they come from.
    """

    folder: Path
    rows: int
    elsewhere: int
    provenance: Provenance


def merge(
    results: Sequence[Path],
    out: Path,
    *,
    title: str,
    command: str,
    share: float = SHARE,
    progress: Progress = lambda stage, done, total: None,
) -> Merged:
    """Join results folders and submissions; the page is not rendered here.

    Args:
        results: the folders, in the order in which they win conflicts.
        out: the folder to be made; an earlier joined one is replaced as a whole.
        title: of the page.
        command: command line that does this again.
        share: share of the images of each row that are scored again.
        progress: told of each source's rows.

    Raises:
        UserError: a folder is none, a submission has problems, nothing is left, or ``out`` holds
            something else or is in use.
    """
    names = _names(results)
    for folder in (*results, out):
        finish_replacing(folder)
    _check_places(results, out)
    opened = [
        _open(folder, name, place, share, progress)
        for place, (folder, name) in enumerate(zip(results, names, strict=True))
    ]
    holdings = {source.source.name: source.holding for source in opened}
    candidates, strangers = other_references(
        [one for source in opened for one in source.candidates], holdings
    )
    strangers = other_settings(candidates) | strangers
    left_out = [one for source in opened for one in source.left_out]
    left_out += [
        LeftOut(candidates[n].source, candidates[n].row.key, why)
        for n, why in sorted(strangers.items())
    ]
    by_key: dict[str, list[Candidate]] = {}
    for number, one in enumerate(candidates):
        if number not in strangers:
            by_key.setdefault(one.row.key, []).append(one)
    if not by_key:
        first = f": {left_out[0].row}, {left_out[0].reason}" if left_out else ""
        raise UserError(f"no row is left to join{first}")
    placed = {key: ordered(some) for key, some in by_key.items()}
    provenance = Provenance(
        version=VERSION,
        rule=RULE,
        share=share,
        sources=tuple(source.source for source in opened),
        origins={key: _origin(first) for key, (first, *_) in sorted(placed.items())},
        conflicts=tuple(
            Conflict(key, first.row.cell.label, first.source, other.source, reason(first, other))
            for key, (first, *others) in sorted(placed.items())
            for other in others
        ),
        left_out=tuple(left_out),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with plain_errors("write", out), taken(out), draft_of(out) as work:
        elsewhere = sum(_write(work, some, holdings) for some in placed.values())
        Store(work).write_planned(_plan(opened, title, command, placed))
        write_provenance(work, provenance)
        put_in_place(work, out)
    return Merged(out, len(placed), elsewhere, provenance)


def _open(folder: Path, name: str, place: int, share: float, progress: Progress) -> Opened:
    def done(count: int, total: int) -> None:
        progress(f"checking {name}", count, total)

    if is_submission(folder):
        report = verify(folder, share=share, done=done)
        if report.problems:
            raise UserError(
                f"{folder} is no intact submission: {len(report.problems)} problem(s), the first: "
                f"{report.problems[0]}; list all with: quantarena verify {folder}"
            )
        assert report.manifest is not None
        holding = Holding(folder, "submission", report.manifest.images)
        rows, problems = list(report.rows), list[Problem]()
    else:
        holding = Holding(folder, "results")
        pairs, problems = read_rows(folder)
        rows = examine(holding, pairs, share=share, done=done)
    refused = [LeftOut(name, problem.where, str(problem.what)) for problem in problems]
    refused += [
        LeftOut(name, one.row.key, "; ".join(one.problems[:3])) for one in rows if one.problems
    ]
    versions = {_version(one.row) for one in rows} - {""}
    source = Source(
        name=name,
        kind=holding.kind,
        machines=tuple(dict.fromkeys(str(one.row.machine.get("cpu", "")) for one in rows)),
        rows=len(rows) + len(problems),
        standings=standings(rows),
        package=tuple(sorted(versions)),
    )
    own = holding.kind == "results"
    kept = tuple(Candidate(name, place, one, own) for one in rows if not one.problems)
    return Opened(source, holding, kept, tuple(refused), Store(folder).read_planned())


def _version(row: Row) -> str:
    versions: Any = row.machine.get("versions")
    return str(versions.get("quantarena", "")) if isinstance(versions, dict) else ""


def _origin(one: Candidate) -> Origin:
    found = one.found
    return Origin(
        one.source,
        found.digest,
        found.standing,
        found.doubts,
        found.notes,
        found.rescored,
        own_word(found.row),
    )


def _write(work: Path, some: Sequence[Candidate], holdings: dict[str, Holding]) -> int:
    """Write the row that stands in a cell with its files, and the others with their times."""
    first, *others = some
    holding = holdings[first.source]
    _write_row(work / "rows" / f"{first.row.key}.json", _marked(first, holding))
    _copy_files(holding, first.row, work)
    for number, other in enumerate(others, 1):
        path = work / "rows" / ELSEWHERE / f"{other.row.key}.{number}.json"
        _write_row(path, _marked(other, holdings[other.source]))
    return len(others)


def _marked(one: Candidate, holding: Holding) -> Row:
    """The row as it stands in the joined folder: marked where nobody here has checked it."""
    row = one.row
    if holding.kind == "submission":
        row = replace(row, machine={**row.machine, SOURCE: one.source})
    if one.found.standing is not Standing.SELF_REPORTED:
        return row
    others = tuple(line for line in row.warnings if not line.startswith(SELF_REPORTED))
    return replace(row, warnings=(SELF_REPORTED + "; ".join(one.found.doubts), *others))


def _write_row(path: Path, row: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(signed_text(row), encoding="utf-8")


def _copy_files(holding: Holding, row: Row, work: Path) -> None:
    """Copy scores and images; a file that changed since it was checked is refused."""
    if row.status is not Status.OK:
        return
    names = [f"scores/{row.key}.npz"] if row.artefacts.get("scores") else []
    listing = holding.listing(row.key)
    names += [f"images/{row.key}/{name}" for name in listing]
    for name in names:
        source, target = holding.root / name, work / name
        if not is_plain_file(source):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target, follow_symlinks=False)
        stated = listing.get(source.name, row.artefacts.get("scores_sha256"))
        if stated is not None and bytes_sha256(target) != stated:
            raise UserError(f"{source} changed while it was copied: merge again")


def _plan(
    opened: Iterable[Opened], title: str, command: str, placed: dict[str, list[Candidate]]
) -> Planned:
    """Every cell that any source planned, then the others that have rows."""
    cells: dict[Cell, None] = {}
    for source in opened:
        if source.planned is not None and source.holding.kind == "results":
            cells |= dict.fromkeys(source.planned.cells)
    cells |= {first.row.cell: None for first, *_ in placed.values()}
    return Planned(title, command, tuple(cells))


def _names(results: Sequence[Path]) -> list[str]:
    """A name for each folder: its own, with its parents' where two are equal."""
    if not results:
        raise UserError("name at least one results folder or submission")
    folders = [folder.resolve() for folder in results]
    if len(set(folders)) < len(folders):
        double = next(f for n, f in enumerate(folders) if f in folders[:n])
        raise UserError(f"{shown(double)} is named twice: keep one")
    parts = [Path(shown(folder)).parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(some[-depth:]) for some in parts]
        if len(set(names)) == len(names):
            break
    return [str(clean_text(name)) for name in names]


def _check_places(results: Sequence[Path], out: Path) -> None:
    """Refuse sources that are none, and a place where the new folder would cover a source."""
    target = out.resolve()
    for folder in results:
        if not (folder / "rows").is_dir() and not is_submission(folder):
            raise UserError(f"{folder} holds no results: it has no folder rows")
        source = folder.resolve()
        if source == target or source in target.parents or target in source.parents:
            raise UserError(f"-o {out} and {folder} lie in one another: choose another -o")
        if (folder / FILE).exists():
            raise UserError(f"{shown(folder)} is joined already: name its sources instead")
    require_nothing_lost(out)


def as_plain(merged: Merged) -> dict[str, Any]:
    """The outcome as plain data for ``--json``."""
    document: dict[str, Any] = json.loads(json.dumps(asdict(merged.provenance)))
    return {"folder": str(merged.folder), "rows": merged.rows, **document}
