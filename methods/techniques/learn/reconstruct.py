"""Block reconstruction: make each quantized block answer as its full-precision twin does.

Two passes travel through the network side by side, a quantized and a full-precision one, and stop
together at every block. There the block is optimised on what has just arrived, so its inputs come
from the quantized prefix, as BRECQ and Q-Diffusion ask, and its targets from the full-precision
network on its own inputs. Then both go on, the quantized one through the optimised block. Each
prefix is therefore computed once, never again for each block.

Memory: the calibration set may travel in chunks. What is alive at once is then one chunk's pass
through one block, one training batch, and, in files that the system can write out, the streams
between blocks and the rows of the present block (its inputs and targets; twice its inputs where a
schedule mixes in full-precision ones).
"""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.record.points import CalibrationSet, evenly
from quantarena.methods.core.trace.blocks import Block
from quantarena.methods.techniques.learn.block_rows import Arrival, Given, gathered
from quantarena.methods.techniques.learn.cost import Meter
from quantarena.methods.techniques.learn.learning import start_learning
from quantarena.methods.techniques.learn.lockstep import PausedPasses
from quantarena.methods.techniques.learn.optimise import Ground, layer_outputs, optimise
from quantarena.methods.techniques.learn.schedule import Schedule

BlockProgress = Callable[[int, int], None]

_JUDGED = 128
_JUDGED_LEAST = 32
"""Points on which losses are reported, at most and at least."""


@dataclass(frozen=True, slots=True)
class BlockReport:
    """What reconstruction did to one block.

    Attributes:
        name: module path.
        iterations: optimiser steps taken.
        before: loss before.
        soft: loss after, with codes still soft and zero points still real.
        after: loss after, as it will be packed; ``after - soft`` is the hardening gap.
        drift: farthest that a learned zero point moved to become an integer, in codes.
        seconds: wall time, targets and arrival included.
        cpu_seconds: of all threads.
        rss_growth: bytes of resident memory at its highest above that at the start.
        device_bytes: highest bytes on the CUDA device, 0 without one.
        cached_bytes: of the block's rows, in memory or in files.
    """

    name: str
    iterations: int
    before: float
    soft: float
    after: float
    drift: float
    seconds: float
    cpu_seconds: float
    rss_growth: int
    device_bytes: int
    cached_bytes: int

    @property
    def gap(self) -> float:
        """What hardening cost."""
        return self.after - self.soft

    def note(self, *more: str) -> dict[str, Any]:
        """The block's name, losses and seconds as plain data, with further fields by name."""
        names = ("before", "after", *more)
        losses = {name: getattr(self, name) for name in names}
        return {"block": self.name, **losses, "seconds": round(self.seconds, 3)}


def reconstruct(
    model: QuantizedModel,
    blocks: Sequence[Block],
    points: CalibrationSet,
    schedule: Schedule,
    *,
    acts: bool,
    seed: int,
    chunk: int = 0,
    folder: Path | None = None,
    progress: BlockProgress | None = None,
) -> list[BlockReport]:
    """Optimise every block in execution order.

    A lone layer that the network calls several times is optimised on its first call.

    Args:
        model: weight ranges set; activation ranges set too if ``acts``.
        blocks: partition of the network.
        points: calibration points.
        schedule: what learns, how fast and how long.
        acts: whether activation quantizers are on, in the block and in its prefix.
        seed: of minibatches and of what is dropped.
        chunk: points that travel together; 0 lets all travel as one batch, in memory.
        folder: where files of rows go when there are chunks; the system's own place by default.
        progress: called with (blocks done, blocks).

    Raises:
        Unsupported: a block's arguments or output are none that rows can be drawn from; names it.
        ValueError: the schedule asks for what these layers cannot learn.
    """
    size = chunk or len(points)
    chunks = list(points.batches(size))
    place = Path(folder or tempfile.gettempdir()) if len(chunks) > 1 else None
    engine = _Engine(model, schedule, chunks, points.step, place, acts)
    generator = torch.Generator().manual_seed(seed)
    reports: list[BlockReport] = []
    ours = PausedPasses(model, blocks, chunks, engine.quantized, place)
    theirs = PausedPasses(model, blocks, chunks, engine.full, place, departures=True)
    with closing(ours), closing(theirs):
        for block in blocks:
            reports.append(engine.work(block, ours, theirs, generator))
            if progress is not None:
                progress(len(reports), len(blocks))
    return reports


