"""The one page a method's author reads.

A method is a class with ``info``, ``supports`` and ``quantize``. Quantize gets a ``MethodContext``
and returns a ``QuantizedModel`` with every range set; the harness does the rest (seeds, timing,
packing, parity, accounting, sampling, scoring). A complete method::

    @register("mine")
    class Mine(Method):
        info = MethodInfo(title="Mine", venue="-", paper="-", summary="min-max on 64 points")
        supports = Capabilities()

        def quantize(self, ctx: MethodContext) -> QuantizedModel:
            model = ctx.wrap()
            model.set_weight_ranges(minmax_range)
            calibrate_activations(model, ctx.draw(UniformStride(64)), minmax_range)
            return model

Put it in a file and run ``quantarena run quick --plugin mine.py --method mine``, or publish it
under the entry-point group ``quantarena.methods``.
"""

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from quantarena.methods.core.bits import FP_WIDTH, Bits
from quantarena.methods.core.errors import QuantArenaError, Unsupported
from quantarena.methods.core.model.model import QuantizedModel, wrap
from quantarena.methods.core.model.policy import Policy
from quantarena.methods.core.record.call_counts import CallPolicy
from quantarena.methods.core.record.trajectory import CalibrationSet, Trajectory
from quantarena.methods.core.trace.blocks import Block, partition
from quantarena.methods.core.trace.network import Graph

