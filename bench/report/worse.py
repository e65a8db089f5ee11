"""Warns of cells that are worse than round-to-nearest, which costs nothing."""

from collections.abc import Iterable
from dataclasses import replace

from quantarena.bench.errors import UserError
from quantarena.bench.metrics.names import IMAGE_PAIRS, LPIPS
from quantarena.bench.report.compare import Difference, difference, paired_gaps, prompts_of
from quantarena.bench.schema import Row, Status
from quantarena.bench.store import Store

BASELINE = "rtn"
PREFIX = "worse than round-to-nearest: "


def warn_of_worse(store: Store) -> None:
    """Give each row that is worse than its round-to-nearest a warning, and the others none.

    Rows are compared within one workload, policy, width, seed and budget, image by image in the
    first of LPIPS, PSNR and SSIM that both have. A difference inside its interval is none.

    Raises:
        UserError: a row cannot be written.
    """
    rows = store.rows()
    baselines = {_place(row): row for row in rows if _counts(row) and row.cell.method == BASELINE}
    for row in rows:
        if not _counts(row) or row.cell.method == BASELINE:
            continue
        baseline = baselines.get(_place(row))
        line = _line(store, row, baseline) if baseline else None
        others = tuple(warning for warning in row.warnings if not warning.startswith(PREFIX))
        warnings = (*others, line) if line else others
        if warnings != row.warnings:
            store.amend(replace(row, warnings=warnings))


def _counts(row: Row) -> bool:
    return row.status is Status.OK and row.cell.method != "fp"


def _place(row: Row) -> tuple[str, str, str]:
    return row.cell.shared_key, row.cell.bits, row.cell.policy


def _line(store: Store, row: Row, baseline: Row) -> str | None:
    try:
        gaps = paired_gaps(store.folder, row, store.folder, baseline)
        groups = prompts_of(store.folder, row)
    except UserError:  # without scores there is nothing to say
        return None
    name = _first(gaps)
    if name is None:
        return None
    found = difference(name, gaps[name], row, groups)
    return f"{PREFIX}{_text(found)}" if found.verdict == "B is better" else None


def _first(names: Iterable[str]) -> str | None:
    order = (LPIPS, *IMAGE_PAIRS)
    return next((name for name in order if name in names), None)


def _text(d: Difference) -> str:
    unit = f" {d.unit}" if d.unit else ""
    return f"{d.name} differs by {d.mean:+.3g}{unit} ({d.low:+.3g} to {d.high:+.3g}), {d.n} images"
