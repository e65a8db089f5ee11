"""The lines of a board: everything that is known about each contestant, over all its seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np

from quantarena.bench.schema import (
    SELF_REPORTED,
    SUSPECT,
    Latency,
    Measurement,
    Observed,
    Parity,
    Row,
    Status,
)
from quantarena.bench.share.provenance import SOURCE
from quantarena.bench.spec import Cell
from quantarena.leaderboard.page.hardware import identity, machine_name, usual_machine
from quantarena.leaderboard.ranking.board_ranking import BoardRanking
from quantarena.leaderboard.ranking.pooled import Ends
from quantarena.leaderboard.ranking.quality import QualityStanding
from quantarena.leaderboard.ranking.read_results import FP_METHOD, BoardId, contestant
from quantarena.leaderboard.ranking.standings import Standing, width_order

UNRANKED = frozenset({"reference", "weight-only", "fp32"})
"""Backends whose speed is not ranked: slow paths of our own kernels, and the reference itself."""
SETTING = "fp@"
"""Start of the names of full precision's other settings."""
MISSING = "missing"
"""State of a line with a planned cell that has no row."""

_BEST_TO_WORST = [Status.OK, Status.SKIPPED, Status.TIMEOUT, Status.OOM, Status.FAILED]


@dataclass(frozen=True, slots=True)
class Line:
    """One contestant of a board, or its full-precision reference.

    Attributes:
        name: ``method@bits``.
        method: registered name of the method.
        title: name of the method for readers.
        bits: requested bits.
        board: the board that the line belongs to.
        state: the worst status of all seeds, or ``missing``.
        reason: why the state is not ok, and how many seeds are; empty where it is.
        rows: one row per seed, whatever its status.
        cells: the planned cells, and those of the rows.
        standing: the standing in the fidelity ranking, None where there is none.
        quality: the standings in metrics of whole sets of images.
        unranked: why there is no standing.
        figures: the measurements, each a mean over the ok seeds.
        observed: bits, bytes and operations of the packed model, of the first ok seed.
        latency: mean times over the ok seeds that were timed where most rows of the board were:
            times of two machines are never in one column.
        by_batch: likewise, at further batches.
        elsewhere: the machines of seeds timed on others, which have no part in these times.
        parity: the worst parity of the ok seeds.
        times: mean times over the ok seeds by the machine's identity, ``latency`` among them.
    """

    name: str
    method: str
    title: str
    bits: str
    board: BoardId
    state: str
    reason: str
    rows: tuple[Row, ...]
    cells: tuple[Cell, ...]
    standing: Standing | None
    unranked: str
    figures: tuple[Measurement, ...]
    observed: Observed | None
    latency: Latency | None
    parity: Parity | None
    by_batch: tuple[Latency, ...] = ()
    elsewhere: tuple[str, ...] = ()
    quality: tuple[QualityStanding, ...] = ()
    times: Mapping[str, Latency] = field(default_factory=dict)

    @property
    def is_fp(self) -> bool:
        """True for full precision, the reference of the board."""
        return self.method == FP_METHOD

    @property
    def is_rival(self) -> bool:
        """True for a contestant with kernels of its own, other settings of full precision too."""
        return any(row.method.get("rival") for row in self.rows)

    @property
    def is_unquantized(self) -> bool:
        """True for full precision in another setting than fp32 of torch."""
        return self.method.startswith(SETTING)

    @property
    def ok(self) -> bool:
        """True when at least one seed finished."""
        return any(row.status is Status.OK for row in self.rows)

    @property
    def backend(self) -> str:
        """The backend that made the images, empty where no seed is ok."""
        return next((row.backend for row in self.rows if row.status is Status.OK), "")

    @property
    def timed(self) -> bool:
        """True when its latency may be ranked.

        It was then measured on packed integer kernels that agree with their simulation, or on a
        rival's own.
        """
        return self.latency is not None and self.ranked(self.latency)

    def ranked(self, time: Latency) -> bool:
        """Whether one of its times may be ranked, as ``timed`` says of the first one."""
        agrees = self.parity is None or self.parity.max_rel <= self.parity.limit
        return time.backend not in UNRANKED and agrees

    @property
    def self_reported(self) -> str:
        """Why nobody but its sender has checked one of its rows; empty where all are checked."""
        marked = (line for line in self.warnings if line.startswith(SELF_REPORTED))
        return next(marked, "").removeprefix(SELF_REPORTED)

    @property
    def sent(self) -> bool:
        """Whether one of its rows came in a submission: some figures are its sender's own word."""
        return any(SOURCE in row.machine for row in self.rows)

    @property
    def share(self) -> float | None:
        """Packed bytes divided by full precision's bytes."""
        counted = self.observed
        return counted.packed_bytes / counted.fp_bytes if counted and counted.fp_bytes else None

    @property
    def at_width(self) -> float | None:
        """Share of the multiply-accumulates that run at the requested bits."""
        return self.observed.coverage.get(self.bits, 0.0) if self.observed else None

    @property
    def seconds(self) -> float:
        """Wall seconds of all stages of all seeds."""
        return sum(sum(row.seconds.values()) for row in self.rows)

    @property
    def warnings(self) -> tuple[str, ...]:
        """The distinct warnings of all rows."""
        return tuple(dict.fromkeys(warning for row in self.rows for warning in row.warnings))

    @property
    def suspects(self) -> tuple[str, ...]:
        """The warnings that put our own side under suspicion, without the word that marks them."""
        marked = (line for line in self.warnings if line.startswith(SUSPECT))
        return tuple(line.removeprefix(SUSPECT) for line in marked)

    def quality_of(self, metric: str) -> QualityStanding | None:
        """The standing in a metric of whole sets of images, if it has one."""
        return next((one for one in self.quality if one.metric == metric), None)

    def figure(self, name: str) -> Measurement | None:
        """The measurement of that exact name, if there is one."""
        return next((figure for figure in self.figures if figure.name == name), None)


