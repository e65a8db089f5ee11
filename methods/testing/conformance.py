"""The conformance suite: the checks that every method must pass, on three tiny networks.

``quantarena check-method NAME`` runs it. The networks have random weights: a pixel U-Net, a U-Net
with cross-attention and a diffusion transformer, so a method meets skip concatenations, both kinds
of attention and adaptive norms before it meets a real model.
"""

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from quantarena.methods.contract import DrawRecord, Method, MethodContext
from quantarena.methods.core.bits import FP, FP_WIDTH, Bits
from quantarena.methods.core.errors import QuantArenaError, Unsupported
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.model.policy import BUDGET, UNIFORM
from quantarena.methods.core.packed.pack import observe, pack
from quantarena.methods.core.packed.parity import parity
from quantarena.methods.core.record.trajectory import CalibrationSet
from quantarena.methods.info import Effort
from quantarena.methods.registry import method_entry
from quantarena.methods.testing.networks import Probe, probes

EFFORT = Effort(samples=16, iterations=4)
LADDER = (Bits(8, 8), Bits(4, 8), Bits(4, 4))
SLACK = 1.1
"""Factor by which the error may grow with more bits before that counts as wrong."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Outcome of one check.

    Attributes:
        name: name of the check.
        model: network that it ran on; ``-`` where none was needed.
        passed: whether the method passed.
        detail: the measured number, or what went wrong and where.
    """

    name: str
    model: str
    passed: bool
    detail: str


class _Suite:
    """The checks of one variant of a method; they share models, each of which is made once."""

    def __init__(self, method: Method, effort: Effort, variant: str) -> None:
        self.method, self.effort, self.variant = method, effort, variant
        # switches belong to the paper's ideas; a release may have left one out
        first = variant == method.supports.variants[0]
        self.moved = dict.fromkeys(method.switches if first else (), 0.0)
        supports = method.supports
        self.ladder = [
            b for b in LADDER if b.weight in supports.weight_bits and b.act in supports.act_bits
        ]
        if not self.ladder:
            self.ladder = [Bits(max(supports.weight_bits), max(supports.act_bits))]

    def unsupported(self) -> str:
        """Request what the method cannot do: it must raise ``Unsupported`` and nothing else."""
        supports, best = self.method.supports, self.ladder[0]
        asked = [(best, "no-such-variant")]
        for width in (*range(1, 9), FP_WIDTH):
            if width not in supports.weight_bits:
                asked.append((Bits(width, best.act), self.variant))
            if width not in supports.act_bits:
                asked.append((Bits(best.weight, width), self.variant))
        for bits, variant in asked:
            try:
                self.method.check(bits, variant)
            except Unsupported:
                continue
            raise AssertionError(f"{bits} {variant} was accepted, 'supports' does not list it")
        return f"{len(asked)} requests refused"

    def on(self, probe: Probe) -> Iterator[CheckResult]:
        """Run every check on one network."""
        first = self.variant == self.method.supports.variants[0]
        label = probe.name if first else f"{probe.name}, {self.variant}"
        made: dict[Bits, QuantizedModel] = {}
        contexts = {b: probe.context(b, self.variant, self.effort) for b in self.ladder}

        def quantizes() -> str:
            for bits, context in contexts.items():
                made[bits] = self.method.run(context)
            return ", ".join(map(str, made))

        result = _run("quantizes", label, quantizes)
        yield result
        if not result.passed:
            return
        low = self.ladder[-1]
        with torch.no_grad():
            target = probe.heldout.call(probe.model)
            outputs = {b: m.run(probe.heldout) for b, m in made.items()}
            errors = {b: _error(output, target) for b, output in outputs.items()}

        def finite() -> str:
            assert all(e < float("inf") for e in errors.values()), f"errors {_listed(errors)}"
            return "no NaN, no infinity"

        def monotone() -> str:
            values = list(errors.values())
            for better, worse in pairwise(values):
                assert better <= worse * SLACK, f"fewer bits are better: {_listed(errors)}"
            return _listed(errors)

        def deterministic() -> str:
            again = self.method.run(probe.context(low, self.variant, self.effort))
            _same_state(made[low].state(), again.state())
            return "two runs, one result"

        def round_trip() -> str:
            other = contexts[low].restore({}, made[low].notes)
            other.load_state(made[low].state())
            with torch.no_grad():
                gap = _gap(other.run(probe.heldout), outputs[low])
            assert gap == 0.0, f"the output moved by {gap:.2e} after loading"
            return "identical after loading"

        spent: list[QuantizedModel] = []

        def budget() -> str:
            context = replace(contexts[low], policy=BUDGET)
            model = self.method.run(context)
            packed = pack(model)
            parity(model, packed, probe.heldout.rows(slice(0, 4)))
            found = observe(model, packed, probe.model, context.budget)
            other = context.restore({}, model.notes)
            other.load_state(model.state())
            with torch.no_grad():
                gap = _gap(other.run(probe.heldout), model.run(probe.heldout))
            assert gap == 0.0, f"the output moved by {gap:.2e} after loading"
            spent.append(model)
            return f"{found.code_bits:.2f} bits a weight, {found.bops / found.fp_bops:.1%} BOPs"

        def switched(name: str) -> str:
            off = replace(self.method.options, **{name: self.method.switches[name]})
            other = type(self.method)(off)
            gap = 0.0
            for policy, on in ((UNIFORM, made[low]), *((BUDGET, model) for model in spent)):
                context = replace(contexts[low], policy=policy, draws=DrawRecord())
                model = other.run(context)
                with torch.no_grad():
                    gap = max(gap, _gap(model.run(probe.heldout), on.run(probe.heldout)))
                if gap:  # an idea for policy budget alone need not act under uniform
                    break
            self.moved[name] = max(self.moved[name], gap)
            return f"the output moves by {gap:.1e}"

        yield _run("finite", label, finite)
        yield _run("pass-through", label, lambda: self._pass_through(probe, made[low]))
        yield _run("deterministic", label, deterministic)
        yield _run("state round trip", label, round_trip)
        yield _run("packed equals fake", label, lambda: _parity(made, probe.heldout))
        yield _run("policy observed", label, lambda: _policy(made, probe))
        yield _run("error falls with bits", label, monotone)
        yield _run("calibration noted", label, lambda: _noted(contexts[low]))
        if self.method.supports.budget:
            yield _run("budget kept", label, budget)
        for name in self.moved:
            yield _run(f"runs without {name}", label, partial(switched, name))

    def inert(self, name: str) -> str:
        """Fail for a switch that changes no output on any network."""
        gap = self.moved[name]
        assert gap > 0, f"setting {name} to {self.method.switches[name]!r} changes no output"
        return f"up to {gap:.1e}"

    def _pass_through(self, probe: Probe, made: QuantizedModel) -> str:
        """Compare 16 bits with full precision; without 16 bits, the model with quantizers off."""
        try:
            self.method.check(FP, self.variant)
        except Unsupported:
            how = "quantizers off"
            with torch.no_grad(), made.using(weights=False, acts=False):
                output = made.run(probe.heldout)
        else:
            how = "16 bits"
            model = self.method.run(probe.context(FP, self.variant, self.effort))
            with torch.no_grad():
                output = model.run(probe.heldout)
        with torch.no_grad():
            gap = _gap(output, probe.heldout.call(probe.model))
        assert gap <= 1e-5, f"{how} differ from full precision by {gap:.2e} of its largest value"
        return f"{how}, {gap:.1e}"


