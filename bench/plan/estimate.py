"""How long cells will take and how much disk they need: from measured rows of this machine when
there are any, else from stated defaults. Pure arithmetic, no torch.

A stage's time is its *work* (images x steps x the size of the network for sampling, iterations for
quantizing, ...) times seconds a unit of work. Rows that were measured give that rate; the nearest
ones win: same workload before any, and there same method and bits, then same method, then any
quantized cell. Only the rate is guessed when there are none.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from quantarena.bench.machine import same_machine
from quantarena.bench.plan.network_size import Size
from quantarena.bench.schema import Row, Status
from quantarena.bench.spec import Cell
from quantarena.methods.builtin import builtins

SHARED = "record"
"""Stands for ``prepare``: trajectory, full-precision images and their floor, once for many."""

ALONE = "time"
"""Stage that runs by itself, after all others."""

Sizes = Callable[[str], Size]
"""The size of a workload."""

_WORK: dict[str, Callable[[Cell, Size], float]] = {
    SHARED: lambda c, s: (
        (2 * c.budget.images + c.budget.calibration_images) * _steps(c, s) * s.call
    ),
    "quantize": lambda c, s: (
        15.0 + 5.0 * s.weights + (c.budget.range_samples / 32 + _iterations(c)) * s.call
    ),
    "pack": lambda c, s: s.weights,
    "parity": lambda c, s: s.call,
    "sample": lambda c, s: c.budget.images * _steps(c, s) * s.call,
    "score": lambda c, s: 16.0 + c.budget.images,
    "other": lambda c, s: 1.0,
    ALONE: lambda c, s: (5.0 + c.budget.latency_rounds) * s.call,
}
_DEFAULT_RATE = {
    SHARED: 0.009,
    "quantize": 0.08,
    "pack": 1.0,
    "parity": 2.0,
    "sample": 0.006,
    "score": 0.03,
    "other": 2.0,
    ALONE: 0.17,
}
"""Seconds a unit on one core of an ordinary server, guidance included."""

RECORD, IMAGES, PROBE, FLOOR, REAL = "record", "fp images", "probe", "floor", "real images"
SHARED_STAGES = (RECORD, IMAGES, PROBE, FLOOR, REAL)
"""What ``prepare`` makes, in its order: what cells of one workload, seed and budget wait for."""
_SHARED_WORK: dict[str, Callable[[Cell, Size], float]] = {
    RECORD: lambda c, s: c.budget.calibration_images * _steps(c, s) * s.call,
    IMAGES: lambda c, s: c.budget.images * _steps(c, s) * s.call,
    PROBE: lambda c, s: 0.0,
    FLOOR: lambda c, s: c.budget.images * _steps(c, s) * s.call,
    REAL: lambda c, s: 0.0,
}
"""The work of ``prepare`` in parts. The others are short: of them only measured seconds count."""

START_SECONDS = {"local": 12.0, "ray": 30.0, "cluster": 45.0}
_PROCESS_BYTES = 1_200_000_000
"""Of a worker that has torch, diffusers and a small model."""
_COPIES = 8
"""Weights in float32, in copies: full precision, quantized, packed, learned with its gradients."""
PAGE_SECONDS = 8.0


def shipped(workload: str) -> Size:
    """The size of the models that ship, whatever the workload."""
    return Size()


def _steps(cell: Cell, size: Size) -> int:
    return cell.budget.steps or size.steps


def _iterations(cell: Cell) -> float:
    """Iterations that a method uses: a built-in says how many at most, a plug-in may use all."""
    known = builtins().get(cell.method)
    most = None if known is None else known.most_iterations
    return 2.0 * (cell.budget.iterations if most is None else min(cell.budget.iterations, most))


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds a unit of work, as measured here.

    Attributes:
        measured: rates of finished rows by (stage, workload, method, bits).
        sizes: of workloads.
        shared: rates of the shared stages by name, as the stage cache says.
    """

    measured: Mapping[tuple[str, str, str, str], tuple[float, ...]]
    sizes: Sizes = shipped

    shared: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    _found: dict[tuple[str, ...], tuple[float, bool]] = field(
        default_factory=dict, compare=False, repr=False
    )

    @classmethod
    def of(
        cls,
        rows: Iterable[Row],
        machine: Mapping[str, Any],
        sizes: Sizes = shipped,
        shared: Iterable[tuple[Cell, str, float]] = (),
    ) -> "Rates":
        """Rates of the ok rows that were measured on this machine.

        Args:
            rows: of any workloads.
            machine: the fingerprint of this machine.
            sizes: of the workloads to estimate; those of other rows count as the ones that ship.
            shared: a cell, the name and the seconds of each shared stage that was made here.
        """
        found: dict[tuple[str, str, str, str], list[float]] = {}
        here = dict(machine)
        for row in rows:
            if row.status is not Status.OK or not same_machine(row.machine, here):
                continue
            for stage, seconds in row.seconds.items():
                # A stage answered from the cache says nothing of what it costs.
                if stage in _WORK and seconds > 0.01:
                    key = (stage, row.cell.workload, row.cell.method, row.cell.bits)
                    work = _WORK[stage](row.cell, sizes(row.cell.workload))
                    found.setdefault(key, []).append(seconds / work)
        parts: dict[str, list[float]] = {}
        for cell, name, seconds in shared:
            work = _SHARED_WORK[name](cell, sizes(cell.workload))
            parts.setdefault(name, []).append(seconds / (work or 1.0))
        return cls(
            {key: tuple(values) for key, values in found.items()},
            sizes,
            {name: tuple(values) for name, values in parts.items()},
        )

    def __bool__(self) -> bool:
        return bool(self.measured)

    def rate(self, stage: str, cell: Cell) -> float:
        """The nearest measured rate, else the default one."""
        return self._rate(stage, cell)[0]

    def with_basis(self, stage: str, cell: Cell) -> tuple[float, bool]:
        """Seconds of one stage of a cell, and whether they rest on measured ones."""
        return self.stage_seconds(stage, cell), self._rate(stage, cell)[1]

    def shared_seconds(self, name: str, cell: Cell) -> tuple[float, bool]:
        """Seconds of one of the shared stages, and whether they rest on measured ones."""
        work = _SHARED_WORK[name](cell, self.sizes(cell.workload))
        if name in self.shared:
            return median(self.shared[name]) * (work or 1.0), True
        rate, measured = self._rate(SHARED, cell)
        return rate * work, measured

    def _rate(self, stage: str, cell: Cell) -> tuple[float, bool]:
        key = (stage, cell.workload, cell.method, cell.bits)
        if key not in self._found:
            self._found[key] = self._nearest(stage, cell)
        return self._found[key]

    def _nearest(self, stage: str, cell: Cell) -> tuple[float, bool]:
        nearest: list[Callable[[str, str], bool]] = [
            lambda method, bits: method == cell.method and bits == cell.bits,
            lambda method, bits: method == cell.method,
        ]
        # What full precision or another method's search costs says nothing of this method's.
        if stage == SHARED:
            nearest.append(lambda method, bits: True)
        elif stage != "quantize" and cell.method != "fp":
            nearest.append(lambda method, bits: method != "fp")
        of_stage = [(key, rates) for key, rates in self.measured.items() if key[0] == stage]
        here = [found for found in of_stage if found[0][1] == cell.workload]
        for found in (here, of_stage):
            for fits in nearest:
                values = [v for key, rates in found if fits(*key[2:]) for v in rates]
                if values:
                    return median(values), True
        return _DEFAULT_RATE[stage], False

    def stage_seconds(self, stage: str, cell: Cell) -> float:
        """Seconds of one stage of a cell. Full precision was sampled by ``record``."""
        if cell.method == "fp" and stage in {"quantize", "pack", "parity", "sample"}:
            return 0.0
        return self.rate(stage, cell) * _WORK[stage](cell, self.sizes(cell.workload))

    def cell_seconds(self, cell: Cell) -> float:
        """Seconds of the stages that ``run_cell`` goes through."""
        return sum(self.stage_seconds(s, cell) for s in _WORK if s not in (SHARED, ALONE))