def board_lines(
    board: BoardId,
    rows: Sequence[Row],
    planned: Sequence[Cell],
    ranking: BoardRanking | None,
    ends: Mapping[str, Mapping[str, Ends]] | None = None,
    elsewhere: Sequence[Row] = (),
) -> tuple[Line, ...]:
    """The lines of a board: the reference, then by rank in each width, without a rank, not ok.

    Args:
        board: the board.
        rows: of that board.
        planned: cells of any board.
        ranking: of that board, if it has one.
        ends: intervals of means over several seeds, by contestant and measurement.
        elsewhere: further rows of any board's cells, of which only the times count.
    """
    cells: dict[str, dict[Cell, None]] = {}
    for cell in [*planned, *(row.cell for row in rows)]:
        if BoardId.of(cell) == board:
            cells.setdefault(contestant(cell), {})[cell] = None
    rows_of: dict[str, list[Row]] = {name: [] for name in cells}
    for row in rows:
        rows_of[contestant(row.cell)].append(row)
    titles = {row.cell.method: str(row.method["title"]) for row in rows if row.method.get("title")}
    others: dict[str, list[Row]] = {}
    for row in elsewhere:
        if BoardId.of(row.cell) == board:
            others.setdefault(contestant(row.cell), []).append(row)
    home = usual_machine([*rows, *chain(*others.values())])
    known = ends or {}
    quality: dict[str, list[QualityStanding]] = {name: [] for name in cells}
    for one in ranking.quality if ranking else ():
        quality.setdefault(one.contestant, []).append(one)
    lines = []
    for name, of_name in cells.items():
        own, also = tuple(rows_of[name]), tuple(others.get(name, ()))
        line = _line(name, titles, board, own, tuple(of_name), ranking, home, known.get(name), also)
        lines.append(replace(line, quality=tuple(quality[name])))
    return tuple(sorted(lines, key=_order))


def _title(cell: Cell, titles: Mapping[str, str]) -> str:
    """The method's title, with its options in brackets."""
    return titles.get(cell.method, cell.method) + cell.configured.removeprefix(cell.method)


