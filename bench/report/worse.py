"""Warns of cells that are worse than round-to-nearest, which costs nothing.

At 8 bits this is a guard on ourselves. Rounding to nearest loses next to nothing there, and a
method can leave it as it is: one that is worse was most likely given too little data or budget, or
learns at rates that do not fit the length of its run. So the warning names our side as the first
suspect.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from quantarena.bench.errors import UserError
from quantarena.bench.metrics.names import IMAGE_PAIRS, LPIPS, SQNR
from quantarena.bench.report.compare import Difference, difference, paired_gaps, prompts_of
from quantarena.bench.schema import SUSPECT, Row, Status
from quantarena.bench.spec import BUDGET_POLICY, DEFAULT_POLICY
from quantarena.bench.storage.outlines import outlines
from quantarena.bench.store import Store
from quantarena.methods.builtin import builtins

BASELINE = "rtn"
PREFIX = "worse than round-to-nearest: "
GUARDED = "w8a8"
"""The width at which a method that is worse than rounding puts our own side under suspicion."""
GUARD = f"{SUSPECT}worse than round-to-nearest at {GUARDED}: "
UNGUARDED = f"no guard at {GUARDED}: "
NO_BASELINE = "round-to-nearest has no widths of its own under policy published"
NOT_RUN = "no round-to-nearest row of this workload, seed and budget is in the run"
_OURS = (PREFIX, GUARD, UNGUARDED)


def warn_of_worse(store: Store) -> bool:
    """Give each row that is worse than its round-to-nearest a warning, and the others none.

    Rows are compared within one workload, policy, width, seed and budget, image by image in the
    first of LPIPS, PSNR and SSIM that both have. A difference inside its interval is none. At w8a8
    the error of one call is compared as well, which shows a difference long before images do; a row
    there that has nothing to be compared with says so. Two rows at a time are in memory.

    Returns:
        Whether a row was changed.

    Raises:
        UserError: a row cannot be written.
    """
    rows, changed = outlines(store), False
    baselines = {_place(row): row for row in rows if _counts(row) and row.cell.method == BASELINE}
    for row in rows:
        if not _counts(row) or row.cell.method == BASELINE:
            continue
        known = baselines.get(_place(row))
        whole, baseline = store.get(row.key), store.get(known.key) if known else None
        if whole is None:
            continue
        line = _line(store, whole, baseline) if baseline else _unguarded(whole)
        others = tuple(warning for warning in whole.warnings if not warning.startswith(_OURS))
        warnings = (*others, line) if line else others
        if warnings != whole.warnings:
            store.amend(replace(whole, warnings=warnings))
            changed = True
    return changed


def unguarded(rows: Iterable[Row]) -> str:
    """One line on the cells at w8a8 that no guard holds, and why; empty where it holds all."""
    found = Counter(reason for row in rows if _counts(row) and (reason := _no_guard(row)))
    if not found:
        return ""
    parts = [f"{count}, as {reason}" for reason, count in sorted(found.items())]
    advice = " (add --method rtn)" if found[NOT_RUN] else ""
    return f"cells at {GUARDED} without a guard: {'; '.join(parts)}{advice}"


def _unguarded(row: Row) -> str | None:
    if row.cell.bits != GUARDED:
        return None
    published = row.cell.policy not in (DEFAULT_POLICY, BUDGET_POLICY)
    return UNGUARDED + (NO_BASELINE if published else NOT_RUN)


def _no_guard(row: Row) -> str:
    lines = (warning for warning in row.warnings if warning.startswith(UNGUARDED))
    return next(lines, "").removeprefix(UNGUARDED)


def _counts(row: Row) -> bool:
    """Rivals do not count: nothing on our side calibrates or runs them."""
    ours = row.cell.method != "fp" and not row.method.get("rival")
    return row.status is Status.OK and ours


def _place(row: Row) -> tuple[str, str, str]:
    """Rows of one place are compared.

    Policy ``budget`` has the cost of ``uniform`` and no row of rounding to nearest: that of
    ``uniform`` is its baseline too. Policy ``published`` has other layers and widths, and none.
    """
    policy = DEFAULT_POLICY if row.cell.policy == BUDGET_POLICY else row.cell.policy
    return row.cell.shared_key, row.cell.bits, policy


def _line(store: Store, row: Row, baseline: Row) -> str | None:
    try:
        gaps = paired_gaps(store.folder, row, store.folder, baseline)
        groups = prompts_of(store.folder, row)
    except UserError:  # without scores there is nothing to say
        return None
    guarded = row.cell.bits == GUARDED
    names = [name for name in (_first(gaps), SQNR if guarded else None) if name in gaps]
    found = [difference(name, gaps[name], row, groups) for name in names if name is not None]
    worse = [_text(each) for each in found if each.verdict == "B is better"]
    if not worse:
        return None
    if not guarded:
        return PREFIX + worse[0]
    return f"{GUARD}{'; '.join(worse)}. {_suspects(row)}"


def _suspects(row: Row) -> str:
    """What to look at before the method is blamed."""
    known = builtins().get(row.cell.method)
    if known is not None and known.most_iterations == 0:
        return "Check its calibration data first, then the method"
    rose = list(_held_out(row.calibration))
    parts = f" ({sum(rose)} of {len(rose)} parts got worse on held-out points)" if rose else ""
    return f"Check its data, budget and rates first, then the method{parts}"


def _held_out(notes: Any) -> Iterator[bool]:
    """For each block or network in a method's notes, whether its loss on held-out points rose."""
    if isinstance(notes, dict):
        before, after = notes.get("held_before"), notes.get("held_after")
        if isinstance(before, int | float) and isinstance(after, int | float):
            yield after > before
        for value in notes.values():
            yield from _held_out(value)
    elif isinstance(notes, list | tuple):
        for value in notes:
            yield from _held_out(value)


def _first(names: Iterable[str]) -> str | None:
    order = (LPIPS, *IMAGE_PAIRS)
    return next((name for name in order if name in names), None)


def _text(d: Difference) -> str:
    unit = f" {d.unit}" if d.unit else ""
    return f"{d.name} differs by {d.mean:+.3g}{unit} ({d.low:+.3g} to {d.high:+.3g}), {d.n} images"