@dataclass(frozen=True, slots=True)
class Todo:
    """What a run still has to do.

    Attributes:
        shared: one cell of each shared key that has to be prepared.
        cells: cells to run.
        untimed: cells to time afterwards, those above included.
        prepared: shared keys whose shared stages are cached already.
    """

    shared: tuple[Cell, ...] = ()
    cells: tuple[Cell, ...] = ()
    untimed: tuple[Cell, ...] = ()
    prepared: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.shared or self.cells or self.untimed)


def remaining_seconds(
    todo: Todo,
    rates: Rates,
    workers: int,
    running: Mapping[str, float] | None = None,
    projected: Mapping[str, float] | None = None,
) -> float:
    """Seconds until all is done, workers being there: what an estimate in mid-run is made of.

    Args:
        todo: what is not over yet, running tasks included.
        rates: as measured so far.
        workers: that share the cells.
        running: seconds that running tasks have behind them, by ``stage:key``.
        projected: seconds that they will take in all by their own progress, likewise.
    """
    running, projected = running or {}, projected or {}
    fresh = [cell for cell in todo.shared if cell.shared_key not in todo.prepared]
    shared = [_rest(rates.stage_seconds(SHARED, c), running.get(f"prepare:{c.key}")) for c in fresh]
    full = {cell.key: rates.cell_seconds(cell) for cell in todo.cells}
    # A cell over its estimate says that the others of its method will be over theirs.
    late: dict[str, float] = {}
    for cell in todo.cells:
        task = f"cell:{cell.key}"
        spent = max(running.get(task, 0.0), projected.get(task, 0.0))
        over = spent / max(full[cell.key], 1e-9)
        late[cell.method] = max(late.get(cell.method, 1.0), over)
    cells = [
        _rest(full[cell.key] * late[cell.method], running.get(f"cell:{cell.key}"))
        for cell in todo.cells
    ]
    alone = (
        _rest(rates.stage_seconds(ALONE, c), running.get(f"time:{c.key}")) for c in todo.untimed
    )
    page = PAGE_SECONDS if todo else 0.0
    return _makespan(shared, workers) + _makespan(cells, workers) + sum(alone) + page