Progress = Callable[[int, int], None]
"""Called with (done, total); total may change."""


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """Who made it and what it claims.

    Attributes:
        title: display name.
        venue: such as ``ICCV 2023``; ``-`` when there is none.
        paper: arXiv id or DOI; ``-`` when there is none.
        summary: one line.
        version: raised by hand whenever its numbers could move; part of every cache key.
        bibtex: entry to cite.
        deviations: what differs from the paper here, one line each.
    """

    title: str
    venue: str
    paper: str
    summary: str
    version: int = 1
    bibtex: str = ""
    deviations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a method can be asked for; anything else becomes a skipped row with the reason."""

    weight_bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    act_bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    variants: tuple[str, ...] = ("paper",)


@dataclass(frozen=True, slots=True)
class Effort:
    """What the preset lets a method spend.

    Attributes:
        samples: calibration points.
        iterations: reconstruction iterations a block.
    """

    samples: int
    iterations: int


@dataclass(slots=True)
class MethodContext:
    """All that a method sees.

    Attributes:
        model: the full-precision network; never change it, ``wrap`` copies it.
        graph: its layers, roles, MACs and skip concatenations.
        trajectory: every network call of the full-precision sampler on the calibration images.
        bits: requested widths.
        policy: which layers get them.
        variant: ``paper`` (the formula) or ``release`` (the official code's behaviour).
        seed: of everything random.
        effort: what the preset allows.
        progress: to be called now and then.
        calibration: filled by ``draw`` for the row.
    """

    model: nn.Module
    graph: Graph
    trajectory: Trajectory
    bits: Bits
    policy: Policy
    variant: str
    seed: int
    effort: Effort
    progress: Progress = lambda done, total: None
    calibration: dict[str, Any] = field(default_factory=dict)

    def wrap(self, *, splits: bool | Mapping[str, Sequence[int]] = False) -> QuantizedModel:
        """A copy of the model with quantizers where the policy wants them, ranges not set yet."""
        return wrap(
            self.model,
            self.graph,
            self.policy.assign(self.graph, self.bits),
            splits=splits,
            attention=self.policy.assign_attention(self.graph, self.bits),
        )

    def draw(self, steps: CallPolicy) -> CalibrationSet:
        """Calibration points from the trajectory; what was drawn is noted on the row."""
        points = steps.draw(self.trajectory, self.seed)
        self.calibration = {
            "policy": repr(steps),
            "points": len(points),
            "steps": {str(step): count for step, count in points.histogram().items()},
            "sha256": points.sha256(),
            "seed": self.seed,
        }
        return points

    def blocks(
        self, model: QuantizedModel, points: CalibrationSet, temporal: Collection[str] = ()
    ) -> tuple[Block, ...]:
        """The model cut into blocks, in execution order.

        Args:
            model: wrapped.
            points: two of them run once.
            temporal: layers that become one block of their own, such as all that the time
                embedding goes through (TFMQ-DM).
        """
        probe = points.rows(slice(0, 2))
        with model.using(weights=False, acts=False):
            return partition(
                model.module, model.layers, lambda: probe.call(model.module), temporal=temporal
            )


class Method(ABC):
    """Base of all methods; ``run`` is what the harness calls.

    Attributes:
        name: as registered.
        info: who made it and what it claims.
        supports: what it can be asked for.
        switches: the value that turns each of its ideas off, by attribute. Every one must change
            the output on some network, which ``check-method`` holds.
        published: the paper's own layers and widths, for policy ``published``.
    """

    name: ClassVar[str]
    info: ClassVar[MethodInfo]
    supports: ClassVar[Capabilities]
    switches: ClassVar[Mapping[str, Any]] = {}
    published: ClassVar[Policy | None] = None

    @abstractmethod
    def quantize(self, ctx: MethodContext) -> QuantizedModel:
        """Make the quantized model: every weight and activation range set.

        Raises:
            Unsupported: the request cannot be met; the cell becomes a skipped row.
        """

    def check(self, bits: Bits, variant: str) -> None:
        """Raise ``Unsupported`` when the request is outside ``supports``."""
        if variant not in self.supports.variants:
            raise Unsupported(f"{self.name} has no variant {variant!r}: {self.supports.variants}")
        for kind, width, known in (
            ("weights", bits.weight, self.supports.weight_bits),
            ("activations", bits.act, self.supports.act_bits),
        ):
            if width not in known:
                raise Unsupported(f"{self.name} does not quantize {kind} to {width} bits: {known}")

    def run(self, ctx: MethodContext) -> QuantizedModel:
        """Check, seed, quantize, freeze and verify; the seconds stand in the model's notes.

        Raises:
            Unsupported: outside what the method can do.
            QuantArenaError: the method broke its contract (a range missing, NaN, other widths than
                the policy's).
        """
        self.check(ctx.bits, ctx.variant)
        seed_all(ctx.seed)
        started = time.perf_counter()
        model = self.quantize(ctx)
        verify(model, ctx, self.name)
        model.freeze()
        model.notes["quantize_seconds"] = time.perf_counter() - started
        return model


def seed_all(seed: int) -> None:
    """Seed every generator that a method may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def verify(model: QuantizedModel, ctx: MethodContext, name: str) -> None:
    """Hold the contract: declared widths, finite ranges, nothing unset.

    Raises:
        QuantArenaError: naming the method, the layer and what is wrong.
    """
    wanted = {
        layer: bits
        for layer, bits in ctx.policy.assign(ctx.graph, ctx.bits).items()
        if not bits.is_fp
    }
    if set(wanted) != set(model.layers):
        odd = sorted(set(wanted) ^ set(model.layers))
        raise QuantArenaError(f"{name}: policy and model disagree about {_few(odd)}")
    for path, layer in model.layers.items():
        if layer.bits != wanted[path]:
            raise QuantArenaError(f"{name}: {path} is {layer.bits}, the policy says {wanted[path]}")
        for part in layer.part_list():
            quantizers = {"weight": part.weight_quantizer, "activation": part.static}
            for side, quantizer in quantizers.items():
                if quantizer is not None:
                    _check_scale(f"{name}: {path}", side, quantizer.scale)
    declared = ctx.policy.assign_attention(ctx.graph, ctx.bits)
    if declared != {path: products.bits for path, products in model.attention.items()}:
        raise QuantArenaError(f"{name}: policy and model disagree about attention products")
    for path, products in model.attention.items():
        if missing := products.unset():
            raise QuantArenaError(f"{name}: {path} has no range of its {missing[0]}")


def _check_scale(where: str, side: str, scale: Tensor) -> None:
    if scale.numel() == 0:
        raise QuantArenaError(f"{where} has no {side} range")
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise QuantArenaError(f"{where} has a {side} scale that is not positive and finite")


def _few(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


FP_ONLY = Capabilities(weight_bits=(FP_WIDTH,), act_bits=(FP_WIDTH,))
"""Of the full-precision reference."""
