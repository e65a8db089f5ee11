"""Prints a results folder as the tables of docs/results, in Markdown.

The tables have values by method and bits, costs, and paired differences between methods. Run as
``python docs/experiments/board.py results/quick``.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from quantarena.bench.report.compare import Difference, difference, paired_gaps, prompts_of
from quantarena.bench.schema import Row, Status
from quantarena.bench.store import Store
from quantarena.methods.builtin import SETTING

LPIPS, KID = "lpips/alex-v0.1", "kid/effnet-lite0"
ALIGNMENT = "alignment/effnet-lite0-minilm"
Table = list[Sequence[str]]


def lines(table: Table) -> str:
    """Formats rows as a Markdown table; the first row is the head."""
    head, *body = [f"| {' | '.join(cells)} |" for cells in table]
    return "\n".join([head, "|" + "---|" * len(table[0]), *body])


def number(row: Row | None, name: str) -> str:
    """Formats a value with its interval; a dash stands for a missing value."""
    found = row.measurement(name) if row else None
    if found is None or found.value is None:
        return "-"
    ends = "" if found.low is None else f" [{found.low:.3g}, {found.high:.3g}]"
    return f"{found.value:.3g}{ends}"


def by_bits(rows: Iterable[Row], name: str) -> str:
    """Tables one metric of seed 0, with a line for each method and a column for each width."""
    rows = [row for row in rows if row.cell.seed == 0]
    widths = list(dict.fromkeys(r.cell.bits for r in rows if not r.cell.widths.is_fp))
    found = {(r.cell.method, r.cell.bits): r for r in rows}
    table: Table = [("method", *widths)]
    for method in dict.fromkeys(r.cell.method for r in rows):
        if method.startswith(SETTING):
            continue
        if method == "fp":
            table.append(("fp", *[number(found["fp", "fp"], name)] * len(widths)))
        else:
            table.append((method, *[number(found.get((method, w)), name) for w in widths]))
    return lines(table)


def speeds(rows: Iterable[Row]) -> str:
    """Tables the speed-up of every method at every width."""
    rows = [row for row in rows if row.cell.seed == 0 and row.latency and row.observed]
    widths = list(dict.fromkeys(r.cell.bits for r in rows))
    found = {(r.cell.method, r.cell.bits): r for r in rows}
    table: Table = [("method", *widths)]
    for method in dict.fromkeys(r.cell.method for r in rows):
        cells = []
        for width in widths:
            row = found.get((method, width))
            cells.append(f"{row.latency.ratio:.2f}" if row and row.latency else "-")
        table.append((method, *cells))
    return lines(table)


def settings(rows: Iterable[Row]) -> str:
    """Tables full precision's settings: how near they are to fp32, bytes, speed."""
    table: Table = [("setting", "LPIPS", "bytes", "ms a step", "speed-up [95 %]")]
    for row in rows:
        if not row.cell.widths.is_fp or row.cell.seed or row.observed is None:
            continue
        time, share = row.latency, row.observed.packed_bytes / row.observed.fp_bytes
        shown = f"{time.ratio:.2f} [{time.ratio_low:.2f}, {time.ratio_high:.2f}]" if time else "-"
        step = f"{time.step_ms:.1f}" if time else "-"
        table.append((row.cell.method, number(row, LPIPS), f"{share:.0%}", step, shown))
    return lines(table)


def costs(rows: Iterable[Row], bits: str) -> str:
    """Tables what each method costs at one width: seconds to quantize, memory, bytes, speed."""
    table: Table = [("method", "core-s to quantize", "peak MB", "bytes", "speed-up [95 %]")]
    for row in rows:
        if row.cell.bits != bits or row.cell.seed or row.observed is None:
            continue
        busy, peak = row.calibration.get("core_seconds", 0.0), row.calibration.get("peak_bytes", 0)
        share = row.observed.packed_bytes / row.observed.fp_bytes
        time = row.latency
        shown = f"{time.ratio:.2f} [{time.ratio_low:.2f}, {time.ratio_high:.2f}]" if time else "-"
        table.append((row.cell.method, f"{busy:.1f}", f"{peak / 1e6:.0f}", f"{share:.1%}", shown))
    return lines(table)


def signed(found: Difference) -> str:
    """Formats a paired difference with its interval."""
    return f"{found.mean:+.4f} [{found.low or 0:+.4f}, {found.high or 0:+.4f}]"


def finished(folder: Path) -> list[Row]:
    """The ok rows of a results folder, in the order of its plan."""
    store = Store(folder)
    planned = store.read_planned()
    order = {cell.key: place for place, cell in enumerate(planned.cells if planned else ())}
    done = [row for row in store.rows() if row.status is Status.OK]
    return sorted(done, key=lambda row: order.get(row.key, len(order)))


def differences(
    folder: Path, rows: Sequence[Row], bits: str, rivals: Sequence[str], metric: str = LPIPS
) -> str:
    """Tables a metric of each method minus that of its rivals, over all seeds.

    The images of one prompt are one unit of the bootstrap.
    """
    here = {(r.cell.method, r.cell.seed): r for r in rows if r.cell.bits == bits}
    table: Table = [("method", *[f"minus {name}" for name in rivals], "images", "seeds")]
    for method in dict.fromkeys(name for name, _ in here):
        cells, images, seeds = [], 0, 0
        for rival in rivals:
            pairs = [
                (row, here[rival, seed])
                for (name, seed), row in here.items()
                if name == method and (rival, seed) in here
            ]
            if method == rival or not pairs:
                cells.append("-")
                continue
            gap = np.concatenate([paired_gaps(folder, a, folder, b)[metric] for a, b in pairs])
            prompts = [unit for a, _ in pairs for unit in prompts_of(folder, a) or ()]
            groups = tuple(prompts) if len(prompts) == gap.size else None
            found = difference(metric, gap, pairs[0][0], groups)
            cells.append(signed(found))
            images, seeds = gap.size, len(pairs)
        table.append((method, *cells, str(images), str(seeds)))
    return lines(table)


def main() -> None:
    """Prints the tables of every workload."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bits", default="w4a4", help="bits of the differences and of the costs")
    args = parser.parse_args()
    done = finished(args.folder)
    for workload in dict.fromkeys(row.cell.workload for row in done):
        rows = [row for row in done if row.cell.workload == workload]
        print(f"## {workload}\n")
        print(f"LPIPS to full precision, lower is better:\n\n{by_bits(rows, LPIPS)}\n")
        print(f"KID x1e-3 to real images, lower is better:\n\n{by_bits(rows, KID)}\n")
        print(f"Full precision's settings:\n\n{settings(rows)}\n")
        print(f"Speed-up of one step by width:\n\n{speeds(rows)}\n")
        print(f"Cost at {args.bits}:\n\n{costs(rows, args.bits)}\n")
        table = differences(args.folder, rows, args.bits, ("rtn", "q_diffusion"))
        print(f"LPIPS at {args.bits}, paired differences, below zero is better:\n\n{table}\n")
        told = [row.measurement(ALIGNMENT) for row in rows]
        if any(found is not None and found.value is not None for found in told):
            table = differences(args.folder, rows, args.bits, ("rtn", "q_diffusion"), ALIGNMENT)
            print(f"Text alignment at {args.bits}, paired differences, above zero is better:\n")
            print(f"{table}\n")


if __name__ == "__main__":
    main()