def _rest(estimate: float, spent: float | None) -> float:
    """What is left of a task; one that is over its estimate has a tenth of it left."""
    return estimate if spent is None else max(estimate - spent, estimate / 10)


def _makespan(seconds: Iterable[float], workers: int) -> float:
    """When the last worker is done, each taking the next task in order as it gets free."""
    free = [0.0] * max(1, workers)
    for task in seconds:
        free[free.index(min(free))] += task
    return max(free)


def memory_bytes(
    cells: Iterable[Cell], rows: Iterable[Row], megabytes: Callable[[str], float]
) -> int:
    """Bytes of memory that a worker needs for the largest of these cells; 0 without cells.

    The largest peak that was measured on the same workload with the same method counts, else a
    stated default for the size of the weights.

    Args:
        cells: to run.
        rows: of earlier runs, on any machine.
        megabytes: of a workload's weights.
    """
    peaks: dict[tuple[str, str], int] = {}
    for row in rows:
        pair = (row.cell.workload, row.cell.method)
        peaks[pair] = max(peaks.get(pair, 0), row.peak_bytes)
    pairs = {(cell.workload, cell.method) for cell in cells}
    return max(
        (
            peaks.get(pair) or int(_PROCESS_BYTES + _COPIES * megabytes(pair[0]) * 1e6)
            for pair in pairs
        ),
        default=0,
    )


def disk_of_cell(cell: Cell, resolution: int) -> int:
    """Bytes of a cell's images."""
    return cell.budget.images * (resolution**2 * 3 + 1024)


def disk_of_shared(name: str, cell: Cell, resolution: int, sizes: Sizes = shipped) -> int:
    """Bytes of one of the shared stages; those of the short ones do not count."""
    if name == IMAGES:
        return disk_of_cell(cell, resolution)
    if name != RECORD:
        return 0
    # A recorded point is a latent of a quarter of the resolution and one prediction, as float32.
    points = cell.budget.calibration_images * _steps(cell, sizes(cell.workload))
    return points * (resolution // 4) ** 2 * 4 * 2 * 4
