"""Measures where each idea starts to pay: boards by the strength of planted outliers.

Each idea is run on and off, with everything else equal, on workloads with outliers of strength 0,
1, 2 and 4 (docs/workloads.md). Full precision draws the same images at all strengths, so what
quantization loses can be compared along a line.

    python docs/experiments/outliers.py --workload emoji-dit --bits w4a4 --svg outliers.svg

The measure is the SQNR of one call: signal over error of the noise prediction, in dB, on the
full-precision trajectories of ``--images`` evaluation images, eight at most, with the packed
network. ``--lpips`` draws the images instead and measures LPIPS to full precision's.

Stages are cached in ``--out``, so an interrupted run goes on where it stopped.
"""

import argparse
import json
import platform
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from quantarena.bench.cache import StageCache
from quantarena.bench.closure import closure
from quantarena.bench.errors import QuantArenaError
from quantarena.bench.metrics.bootstrap import Array, mean_interval
from quantarena.bench.metrics.fidelity.noise_error import predictions, sqnr
from quantarena.bench.plan import lookup
from quantarena.bench.process_state import process_state
from quantarena.bench.schema import Status
from quantarena.bench.scores import read_scores
from quantarena.bench.spec import Budget, Cell, content_key
from quantarena.bench.stages.closeness import probe
from quantarena.bench.stages.quantize import quantized
from quantarena.bench.stages.record import trajectory
from quantarena.bench.stages.sequence import Paths, run_cell
from quantarena.bench.stages.workspace import open_workspace
from quantarena.bench.store import Store
from quantarena.leaderboard.page.plot import Axis
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.registry import entry

LPIPS = "lpips/alex-v0.1"
BASE = "rtn"
IDEAS = {
    "vidit_q": ("balancing of channels", "balancing=false"),
    "svdquant": ("smoothing before the low-rank branch", "smoothing=false"),
    "repquant": ("channel-wise ranges folded into norms", "fold=false"),
    "dgq": ("groups of channels", "groups=1"),
    "q_diffusion": ("a range for each half of a skip", "split_shortcuts=false"),
    "dilate_quant": ("dilation", "dilation=false"),
    "mpq_dm": ("widths by kurtosis (OMQ)", "mixed=false"),
}
"""The idea of each method, and the option that turns it off."""
COLOURS = ("#777777", "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640.0, 360.0, 50.0, 170.0, 30.0, 45.0
Values = dict[tuple[str, float], Array | None]
"""Values by image of each method, written ``NAME`` or ``NAME:OPTION=VALUE``, at each strength."""


def cell_of(workload: str, strength: float, method: str, bits: str, budget: Budget) -> Cell:
    """The cell of a method at one strength."""
    name, _, option = method.partition(":")
    given = (f"{name}.{option}",) if option else ()
    pairs = dict(lookup.method_options(given, (name,), (), prefer_plugin=False)).get(name, ())
    planted = lookup.canonical_workload(workload, (f"outliers={strength}",))
    return Cell(planted, name, bits, budget=budget, options=pairs)


def lines(names: Iterable[str]) -> list[str]:
    """Methods in the order of the tables: the base, then each idea on and off."""
    return [BASE, *(m for name in names for m in (name, f"{name}:{IDEAS[name][1]}"))]


def lpips(cell: Cell, folder: Path) -> Array:
    """LPIPS of each image to full precision's; the cell is run if it has no row yet."""
    store = Store(folder)
    row = store.get(cell.key)
    if row is None or row.status is not Status.OK:
        row = run_cell(cell, Paths(folder, folder / "cache"), progress=lambda *_: None)
        row = store.put(row, force=True)
    if row.status is not Status.OK:
        raise QuantArenaError(row.reason)
    return read_scores(folder / row.artefacts["scores"])[LPIPS]


@process_state()
def one_call(cell: Cell, folder: Path) -> Array:
    """SQNR in dB of the noise predictions on the trajectory of each image."""
    cache, workspace = StageCache(folder / "cache"), open_workspace(cell)
    method = entry(cell.method).method.configured(cell.options)
    recorded = trajectory(workspace, cache)
    made = quantized(workspace, recorded, cell, method, cache, lambda *_: None)

    def make(place: Path) -> None:
        seen, packed = probe(workspace, cache), pack(made.value.model)
        answers = predictions(packed.module, seen.recorded, packed.clock.at)
        errors = sqnr(seen.predictions, answers, seen.recorded.halves).mean(0)
        (place / "sqnr.json").write_text(json.dumps(errors.tolist()))

    def read(place: Path) -> Array:
        return np.array(json.loads((place / "sqnr.json").read_text()))

    code = closure(probe.__module__).key
    return cache.load("onecall", content_key([made.key, cell.budget.images, code]), make, read)


def measure(cells: dict[tuple[str, float], Cell], how: Callable[[Cell], Array]) -> Values:
    """The values of all cells; None for one that failed."""
    found: Values = {}
    for place, cell in cells.items():
        try:
            found[place] = how(cell)
            print(f"{cell.label} {found[place].mean():.3f}", flush=True)
        except QuantArenaError as error:
            found[place] = None
            print(f"{cell.label} failed: {error}", flush=True)
    return found


def kept(cell: Cell, how: Callable[[Cell], Array], file: Path) -> Array:
    """The values of a cell, which are written to a file too."""
    values = how(cell)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values.tolist()))
    return values


def read(file: Path) -> Array:
    """The values of a cell that an earlier run kept."""
    if not file.is_file():
        raise QuantArenaError("not measured yet")
    return np.array(json.loads(file.read_text()))


