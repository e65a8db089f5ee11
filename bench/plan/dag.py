"""The stages that a run goes through, as a graph: which cells share what, and what waits for what.

A pure function of the cells and of what is known about them; nothing is read or imported.

A *task* is what a worker is handed: the shared stages of a workload, a cell, or the timing of a
row. A stage belongs to one task. A worker goes through the stages of its task one after the other,
and the runner hands out a cell when all of its shared stages are there, and the first timing when
all cells are done. So a stage needs what its value comes from, and what is made before it.
"""

import functools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from quantarena.bench.plan.estimate import (
    ALONE,
    FLOOR,
    IMAGES,
    PROBE,
    REAL,
    RECORD,
    SHARED_STAGES,
    Rates,
    Sizes,
    disk_of_cell,
    disk_of_shared,
    shipped,
)
from quantarena.bench.spec import Budget, Cell, content_key
from quantarena.bench.target import Target

SETTING, MODEL, SAMPLE, SCORE, TIME = "fastest setting", "model", "images", "score", "time"
_NAMES = {
    RECORD: "recording of {w}, seed {s}",
    IMAGES: "full-precision images of {w}, seed {s}",
    PROBE: "probe of {w}, seed {s}",
    FLOOR: "floors of {w}, seed {s}",
    REAL: "real images of {w}",
    SETTING: "fastest full precision of {w}",
}


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a run.

    Attributes:
        name: kind of stage, such as ``record``.
        key: names this stage among all of the run.
        label: as a reader knows it, such as ``recording of emoji-t2i, seed 0``.
        task: the task that makes it: ``prepare:KEY``, ``cell:KEY`` or ``time:KEY``.
        needs: keys of the stages that it waits for. What stages that run alone wait for besides,
            which is all the others, is not listed.
        cells: number of cells that use it.
        seconds: estimated, on one worker; of a cached one those that it took.
        measured: whether the seconds rest on this store's own timings.
        disk: estimated bytes that it keeps.
        cached: whether it is there already.
        alone: whether nothing else may run on its machine.
    """

    name: str
    key: str
    label: str
    task: str
    needs: tuple[str, ...] = ()
    cells: int = 1
    seconds: float = 0.0
    measured: bool = False
    disk: int = 0
    cached: bool = False
    alone: bool = False

    @property
    def left(self) -> float:
        """Seconds that are still to be spent."""
        return 0.0 if self.cached else self.seconds


@dataclass(frozen=True, slots=True)
class Known:
    """What a graph takes from the store and its past.

    Attributes:
        rates: seconds a unit of work.
        done: keys of cells that are done.
        timed: keys of cells whose latency is measured.
        prepared: shared keys whose stages are there, as rows that rest on them say.
        shared: (seconds, bytes) by the shared key of a task and the name of its stage: what the
            cache says of entries that exist.
        models: keys of models (``model_key``) that are in the cache.
        sizes: of workloads.
        resolution: pixels a side of a workload.
        model_bytes: bytes of a quantized network.
    """

    rates: Rates
    done: Collection[str] = frozenset()
    timed: Collection[str] = frozenset()
    prepared: Collection[str] = frozenset()
    shared: Mapping[tuple[str, str], tuple[float, int]] = field(default_factory=dict)
    models: Collection[str] = frozenset()
    sizes: Sizes = shipped
    resolution: Callable[[str], int] = lambda workload: 32
    model_bytes: Callable[[str], int] = lambda workload: 20_000_000


@dataclass(frozen=True, slots=True)
class Dag:
    """All stages of a run, each after those that it needs.

    Attributes:
        stages: by key.
    """

    stages: Mapping[str, Stage]

    @property
    def shared(self) -> tuple[Stage, ...]:
        """Stages that more than one cell may use."""
        names = (*SHARED_STAGES, SETTING)
        return tuple(s for s in self.stages.values() if s.name in names or s.cells > 1)

    def tasks(self) -> dict[str, float]:
        """Seconds that each task still takes, in order; tasks with nothing to do are left out."""
        found: dict[str, float] = {}
        for stage in self.stages.values():
            if not stage.cached:
                found[stage.task] = found.get(stage.task, 0.0) + stage.seconds
        return found

    def waits(self) -> dict[str, set[str]]:
        """The other tasks that each task waits for."""
        found: dict[str, set[str]] = {}
        for stage in self.stages.values():
            needs = (self.stages[need] for need in stage.needs)
            others = {need.task for need in needs if not need.cached}
            found.setdefault(stage.task, set()).update(others - {stage.task})
        return found

    def critical(self) -> tuple[float, tuple[Stage, ...]]:
        """Seconds and stages of the longest chain: no number of workers and machines is faster."""
        ends: dict[str, float] = {}
        before: dict[str, str | None] = {}
        latest: tuple[str, ...] = ()  # of the stages that do not run alone: timings wait for it
        for key, stage in self.stages.items():
            waits = (*stage.needs, *latest) if stage.alone else stage.needs
            last = max(waits, key=lambda need: ends[need], default=None)
            ends[key] = stage.left + (ends[last] if last is not None else 0.0)
            before[key] = last
            if not stage.alone and (not latest or ends[key] > ends[latest[0]]):
                latest = (key,)
        if not ends:
            return 0.0, ()
        place: str | None = max(ends, key=lambda each: ends[each])
        seconds, chain = ends[str(place)], []
        while place is not None:
            chain.append(self.stages[place])
            place = before[place]
        return seconds, tuple(stage for stage in reversed(chain) if stage.left > 0)


def model_key(cell: Cell) -> str:
    """What names a cell's model: cells that differ in anything else share it.

    These are its images, its runtime and number format, threads, and rounds of timing.
    """
    budget = cell.budget
    effort = f"{budget.calibration_samples},{budget.range_samples},{budget.iterations}"
    recorded = _shared_keys(cell)[RECORD]
    return f"{recorded}/{cell.configured}/{cell.bits}/{cell.variant}/{cell.policy}/{effort}"


def stage_dag(cells: Iterable[Cell], known: Known) -> Dag:
    """The graph of all stages of these cells.

    Args:
        cells: of one run.
        known: what the store and its past say.
    """
    cells = tuple(cells)
    made: dict[str, Stage] = {}
    users: Counter[str] = Counter()
    for parts, used in ((_prepared, _of_prepared), (_own, _of_own), (_timing, _of_timing)):
        for cell in cells:
            keys = _shared_keys(cell)
            for stage in parts(cell, keys, known, made):
                made.setdefault(stage.key, stage)
            users.update(used(cell, keys))
    several = {key: count for key, count in users.items() if count > 1}
    for key, count in several.items():
        made[key] = replace(made[key], cells=count)
    return Dag(made)


def _of_prepared(cell: Cell, keys: Mapping[str, str]) -> Iterable[str]:
    """The keys of what a cell needs of ``_prepared``'s stages."""
    return (keys[name] for name in SHARED_STAGES)


