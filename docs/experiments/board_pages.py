"""Writes each method's part of a board into its page, between the marks ``board`` and ``/board``.

Run as ``python docs/experiments/board_pages.py results/quick docs/methods``. A page without the
marks gets them in a section at its end.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from board import LPIPS, finished, lines, number, signed

from quantarena.bench.report.compare import difference, paired_gaps, prompts_of
from quantarena.bench.schema import Row
from quantarena.methods.builtin import builtins

SECTION = "## On the quick board"
OPEN, CLOSE = "<!-- board -->", "<!-- /board -->"
AGAINST = ("rtn", "q_diffusion")
ABOUT = """\
LPIPS to full precision over {images} images, seed 0; lower is nearer, so a paired difference below
zero speaks for the method. [The board](../results/quick.md) says how and on which machine it was
measured. Speed is that of one step against the fastest unquantized setting; weight-only kernels
multiply in floating point.
"""


def section(folder: Path, rows: Sequence[Row], method: str) -> str:
    """The text between the marks."""
    own = [row for row in rows if row.cell.method == method and row.cell.seed == 0]
    table = [("model", "bits", "LPIPS", *[f"minus {name}" for name in AGAINST], "speed")]
    for row in own:
        others = {r.cell.method: r for r in rows if _same(r, row)}
        gaps = [_gap(folder, row, others.get(name)) for name in AGAINST]
        speed = f"{row.latency.ratio:.2f}" if row.latency else "-"
        table.append((row.cell.workload, row.cell.bits, number(row, LPIPS), *gaps, speed))
    images = own[0].cell.budget.images
    return f"{ABOUT.format(images=images)}\n{lines(table)}\n"


def _same(other: Row, row: Row) -> bool:
    """Whether a row is another method's on the same images."""
    a, b = other.cell, row.cell
    return (a.workload, a.bits, a.seed) == (b.workload, b.bits, b.seed)


def _gap(folder: Path, row: Row, other: Row | None) -> str:
    if other is None or other.key == row.key:
        return "-"
    gap = paired_gaps(folder, row, folder, other)[LPIPS]
    return signed(difference(LPIPS, gap, row, prompts_of(folder, row)))


def written(page: str, text: str) -> str:
    """The page with the text between its marks."""
    block = f"{OPEN}\n{text}{CLOSE}"
    if OPEN in page:
        return re.sub(f"{OPEN}.*?{CLOSE}", lambda _: block, page, flags=re.DOTALL)
    if SECTION in page:
        return page.replace(f"{SECTION}\n", f"{SECTION}\n\n{block}\n", 1)
    return f"{page.rstrip()}\n\n{SECTION}\n\n{block}\n"


def main() -> None:
    """Writes the pages of all methods that the board has rows of."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("pages", type=Path)
    args = parser.parse_args()
    rows = sorted(finished(args.folder), key=lambda row: row.cell.workload)
    methods = {row.cell.method for row in rows}
    for name, known in builtins().items():
        page = args.pages / f"{name}.md"
        if name in methods and not known.rival and page.is_file():
            old = page.read_text(encoding="utf-8")
            page.write_text(written(old, section(args.folder, rows, name)), encoding="utf-8")
            print(page)


if __name__ == "__main__":
    main()