def interval(values: Array | None, *, sign: bool = False) -> str:
    """A mean with its interval; a difference is bold where that is on one side of zero."""
    if values is None:
        return "-"
    mean, low, high = mean_interval(values)
    if low is None or high is None:
        return f"{mean:.3g}"
    if not sign:
        return f"{mean:.3g} [{low:.3g}, {high:.3g}]"
    text = f"{mean:+.2g} [{low:+.2g}, {high:+.2g}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def gain(on: Array | None, off: Array | None, better: int) -> Array | None:
    """What an idea gains on each image; above zero it pays."""
    return None if on is None or off is None else better * (on - off)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    made = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return "\n".join([made[0], "|" + "---|" * len(head), *made[1:]])


def tables(values: Values, names: Sequence[str], strengths: Sequence[float], better: int) -> str:
    """Both tables of one workload."""
    head = ("method", *(f"outliers={s:g}" for s in strengths))
    first = [
        (f"`{m.replace(':', ' ')}`", *(interval(values[m, s]) for s in strengths))
        for m in lines(names)
    ]
    second = []
    for name in names:
        idea, option = IDEAS[name]
        gains = (gain(values[name, s], values[f"{name}:{option}", s], better) for s in strengths)
        second.append((f"{idea} (`{name}`)", *(interval(g, sign=True) for g in gains)))
    return (
        f"{table(head, first)}\n\nWhat the idea gains, paired by image; above zero it pays, bold "
        f"where the interval excludes zero:\n\n{table(('idea', *head[1:]), second)}\n"
    )


def plot(title: str, values: Values, names: Sequence[str], strengths: Sequence[float]) -> str:
    """Means over strength as an SVG: each method, and dashed the method without its idea."""
    means = {place: float(v.mean()) for place, v in values.items() if v is not None}
    pad = 0.05 * (max(means.values()) - min(means.values()))
    x = Axis(min(strengths), max(strengths), LEFT, WIDTH - RIGHT)
    y = Axis(min(means.values()) - pad, max(means.values()) + pad, HEIGHT - BOTTOM, TOP)
    end, base = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH:g}" height="{HEIGHT:g}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="18" font-size="13">{title}</text>',
        f'<text x="{(LEFT + end) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
        "strength of the planted outliers</text>",
    ]
    for tick in y.ticks:
        parts.append(f'<path d="M{LEFT} {tick.at}H{end}" stroke="#dddddd"/>')
        label = f'<text x="{LEFT - 6}" y="{tick.at + 4}" text-anchor="end">{tick.label}</text>'
        parts.append(label)
    for strength in strengths:
        at = x.at(strength)
        parts.append(f'<text x="{at}" y="{base + 16}" text-anchor="middle">{strength:g}</text>')
    for place, name in enumerate((BASE, *names)):
        colour, at = COLOURS[place % len(COLOURS)], TOP + 10 + 18 * place
        parts.append(f'<path d="M{end + 14} {at}h22" stroke="{colour}" stroke-width="2.5"/>')
        parts.append(f'<text x="{end + 42}" y="{at + 4}">{name}</text>')
        for method in (m for m in lines(names) if m.partition(":")[0] == name):
            points = [(x.at(s), y.at(means[method, s])) for s in strengths if (method, s) in means]
            dash = ' stroke-dasharray="4 3"' if ":" in method else ""
            path = " ".join(f"{px},{py}" for px, py in points)
            line = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"'
            parts.append(f"{line}{dash}/>")
    note = TOP + 20 + 18 * (len(names) + 1)
    parts.append(f'<text x="{end + 14}" y="{note}">dashed: without its idea</text></svg>')
    return "\n".join(parts) + "\n"


def main() -> None:
    """Runs the cells and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", action="append", help="workload; repeatable [emoji-dit]")
    parser.add_argument("--method", action="append", choices=IDEAS, help="idea; repeatable [all]")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--bits", default="w4a4")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--samples", type=int, default=128, help="calibration points")
    parser.add_argument("--calibration-images", type=int, default=32)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--lpips", action="store_true", help="draw the images")
    parser.add_argument("--print", action="store_true", help="tables of what is measured already")
    parser.add_argument("--out", type=Path, default=Path("results/outliers"))
    parser.add_argument("--svg", type=Path, help="file of the plot of the first workload")
    given = parser.parse_args()
    torch.set_num_threads(1)
    budget = Budget(
        images=given.images,
        calibration_images=given.calibration_images,
        calibration_samples=given.samples,
        iterations=given.iterations,
    )
    names = given.method or list(IDEAS)
    measured = partial(lpips if given.lpips else one_call, folder=given.out)
    place = given.out / ("lpips" if given.lpips else "sqnr")

    def how(cell: Cell) -> Array:
        file = place / f"{cell.key}.json"
        return read(file) if given.print else kept(cell, measured, file)

    what, better = ("LPIPS, lower is better", -1) if given.lpips else ("SQNR in dB of one call", 1)
    done = []
    for workload in given.workload or ["emoji-dit"]:
        # Strength by strength, so that an interrupted run has whole columns.
        cells = {
            (m, s): cell_of(workload, s, m, given.bits, budget)
            for s in given.strengths
            for m in lines(names)
        }
        values = measure(cells, how)
        shown = tables(values, names, given.strengths, better)
        done.append(f"## {workload}, {given.bits}\n\n{what}:\n\n{shown}")
        if given.svg and len(done) == 1:
            title = f"{workload} at {given.bits}: {what}"
            given.svg.write_text(plot(title, values, names, given.strengths), encoding="utf-8")
    print(f"{platform.machine()}, torch {torch.__version__}, {budget}\n")
    print("\n".join(done))


if __name__ == "__main__":
    main()
