"""The folder that a merge writes: what may be replaced there, and who may write to it. No torch.

A joined folder is replaced as a whole, so it may hold nothing that no merge can make again.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from quantarena.bench.errors import UserError
from quantarena.bench.files import finish_replacing, locked
from quantarena.bench.share.provenance import ELSEWHERE, FILE, read_provenance
from quantarena.bench.share.submit import require_replaceable
from quantarena.bench.storage.drivers import others_alive

_LOCK = ".lock"
_MADE = frozenset(
    (
        *("rows", "scores", "images", "plan.json", FILE),
        *("leaderboard.html", "ranking.json", "rows.csv", "rows.parquet"),
    )
)
"""What merging and rendering write; hidden files are notes that any of our programs makes anew."""
_ROWS = (ELSEWHERE, "aside")
"""Folders below ``rows`` that a merge writes, and that hold files which are no rows."""


def require_unjoined(folder: Path) -> None:
    """Refuse to run in a folder that a merge wrote: the next merge would take the rows away.

    Raises:
        UserError: it is one.
    """
    finish_replacing(folder)
    if (folder / FILE).exists():
        raise UserError(
            f"{folder} joins results of several folders, and the next merge replaces it: run with "
            "another --name, then merge that folder as well"
        )


def require_nothing_lost(out: Path) -> None:
    """Refuse to replace a folder that is no joined one, or that holds more than a merge wrote.

    Raises:
        UserError: it is, or does; one line names what it holds.
    """
    if out.is_dir() and not out.is_symlink() and [p.name for p in out.iterdir()] == [_LOCK]:
        return
    require_replaceable(out, FILE)
    if not out.is_dir() or not any(out.iterdir()):
        return
    for driver in others_alive(out):
        raise UserError(f"{driver.owner.label} works in {out}: wait for it, or choose another -o")
    try:
        said = read_provenance(out)
    except ValueError as error:
        raise UserError(f"{out} cannot be replaced, {error}: choose another -o") from None
    listed = said.origins if said else {}
    found = [f"rows/{key}" for key in _rows(out) if key.removesuffix(".json") not in listed]
    found += sorted(p.name for p in out.iterdir() if p.name not in _MADE and p.name[0] != ".")
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise UserError(
            f"{out} holds {found[0]}{more}, which no merge wrote and which would be lost: "
            "choose another -o, or move them away"
        )


@contextlib.contextmanager
def taken(out: Path) -> Iterator[None]:
    """A block in which nobody else writes to a folder, which may be replaced in it.

    Raises:
        UserError: another process works there, or it may not be replaced.
    """
    fresh = not out.exists()
    require_nothing_lost(out)
    with locked(out, option="-o"):
        try:
            require_nothing_lost(out)  # a run may have begun and ended since
            yield
        except BaseException:
            if fresh and [path.name for path in out.iterdir()] == [_LOCK]:
                (out / _LOCK).unlink()
                out.rmdir()
            raise


def _rows(out: Path) -> Iterator[str]:
    """Names below ``rows`` of all but what a merge puts into folders there."""
    folder = out / "rows"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir() and path.name not in _ROWS:
            yield from (f"{path.name}/{inside.name}" for inside in sorted(path.iterdir()))
        elif not path.is_dir() and not path.name.startswith("."):
            yield path.name
