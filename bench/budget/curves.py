"""What a budget curve is: plain data, which the page draws and ``budget.json`` holds. No torch."""

from dataclasses import dataclass
from pathlib import Path

from quantarena.bench.schema import Row
from quantarena.bench.spec import Cell


@dataclass(frozen=True, slots=True)
class Level:
    """One budget of the curves.

    Attributes:
        factor: times the preset's own budget, such as ``1/4``.
        run: name of the results folder.
        spent: what the budget lets a method spend, in words.
    """

    factor: str
    run: str
    spent: str


@dataclass(frozen=True, slots=True)
class LevelRun:
    """One budget with what was measured at it.

    Attributes:
        level: the budget.
        folder: the results folder.
        cells: the planned cells.
        rows: the rows that there are.
    """

    level: Level
    folder: Path
    cells: tuple[Cell, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Measure:
    """What a chart shows upwards.

    Attributes:
        name: the metric whose scores by image decide who wins.
        title: what is drawn, for readers.
        unit: unit of what is drawn.
        higher: whether a larger drawn value is better.
    """

    name: str
    title: str
    unit: str
    higher: bool


@dataclass(frozen=True, slots=True)
class Reading:
    """A mean over the images of all seeds, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Stop:
    """One method at one budget.

    Attributes:
        factor: the budget.
        state: the worst status of its seeds, or ``missing``.
        reason: why the state is not ok; empty where it is.
        core_seconds: processor seconds of quantizing, the mean over seeds; None where unknown.
        readings: by name of the measure.
    """

    factor: str
    state: str
    reason: str
    core_seconds: float | None
    readings: dict[str, Reading]


@dataclass(frozen=True, slots=True)
class Knee:
    """Where more budget stops to help a method.

    Attributes:
        factor: the smallest budget whose images are not worse than those of the best one beyond
            the interval of the paired difference.
        core_seconds: what it takes there.
        reached: false where it is the largest budget of several: a still larger one may be better.
    """

    factor: str
    core_seconds: float | None
    reached: bool


@dataclass(frozen=True, slots=True)
class Curve:
    """One method over all budgets.

    Attributes:
        method: name with its options.
        title: for readers.
        stops: one for each budget, the smallest first.
        knees: by name of the measure; none where there is no verdict.
    """

    method: str
    title: str
    stops: tuple[Stop, ...]
    knees: dict[str, Knee]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Who wins at one budget.

    Attributes:
        factor: the budget.
        measure: name of the measure.
        winners: the best and all that are not worse than it beyond the interval of the paired
            difference; empty where there is no verdict.
        text: the verdict in one sentence.
    """

    factor: str
    measure: str
    winners: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Panel:
    """The curves of one workload at one width.

    Attributes:
        workload: its name.
        setting: bits, and policy and variant where they are not the default.
        measures: what is drawn.
        curves: one for each method.
        verdicts: one for each budget and measure.
    """

    workload: str
    setting: str
    measures: tuple[Measure, ...]
    curves: tuple[Curve, ...]
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class Curves:
    """All that was measured for a set of budgets.

    Attributes:
        title: heading.
        command: the command line that measures it again.
        levels: the budgets, the smallest first.
        panels: one for each workload and width.
        machines: names of the processors.
    """

    title: str
    command: str
    levels: tuple[Level, ...]
    panels: tuple[Panel, ...]
    machines: tuple[str, ...]