def _line(
    name: str,
    titles: Mapping[str, str],
    board: BoardId,
    rows: tuple[Row, ...],
    cells: tuple[Cell, ...],
    ranking: BoardRanking | None,
    home: str,
    ends: Mapping[str, Ends] | None,
    also: tuple[Row, ...],
) -> Line:
    finished = [row for row in rows if row.status is Status.OK]
    state, reason = _state(rows, cells)
    timed = _once([*finished, *also])
    here = timed.get(home, [])
    batches = zip(*(row.latency_by_batch for row in here), strict=False)
    parities = [row.parity for row in finished if row.parity is not None]
    return Line(
        name=name,
        method=cells[0].method,
        title=_title(cells[0], titles),
        bits=cells[0].bits,
        board=board,
        state=state,
        reason=reason,
        rows=rows,
        cells=cells,
        standing=ranking.standing(name) if ranking else None,
        unranked=ranking.unranked.get(name, "") if ranking else "",
        figures=combined([row.measurements for row in finished], ends),
        observed=next((row.observed for row in finished if row.observed), None),
        latency=_mean_latency([row.latency for row in here if row.latency]),
        by_batch=tuple(mean for times in batches if (mean := _mean_latency(times))),
        elsewhere=tuple(
            dict.fromkeys(machine_name(row) for row in chain(*timed.values()) if row not in here)
        ),
        times={
            machine: mean
            for machine, some in timed.items()
            if (mean := _mean_latency([row.latency for row in some if row.latency]))
        },
        parity=max(parities, key=lambda parity: parity.max_rel, default=None),
    )


def _once(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The timed rows of each machine; of several rows of one cell there the first."""
    found: dict[str, dict[Cell, Row]] = {}
    for row in rows:
        if row.status is Status.OK and row.latency is not None:
            found.setdefault(identity(row), {}).setdefault(row.cell, row)
    return {machine: list(some.values()) for machine, some in found.items()}


def _state(rows: Sequence[Row], cells: Sequence[Cell]) -> tuple[str, str]:
    done = {row.cell for row in rows}
    worst = max(rows, key=lambda row: _BEST_TO_WORST.index(row.status), default=None)
    absent = [cell for cell in cells if cell not in done]
    if worst is not None and worst.status is not Status.OK:
        state, reason = worst.status.value, worst.reason or "no reason given"
    elif absent:
        state, reason = MISSING, "planned, but it has not run yet"
    else:
        return Status.OK.value, ""
    if len(cells) > 1:
        finished = sum(row.status is Status.OK for row in rows)
        reason = f"{reason} ({finished} of {len(cells)} seeds ok)"
    return state, reason


def combined(
    seeds: Sequence[Sequence[Measurement]], ends: Mapping[str, Ends] | None = None
) -> tuple[Measurement, ...]:
    """Each measurement as a mean over seeds.

    Args:
        seeds: the measurements of each seed.
        ends: intervals of these means, by name. A measurement without one has its seeds taken as
            independent: their half widths add in quadrature.
    """
    names = list(dict.fromkeys(m.name for measurements in seeds for m in measurements))
    known = ends or {}
    return tuple(
        _mean_measurement([m for ms in seeds for m in ms if m.name == name], known.get(name))
        for name in names
    )


def _mean_measurement(same: Sequence[Measurement], ends: Ends | None) -> Measurement:
    known = [(m, m.value) for m in same if m.value is not None]
    if len(same) == 1 or not known:
        return same[0]
    count = len(known)
    value = sum(v for _, v in known) / count
    below = [v - m.low for m, v in known if m.low is not None]
    above = [m.high - v for m, v in known if m.high is not None]
    if ends is None and len(below) == len(above) == count:
        half = (np.linalg.norm(below) / count, np.linalg.norm(above) / count)
        ends = (value - float(half[0]), value + float(half[1]))
    return replace(
        known[0][0],
        value=value,
        low=None if ends is None else ends[0],
        high=None if ends is None else ends[1],
        n=sum(m.n for m, _ in known),
    )


def _mean_latency(times: Sequence[Latency]) -> Latency | None:
    if len(times) < 2:
        return times[0] if times else None
    fields = ("step_ms", "step_iqr_ms", "fp_step_ms", "ratio", "ratio_low", "ratio_high")
    means: Mapping[str, float] = {
        field: float(np.mean([getattr(time, field) for time in times]))
        for field in (*fields, "image_ms")
    }
    slowest = next((time for time in times if time.backend in UNRANKED), times[0])
    return replace(
        slowest,
        rounds=sum(time.rounds for time in times),
        peak_bytes=max(time.peak_bytes for time in times),
        **means,  # type: ignore[arg-type]
    )


def _order(line: Line) -> tuple[int, tuple[float, float, str], float, str]:
    if line.is_fp:
        return (0, (0.0, 0.0, ""), 0.0, line.name)
    if line.standing is not None:
        return (1, width_order(line.bits), line.standing.factor, line.name)
    return (2 if line.ok else 3, (0.0, 0.0, line.state), 0.0, line.name)