def _error(output: Tensor, target: Tensor) -> float:
    value = float((output - target).square().mean() / target.square().mean())
    return value if value == value else float("inf")


def _gap(output: Tensor, target: Tensor) -> float:
    value = float((output - target).abs().max() / target.abs().max())
    return value if value == value else float("inf")


def _listed(errors: Mapping[Bits, float]) -> str:
    return ", ".join(f"{bits} {error:.2e}" for bits, error in errors.items())


def _same_state(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys(), "two runs quantize different layers"
    for name, value in one.items():
        assert torch.equal(value, other[name]), f"{name} differs between two runs with one seed"


def _parity(made: Mapping[Bits, QuantizedModel], points: CalibrationSet) -> str:
    reports = [parity(m, pack(m), points.rows(slice(0, 4))) for m in made.values() if m.layers]
    return f"{max((r.max_rel for r in reports), default=0.0):.1e} at most"


def _policy(made: Mapping[Bits, QuantizedModel], probe: Probe) -> str:
    accounts = [observe(m, pack(m), probe.model) for m in made.values() if m.layers]
    found = (f"{a.code_bits:.2f} bits a weight, {a.bops / a.fp_bops:.1%} BOPs" for a in accounts)
    return "; ".join(found) or "nothing quantized"


def _noted(context: MethodContext) -> str:
    if context.bits.act == FP_WIDTH:
        return "no activations to calibrate"
    kept = context.calibration
    assert kept, "no calibration points are noted: draw them with ctx.draw or ctx.range_points"
    ranges = kept.get("ranges")
    said: list[str] = []
    for draw, most in ((kept, context.effort.samples), (ranges, context.range_samples)):
        if not draw or "steps" not in draw:
            continue
        total = sum(draw["steps"].values())
        assert total == draw["points"], f"{draw['points']} points, the histogram counts {total}"
        assert total <= most, f"{total} points, {most} allowed"
        said.append(f"{total} points at {len(draw['steps'])} steps")
    return "; ranges: ".join(said)


def _run(name: str, model: str, body: Callable[[], str]) -> CheckResult:
    try:
        return CheckResult(name, model, True, body())
    except (QuantArenaError, AssertionError) as error:
        return CheckResult(name, model, False, str(error))
    except Exception as error:  # a method may raise anything
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return CheckResult(name, model, False, f"{type(error).__name__}: {error} ({where})")


def check(
    name: str,
    plugins: Sequence[str | Path] = (),
    prefer_plugin: bool = False,
    *,
    effort: Effort = EFFORT,
) -> list[CheckResult]:
    """Run every check on a method, each of its variants.

    Args:
        name: registered name.
        plugins: files to load first.
        prefer_plugin: let a plug-in win over a built-in of the same name.
        effort: what the method may spend on each network; it is small, for this is no benchmark.

    Raises:
        UnknownName, UserError: there is no such method, or it is a rival; or a plug-in cannot be
            loaded.
    """
    torch.set_num_threads(1)
    kind = method_entry(name, plugins, prefer_plugin=prefer_plugin)
    suites: list[_Suite] = []

    def usable() -> str:
        suites.extend(_Suite(kind(), effort, variant) for variant in kind.supports.variants)
        return f"{kind.info.title}, version {kind.info.version}"

    results = [_run("usable", "-", usable)]
    if suites:
        results.append(_run("unsupported said so", "-", suites[0].unsupported))
    for suite in suites:
        for network in probes():
            results += suite.on(network)
        for switch in suite.moved:
            results.append(_run(f"{switch} matters", "-", partial(suite.inert, switch)))
    return results