@dataclass(frozen=True, slots=True)
class _Engine:
    """What all blocks of one reconstruction share."""

    model: QuantizedModel
    schedule: Schedule
    chunks: list[CalibrationSet]
    steps: Tensor
    folder: Path | None
    acts: bool

    def quantized(self) -> AbstractContextManager[None]:
        """Quantizers as the prefix has them."""
        return self.model.using(weights=True, acts=self.acts)

    def full(self) -> AbstractContextManager[None]:
        """Full precision."""
        return self.model.using(weights=False, acts=False)

    def work(
        self, block: Block, ours: PausedPasses, theirs: PausedPasses, generator: torch.Generator
    ) -> BlockReport:
        """Let both passes arrive at the block and optimise it."""
        with Meter() as meter:
            ground, nbytes = self._ground(block, ours.arrive(), theirs)
            with self.quantized():
                iterations, before, soft, after, drift = self._tune(ground, generator)
        return BlockReport(
            block.name,
            iterations,
            before,
            soft,
            after,
            drift,
            meter.seconds,
            meter.cpu_seconds,
            meter.rss_growth,
            meter.device_bytes,
            nbytes,
        )

    def _ground(self, block: Block, given: list[Given], theirs: PausedPasses) -> tuple[Ground, int]:
        """Rows of the block's inputs and targets, and their bytes."""
        sizes = [len(chunk) for chunk in self.chunks]
        arrival = Arrival(block.name, given, sizes, self.folder)
        nbytes, full = arrival.nbytes, None
        layer_targets: dict[str, Tensor] = {}
        arrived = theirs.arrive()
        if self.schedule.mix or self.schedule.layers or block.tails:
            origin = Arrival(block.name, arrived, sizes, self.folder)
            full = origin.stream
            target, layer_targets = self._targets(block, origin)
            nbytes += origin.nbytes + sum(t.nbytes for t in layer_targets.values())
        else:
            target = _as_rows(block, theirs.leave(), sizes, self.folder)
        ground = Ground(self.model, block, self.steps, arrival, target, full, layer_targets)
        return ground, nbytes + target.nbytes

    @torch.no_grad()
    def _targets(self, block: Block, origin: Arrival) -> tuple[Tensor, dict[str, Tensor]]:
        """Full-precision outputs of the block, and of its layers where they have losses."""
        wanted = block.layers[:-1] if self.schedule.layers else ()
        outputs: list[Tensor] = []
        inner: dict[str, list[Tensor]] = {name: [] for name in wanted}
        layers = {name: self.model.layers[name] for name in wanted}
        count = len(self.steps)
        edges = range(0, count, _JUDGED)
        pieces = [torch.arange(start, min(start + _JUDGED, count)) for start in edges]
        with self.full(), layer_outputs(layers, wanted) as seen:
            for index in pieces:
                args, kwargs = origin.at(index)
                outputs.append(block.run(self.model.module, args, kwargs))
                for name in wanted:
                    inner[name].append(seen[name])
        sizes = [len(index) for index in pieces]
        rows = {n: _as_rows(block, found, sizes, self.folder) for n, found in inner.items()}
        return _as_rows(block, outputs, sizes, self.folder), rows

    def _tune(
        self, ground: Ground, generator: torch.Generator
    ) -> tuple[int, float, float, float, float]:
        """Iterations, losses before, soft and after, and drift."""
        block, norm, count = ground.block, self.schedule.norm, len(self.steps)
        judged = evenly(count, _judged(self.schedule))
        layers = {name: self.model.layers[name] for name in block.layers}
        acts = self.model.product_quantizers(block.name) if self.acts else []
        before = soft = ground.loss(judged, norm)
        learning = start_learning(layers, acts, self.schedule.groups, self.schedule.rank)
        iterations, drift = 0, 0.0
        try:
            if learning.found and self.schedule.iterations:
                iterations = optimise(ground, learning, self.schedule, generator)
                soft = ground.loss(judged, norm)
        finally:  # an interrupt leaves codes, not undecided roundings
            drift = learning.finish()
        return iterations, before, soft, ground.loss(judged, norm), drift


def _as_rows(block: Block, chunks: list[Any], sizes: list[int], folder: Path | None) -> Tensor:
    for output, size in zip(chunks, sizes, strict=True):
        if not isinstance(output, Tensor) or not output.dim() or len(output) != size:
            raise Unsupported(
                f"{block.name} cannot be reconstructed: it must give one tensor with a row for "
                f"each of {size} points, not {_shape(output)}"
            )
    return gathered(chunks, folder)


def _shape(output: Any) -> str:
    return str(tuple(output.shape)) if isinstance(output, Tensor) else type(output).__name__


def _judged(schedule: Schedule) -> int:
    """Points to judge by: judging thrice stays near a tenth of what learning costs."""
    affordable = schedule.iterations * schedule.batch // 16
    return min(_JUDGED, max(_JUDGED_LEAST, affordable))
