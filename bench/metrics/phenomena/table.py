"""The table of phenomena: one line for each, over the layers of a network."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from quantarena.bench.metrics.phenomena.statistics import (
    deep_over_skip,
    kurtosis,
    largest_over_median,
    range_by_call,
)
from quantarena.bench.metrics.phenomena.watch import watch
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.core.trace.network import Graph, QuantizableModule


@dataclass(frozen=True, slots=True)
class Phenomenon:
    """One phenomenon over the layers of a network.

    Attributes:
        name: what was measured.
        neutral: the value where the phenomenon is absent.
        layers: number of layers, or of attention products, that it was measured on.
        median: value of the median layer; None where there is no layer.
        largest: largest value.
        where: path of the layer with the largest value, or "".
    """

    name: str
    neutral: str
    layers: int
    median: float | None
    largest: float | None
    where: str


def phenomena(network: nn.Module, graph: Graph, recorded: Trajectory) -> tuple[Phenomenon, ...]:
    """Measure every phenomenon on a network and the calls of its sampler.

    Args:
        network: in full precision.
        graph: its graph.
        recorded: calls of its sampler.
    """
    seen = watch(network, graph, recorded)
    middle, tails = {}, {}
    for name in graph.layers:
        layer = network.get_submodule(name)
        assert isinstance(layer, QuantizableModule)
        found = kurtosis(layer.weight)
        if len(found):
            middle[name], tails[name] = float(found.median()), float(found.max())
    peaks = {name: by_call.amax(0) for name, by_call in seen.channels.items()}
    halves = {
        name: deep_over_skip(peaks[name], layer.splits)
        for name, layer in graph.layers.items()
        if len(layer.splits) > 1 and name in peaks
    }
    tokens = {name: _median(ratios) for name, ratios in seen.tokens.items()}
    return (
        _line("weight kurtosis, median channel", "3: normal", middle),
        _line("weight kurtosis, largest channel", "3: normal", tails),
        _line(
            "input range over sampler calls, largest / smallest",
            "1",
            {name: range_by_call(by_call) for name, by_call in seen.channels.items()},
        ),
        _line("skip concatenations, deep half / skip half", "1", halves),
        _line(
            "input channels, largest / median",
            "1",
            {name: largest_over_median(found) for name, found in peaks.items()},
        ),
        _line("input tokens, largest / median", "1", tokens),
        _line(
            "cross-attention on the first token / uniform",
            "1",
            {name: statistics.fmean(found) for name, found in seen.shares.items()},
        ),
    )


def markdown(found: Sequence[Phenomenon]) -> str:
    """The table for a model's card."""
    lines = ["| phenomenon | absent | layers | median layer | largest layer |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for line in found:
        values = f"{shown(line.median)} | {shown(line.largest)}"
        lines.append(f"| {line.name} | {line.neutral} | {line.layers} | {values} |")
    return "\n".join(lines)


def shown(value: float | None) -> str:
    """A value at three digits; a dash where there is none."""
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _line(name: str, neutral: str, values: Mapping[str, float]) -> Phenomenon:
    known = {path: value for path, value in values.items() if not math.isnan(value)}
    if not known:
        return Phenomenon(name, neutral, 0, None, None, "")
    where = max(known, key=lambda path: known[path])
    return Phenomenon(name, neutral, len(known), _median(known.values()), known[where], where)


def _median(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan
