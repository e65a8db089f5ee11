"""The page and the tables of a results folder, written again only when something changed."""

import contextlib
import dataclasses
import gc
import hashlib
import importlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from quantarena.bench import files
from quantarena.bench.documents import parse_json
from quantarena.bench.report.claims import judge_claims, load_claims
from quantarena.bench.report.texttables import latex, markdown
from quantarena.bench.schema import Row
from quantarena.bench.share.provenance import ELSEWHERE
from quantarena.bench.share.provenance import FILE as MERGED
from quantarena.bench.spec import content_key
from quantarena.bench.store import Planned, Store

PAGE = "leaderboard.html"
_MARK = ".page.json"
FORMATS = ("csv", "parquet", "latex", "md")


def refresh(
    store: Store, planned: Planned, *, force: bool = False, given: str | None = None
) -> Path:
    """Rank, render and export, unless the page already shows these rows and this plan.

    Args:
        store: the rows.
        planned: the plan.
        force: render in any case.
        given: ``stamp`` of both, if it was just computed.

    Returns:
        The path of the page.
    """
    if not force and (page := current(store, given or stamp(store, planned))) is not None:
        return page
    with _without_collector():
        return _refreshed(store, planned, given)


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """No search for cycles: thousands of rows are looked through in vain again and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _refreshed(store: Store, planned: Planned, given: str | None) -> Path:
    rows = store.rows()  # damaged files are moved aside first
    known = given or stamp(store, planned)
    loaded = leaderboard("ranking.read_results").load_rows(store.folder, known=rows)
    # Boards are ranked on all cores; the page is written on one, and the tables on another.
    ranking = leaderboard("ranking.ranking").write_ranking(store.folder, loaded)
    with leaderboard("inference.workers").beside(
        lambda: leaderboard("page.export").export_tables(loaded.rows, store.folder), len(rows)
    ):
        page = leaderboard("page.page").render(
            store.folder,
            grid_title=planned.title,
            planned=planned.cells,
            command=planned.command,
            ranking=ranking,
            loaded=loaded,
            claims=_claims(store.folder, rows),
            tables=False,
        )
    files.write_atomic(store.folder / _MARK, json.dumps(known))
    return Path(page)


def current(store: Store, mark: str) -> Path | None:
    """The path of the page if it shows what has that ``stamp``."""
    page = store.folder / PAGE
    return page if page.is_file() and _read(store.folder / _MARK) == mark else None


def _claims(folder: Path, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The outcomes of the papers' claims on these rows, as plain data."""
    found = judge_claims(load_claims(), [(folder, row) for row in rows])
    return [dataclasses.asdict(finding) for finding in found]


def export(store: Store, form: str, folder: Path) -> Path:
    """Write the rows as a table.

    Args:
        store: the rows.
        form: one of ``FORMATS``.
        folder: for the table.

    Returns:
        The path of the table.
    """
    files.ensure_folder(folder)
    rows = store.rows()
    if form in ("csv", "parquet"):
        leaderboard("page.export").export_tables(rows, folder)
        return folder / f"rows.{form}"
    path = folder / ("rows.tex" if form == "latex" else "rows.md")
    files.write_atomic(path, (latex if form == "latex" else markdown)(rows))
    return path


def leaderboard(module: str) -> Any:
    """A module of the leaderboard, such as ``page.page``, imported when it is needed."""
    return importlib.import_module(f"quantarena.leaderboard.{module}")


def stamp(store: Store, planned: Planned) -> str:
    """Hash of everything that the page depends on: rows, plan, and the leaderboard's code."""
    paths = sorted(store.rows_folder.glob("*.json"))
    paths += sorted((store.rows_folder / ELSEWHERE).glob("*.json"))
    paths.append(store.folder / MERGED)
    folder = Path(importlib.import_module("quantarena.leaderboard").__file__ or "").parent
    code = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            code.update(path.read_bytes())
    return content_key(
        [
            [(path.name, _hash(path)) for path in paths],
            planned.title,
            planned.command,
            [cell.key for cell in planned.cells],
            code.hexdigest(),
        ],
        32,
    )


def _hash(path: Path) -> str:
    """Hash of a file's bytes; empty for what is no file, whose reading might block."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _read(path: Path) -> Any:
    try:
        return parse_json(files.read_text(path))
    except (OSError, ValueError):
        return None
