"""Times the instruction sets of this machine against each other, one layer at a time.

All units run interleaved in one process, so that a busy machine slows all of them alike. The speed
of a layer is compared with two peaks of its unit, measured in the same minutes: the instructions of
a product on operands in registers (``resident``), and the micro-kernel on data in the first-level
cache.
"""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional

from quantarena.methods.core.kernels import native
from quantarena.methods.core.packed.nodes.leaf import PackedLayer
from quantarena.methods.timing.cases import Case, example_input, gaussian_layer
from quantarena.methods.timing.interleave import interleave
from quantarena.methods.timing.rivals import Run

_OUTPUTS, _UNIT = 96, 16
"""Outputs and K of the work that ``QaUnit.peak`` counts in."""


@dataclass(frozen=True, slots=True)
class Peak:
    """Multiply-accumulates per second of one unit on one thread, without a layer around them.

    Attributes:
        resident: the instructions alone, on operands in registers; NaN where the unit has no such
            loop.
        cached: the micro-kernel on data in the first-level cache.
    """

    resident: float
    cached: float


@dataclass(frozen=True, slots=True)
class UnitTiming:
    """One layer on every unit.

    Attributes:
        case: the layer.
        bits: its widths, for example ``w4a8``.
        fp32: seconds of the faster full-precision layer.
        seconds: seconds by unit, in the faster memory format.
        pairs: units that multiplied 16-bit pairs.
    """

    case: Case
    bits: str
    fp32: float
    seconds: dict[str, float]
    pairs: frozenset[str]

    def rate(self, unit: str) -> float:
        """Multiply-accumulates per second, quantization and output included."""
        return self.case.products / self.seconds[unit]


def peaks(names: Iterable[str], *, pair: bool = False, rounds: int = 15) -> dict[str, Peak]:
    """Measures the peaks of units, interleaved; the best of the rounds counts.

    Args:
        names: units of this machine.
        pair: 16-bit products, for the units that have them; the others are left out.
        rounds: samples of each loop.
    """
    work = {(name, units): math.inf for name in names for units in (0, 24)}
    functions = {name: native.load(name).peak for name, _ in work}
    for _ in range(rounds):
        for name, units in work:
            function = functions[name]
            assert function is not None
            repeats = 4096 if units else 65536
            # The best of short loops by the wall's clock: what else ran spoils some of them only,
            # and a processor's clock may move in steps that are longer than the loop.
            start = time.perf_counter()
            if function(int(pair), units, repeats) == 0:
                spent = (time.perf_counter() - start) / (repeats * max(units, 1))
                work[name, units] = min(work[name, units], spent)
    each = _OUTPUTS * _UNIT
    return {
        name: Peak(
            each / work[name, 0] if work[name, 0] < math.inf else math.nan, each / work[name, 24]
        )
        for name, units in work
        if units and work[name, 24] < math.inf
    }


def compare(case: Case, bits: tuple[int, int], names: Sequence[str], rounds: int = 9) -> UnitTiming:
    """Times one layer on every unit and in full precision, on one thread.

    Args:
        case: the layer.
        bits: widths of weights and activations.
        names: units of this machine.
        rounds: samples per contestant.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            return _compare(case, bits, names, rounds)
    finally:
        torch.set_num_threads(before)


def _compare(case: Case, bits: tuple[int, int], names: Sequence[str], rounds: int) -> UnitTiming:
    layer, weight = gaussian_layer(case, *bits)
    inputs = {"": example_input(case)}
    if case.kind != "linear":
        inputs["/last"] = inputs[""].contiguous(memory_format=torch.channels_last)
    modules = {name: PackedLayer(layer, native.load(name)) for name in names}
    runs: dict[str, Run] = {}
    for suffix, x in inputs.items():
        if case.kind == "linear":
            runs["fp32"] = partial(functional.linear, x, weight, layer.bias)
        else:
            form = torch.channels_last if suffix else torch.contiguous_format
            own = weight.contiguous(memory_format=form)
            runs["fp32" + suffix] = partial(functional.conv2d, x, own, layer.bias, padding=1)
        runs |= {name + suffix: partial(module, x) for name, module in modules.items()}
    times = interleave(runs, rounds, threads=1)
    fastest = {
        name: min(t for run, t in times.items() if run.split("/")[0] == name)
        for name in ("fp32", *names)
    }
    pairs = frozenset(name for name, module in modules.items() if module.uses_pairs)
    return UnitTiming(case, "w{}a{}".format(*bits), fastest.pop("fp32"), fastest, pairs)


def table(timings: Sequence[UnitTiming], found: dict[bool, dict[str, Peak]]) -> str:
    """One line per layer: fp32 time over the time of each unit, and the share of the unit's peak.

    Args:
        timings: results of :func:`compare` for the same units.
        found: results of :func:`peaks` by ``pair``.
    """
    names = list(timings[0].seconds)
    lines = [f"{'fp32 time / time, share of the peak':38}" + "".join(f"{n:>18}" for n in names)]
    for t in timings:
        cells = ""
        for name in names:
            peak = found[name in t.pairs][name]
            top = peak.cached if math.isnan(peak.resident) else max(peak.resident, peak.cached)
            cells += f"{t.fp32 / t.seconds[name]:11.2f}{t.rate(name) / top:7.0%}"
        lines.append(f"{t.case.name + ' ' + t.bits:38}{cells}")
    logs = {n: sum(math.log(t.fp32 / t.seconds[n]) for t in timings) for n in names}
    means = [math.exp(total / len(timings)) for total in logs.values()]
    lines.append(f"{'geometric mean':38}" + "".join(f"{mean:11.2f}{'':7}" for mean in means))
    for pair, form in ((False, "4 k per step"), (True, "2 k per step")):
        for name, peak in found[pair].items():
            lines.append(
                f"peak of {name}, {form}: {peak.resident / 1e9:.0f} GMAC/s on registers, "
                f"{peak.cached / 1e9:.0f} from the first-level cache"
            )
    return "\n".join(lines)