def _of_own(cell: Cell, keys: Mapping[str, str]) -> Iterable[str]:
    """Of ``_own``'s stages, those that others may need, too."""
    return () if cell.method == "fp" else (f"{MODEL}:{model_key(cell)}",)


def _of_timing(cell: Cell, keys: Mapping[str, str]) -> Iterable[str]:
    """Likewise of ``_timing``'s."""
    return (keys[SETTING],)


def _prepared(
    cell: Cell, keys: Mapping[str, str], known: Known, made: Collection[str]
) -> Iterator[Stage]:
    """The stages that the cells of one workload, seed and budget wait for."""
    needs: dict[str, tuple[str, ...]] = {
        PROBE: (keys[RECORD],),
        FLOOR: (keys[IMAGES], keys[PROBE]),
    }
    before: tuple[str, ...] = ()
    for name in SHARED_STAGES:
        if keys[name] in made:
            continue
        found = known.shared.get((cell.shared_key, name))
        seconds, measured = known.rates.shared_seconds(name, cell)
        disk = disk_of_shared(name, cell, known.resolution(cell.workload), known.sizes)
        if found is not None:
            seconds, disk, measured = *found, True
        yield Stage(
            name,
            keys[name],
            _NAMES[name].format(w=cell.workload, s=cell.seed),
            f"prepare:{cell.shared_key}",
            tuple(dict.fromkeys((*needs.get(name, ()), *before))),
            seconds=seconds,
            measured=measured,
            disk=disk,
            cached=found is not None or cell.shared_key in known.prepared,
        )
        before = (keys[name],)


def _own(
    cell: Cell, keys: Mapping[str, str], known: Known, made: Collection[str]
) -> Iterator[Stage]:
    """The stages of a cell itself; full precision is drawn by the shared ones."""
    done, task, rates = cell.key in known.done, f"cell:{cell.key}", known.rates
    shared = tuple(keys[name] for name in SHARED_STAGES)
    if cell.method != "fp":
        model, sample = model_key(cell), f"{SAMPLE}:{cell.key}"
        if f"{MODEL}:{model}" not in made:
            seconds, measured = rates.with_basis("quantize", cell)
            yield Stage(
                MODEL,
                f"{MODEL}:{model}",
                f"model {cell.configured} {cell.bits} of {cell.workload}, seed {cell.seed}",
                task,
                shared,
                seconds=seconds,
                measured=measured,
                disk=known.model_bytes(cell.workload),
                cached=done or model in known.models,
            )
        yield Stage(
            SAMPLE,
            sample,
            f"images of {cell.label}, seed {cell.seed}",
            task,
            (*shared, f"{MODEL}:{model}"),
            seconds=sum(rates.stage_seconds(each, cell) for each in ("pack", "parity", "sample")),
            measured=rates.with_basis("sample", cell)[1],
            disk=disk_of_cell(cell, known.resolution(cell.workload)),
            cached=done,
        )
        shared = (*shared, sample)
    yield Stage(
        SCORE,
        f"{SCORE}:{cell.key}",
        f"scores of {cell.label}, seed {cell.seed}",
        task,
        shared,
        seconds=rates.stage_seconds("score", cell) + rates.stage_seconds("other", cell),
        measured=rates.with_basis("score", cell)[1],
        disk=20_000,
        cached=done,
    )


def _timing(
    cell: Cell, keys: Mapping[str, str], known: Known, made: Collection[str]
) -> Iterator[Stage]:
    """The latency of a cell's row, and the setting of full precision that it is held against."""
    timed = cell.key in known.timed and cell.key in known.done
    task, seconds, measured = f"time:{cell.key}", *known.rates.with_basis(ALONE, cell)
    if keys[SETTING] not in made:
        yield Stage(
            SETTING,
            keys[SETTING],
            _NAMES[SETTING].format(w=cell.workload),
            task,
            (keys[RECORD],),
            measured=measured,  # its seconds are in the rate of timings: the first one makes it
            cached=timed,
            alone=True,
        )
    yield Stage(
        TIME,
        f"{TIME}:{cell.key}",
        f"latency of {cell.label}, seed {cell.seed}",
        task,
        (keys[SETTING], f"{SCORE}:{cell.key}"),
        seconds=seconds,
        measured=measured,
        cached=timed,
        alone=True,
    )


def _shared_keys(cell: Cell) -> Mapping[str, str]:
    """The keys of the stages that a cell shares with others."""
    return _keys(cell.workload, cell.seed, cell.budget, cell.target)


@functools.lru_cache(maxsize=4096)
def _keys(workload: str, seed: int, budget: Budget, target: Target) -> Mapping[str, str]:
    sampler = [workload, seed, budget.steps, budget.batch, target.device, target.offload]
    what: dict[str, list[Any]] = {
        RECORD: [*sampler, budget.calibration_images],
        IMAGES: [*sampler, budget.images],
        PROBE: [*sampler, budget.images],
        FLOOR: [*sampler, budget.images],
        REAL: [workload, target.device],  # of all seeds
        SETTING: [workload, budget, target],
    }
    return {name: f"{name}:{content_key(value)}" for name, value in what.items()}
