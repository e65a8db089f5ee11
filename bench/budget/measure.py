"""Makes the curves of the rows that runs of several budgets have left. No torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from quantarena.bench.budget.curves import (
    Curve,
    Curves,
    LevelRun,
    Measure,
    Panel,
    Reading,
    Stop,
    Verdict,
)
from quantarena.bench.budget.pairs import Pooled, Seeds, interval, pooled_scores
from quantarena.bench.budget.verdicts import Entry, knee, winner
from quantarena.bench.metrics.names import IMAGE_PAIRS, LPIPS, METRICS, SQNR
from quantarena.bench.schema import Row, Status
from quantarena.bench.spec import DEFAULT_POLICY, DEFAULT_VARIANT, Cell

FP = "fp"
MISSING = "missing"
ONE_CALL = Measure(SQNR, "error of one call", "", higher=False)
"""Drawn as the share of the noise prediction that is wrong, ``10 ** (-SQNR / 10)``."""
_BEST_TO_WORST = (Status.OK, Status.SKIPPED, Status.TIMEOUT, Status.OOM, Status.FAILED)


class _Place(NamedTuple):
    """The panel that a cell belongs to."""

    workload: str
    policy: str
    variant: str
    bits: str

    @property
    def setting(self) -> str:
        """What is not said by the workload; defaults are left out."""
        policy = "" if self.policy == DEFAULT_POLICY else f"{self.policy} policy"
        variant = "" if self.variant == DEFAULT_VARIANT else f"{self.variant} variant"
        return " · ".join(text for text in (self.bits, policy, variant) if text)


def curves_of(title: str, command: str, runs: Sequence[LevelRun]) -> Curves:
    """The curves of all methods, on every workload and at every width.

    Args:
        title: heading.
        command: what measures it again.
        runs: one for each budget, the smallest first.
    """
    places = dict.fromkeys(_place(c) for run in runs for c in run.cells if c.method != FP)
    rows = [row for run in runs for row in run.rows]
    machines = dict.fromkeys(str(row.machine.get("cpu", "")) for row in rows)
    return Curves(
        title,
        command,
        tuple(run.level for run in runs),
        tuple(_panel(place, runs) for place in places),
        tuple(name for name in machines if name),
    )


def _place(cell: Cell) -> _Place:
    return _Place(cell.workload, cell.policy, cell.variant, cell.bits)


class _Measured(NamedTuple):
    """One method at one budget."""

    factor: str
    entry: Entry
    scores: dict[str, Pooled]
    rows: tuple[Row, ...]
    planned: int


def _panel(place: _Place, runs: Sequence[LevelRun]) -> Panel:
    cells = [cell for run in runs for cell in run.cells if _place(cell) == place]
    names = dict.fromkeys(cell.configured for cell in cells if cell.method != FP)
    found = {name: [_measured(name, place, run) for run in runs] for name in names}
    scored = {metric for levels in found.values() for level in levels for metric in level.scores}
    measures = _measures(scored)
    titles = {name: _title(name, levels) for name, levels in found.items()}
    plain = list(titles.values())
    titles = {name: t if plain.count(t) == 1 else name for name, t in titles.items()}
    curves = [_curve(name, titles[name], found[name], measures) for name in names]
    verdicts = [
        _verdict(number, run.level.factor, measure, found, titles, curves)
        for number, run in enumerate(runs)
        for measure in measures
    ]
    return Panel(place.workload, place.setting, measures, tuple(curves), tuple(verdicts))


def _measured(name: str, place: _Place, run: LevelRun) -> _Measured:
    def ours(cell: Cell) -> bool:
        return cell.configured == name and _place(cell) == place

    wanted = {cell.key for cell in run.cells if ours(cell)}
    rows = tuple(row for row in run.rows if row.key in wanted)
    seeds = {row.cell.seed: row for row in rows if row.status is Status.OK}
    scores = pooled_scores(run.folder, seeds)
    return _Measured(run.level.factor, (run.folder, seeds), scores, rows, len(wanted))


def _measures(scored: Iterable[str]) -> tuple[Measure, ...]:
    """The error of one call where any cell has one, and the first distance of images."""
    known = set(scored)
    found = [ONE_CALL] if SQNR in known else []
    images = next((name for name in (LPIPS, *IMAGE_PAIRS) if name in known), None)
    if images is not None:
        info = METRICS[images]
        heading = f"{images.split('/')[0].upper()} to full precision"
        found.append(Measure(images, heading, info.unit, info.higher_is_better))
    return tuple(found)


def _title(name: str, levels: Sequence[_Measured]) -> str:
    """The method's title, with its options in brackets."""
    rows = [row for level in levels for row in level.rows if row.method.get("title")]
    if not rows:
        return name
    return str(rows[0].method["title"]) + name.removeprefix(rows[0].cell.method)


def _curve(
    name: str, title: str, levels: Sequence[_Measured], measures: Sequence[Measure]
) -> Curve:
    stops = tuple(_stop(level, measures) for level in levels)
    entries = {level.factor: level.entry for level in levels}
    seconds = {stop.factor: stop.core_seconds for stop in stops}
    knees = {}
    for measure in measures:
        means = _means({stop.factor: stop for stop in stops}, measure)
        if found := knee(measure, entries, means, seconds):
            knees[measure.name] = found
    return Curve(name, title, stops, knees)


def _stop(level: _Measured, measures: Sequence[Measure]) -> Stop:
    state, reason = _state(level)
    seeds: Seeds = level.entry[1]
    known = [row.calibration.get("core_seconds") for row in seeds.values()]
    spent = [float(value) for value in known if isinstance(value, int | float)]
    readings = {
        m.name: _reading(m, level.scores[m.name]) for m in measures if m.name in level.scores
    }
    return Stop(level.factor, state, reason, sum(spent) / len(spent) if spent else None, readings)


def _state(level: _Measured) -> tuple[str, str]:
    worst = max(level.rows, key=lambda r: _BEST_TO_WORST.index(r.status), default=None)
    if worst is not None and worst.status is not Status.OK:
        return str(worst.status), worst.reason or "no reason given"
    if len(level.rows) < level.planned:
        return MISSING, "planned, but it has not run yet"
    return str(Status.OK), ""


def _reading(measure: Measure, scores: Pooled) -> Reading:
    value, low, high = interval(scores)
    reading = Reading(value, low, high, int(scores.joined.size))
    if measure is not ONE_CALL:
        return reading
    error = [10 ** (-decibel / 10) for decibel in (value, high, low)]
    return replace(reading, value=error[0], low=error[1], high=error[2])


def _means(stops: Mapping[str, Stop], measure: Measure) -> dict[str, float]:
    return {
        name: stop.readings[measure.name].value
        for name, stop in stops.items()
        if measure.name in stop.readings
    }


def _verdict(
    number: int,
    factor: str,
    measure: Measure,
    found: Mapping[str, Sequence[_Measured]],
    titles: Mapping[str, str],
    curves: Sequence[Curve],
) -> Verdict:
    entries = {titles[name]: levels[number].entry for name, levels in found.items()}
    stops = {curve.title: curve.stops[number] for curve in curves}
    return winner(factor, measure, entries, _means(stops, measure))
