"""Block reconstruction: train each quantized block to reproduce its full-precision outputs.

Two passes run through the network side by side, a quantized and a full-precision one, and pause
together before every block. There the block is optimised: its inputs come from the quantized
prefix, as BRECQ and Q-Diffusion ask, its targets from the full-precision network on its own inputs.
Then both passes go on, the quantized one through the optimised block. So each prefix is computed
once, and not again for every block.

Peak memory: one chunk inside one block plus one training batch. Activations between blocks and the
present block's inputs and targets are memory-mapped files (twice the inputs where a schedule mixes
in full-precision ones).
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.record.points import CalibrationSet, evenly
from quantarena.methods.core.record.rows import Rows, module_rows
from quantarena.methods.core.trace.blocks import Block
from quantarena.methods.core.visits import resident
from quantarena.methods.techniques.learn.block_problem import BlockProblem, ProblemMaker
from quantarena.methods.techniques.learn.cost import Meter, note_training
from quantarena.methods.techniques.learn.learning import start_learning
from quantarena.methods.techniques.learn.lockstep import PausedPasses
from quantarena.methods.techniques.learn.optimise import optimise
from quantarena.methods.techniques.learn.schedule import Schedule

BlockProgress = Callable[[int, int], None]

_JUDGED = 128
_JUDGED_LEAST = 32
"""Largest and smallest number of points that reported losses are measured on."""
_HELD_LEAST = 8
"""Smallest number of held-out points, however short the training."""


@dataclass(frozen=True, slots=True)
class BlockReport:
    """Losses and cost of one block's reconstruction.

    Attributes:
        name: module path of the block.
        iterations: optimiser steps taken.
        before: loss before the reconstruction.
        soft: loss after it, with roundings still soft and zero points still real numbers.
        after: loss after it, as the block will be packed; ``after - soft`` is the hardening gap.
        drift: largest distance by which a learned zero point moved to become an integer, in codes.
        seconds: wall time, including the computation of inputs and targets.
        cpu_seconds: processor time of all threads.
        rss_growth: peak resident memory minus that at the start, in bytes.
        device_bytes: peak memory of tensors on the CUDA device in bytes, 0 without a device.
        cached_bytes: size of the block's inputs and targets, in memory or in files.
        held_before: loss before the reconstruction on held-out points; None without such points.
        held_after: the same after it, as the block will be packed.
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
    held_before: float | None = None
    held_after: float | None = None

    @property
    def gap(self) -> float:
        """Increase of the loss by the hardening of roundings and zero points."""
        return self.after - self.soft

    def note(self, *more: str) -> dict[str, Any]:
        """The block's name, losses and seconds as plain data, with further fields by name."""
        held = () if self.held_before is None else ("held_before", "held_after")
        names = ("before", "after", *held, *more)
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
    held_out: CalibrationSet | None = None,
) -> list[BlockReport]:
    """Optimise every block in execution order.

    A single layer that the network calls several times is optimised on its first call. A block
    whose arguments or output have no rows of the points, as that of a learned table, keeps the
    ranges that it has; the model's notes name it under ``not_reconstructed``.

    Args:
        model: network with weight ranges set, and with activation ranges set if ``acts``.
        blocks: partition of the network.
        points: calibration points.
        schedule: which parameters learn, how fast and for how long.
        acts: whether activation quantizers are on, in the block and in its prefix.
        seed: seed of the minibatches and of random dropping.
        chunk: points of one forward pass; 0 runs all points as one batch and keeps rows in memory.
        folder: folder of the files where there are chunks; by default that of temporary files.
        progress: called with (blocks done, blocks in all).
        held_out: points to measure losses on before and after, which nothing learns from. Of them
            as many are taken as cost at most a tenth of a block's training.

    Raises:
        Unsupported: the arguments or the output of a block cannot be split by points; names the
            block.
        ValueError: the schedule asks for what these layers cannot learn.
    """
    size = chunk or len(points)
    chunks = list(points.batches(size))
    place = Path(folder or tempfile.gettempdir()) if len(chunks) > 1 else None
    quantized = partial(model.using, weights=True, acts=acts)
    full_precision = partial(model.using, weights=False, acts=False)
    sizes = [len(each) for each in chunks]
    rows = _rows(model, blocks, points)
    maker = ProblemMaker(model, schedule, points.step, sizes, place, full_precision, rows)
    left = [block.name for block in blocks if block.name in rows and not rows[block.name].learns]
    if left:
        model.notes["not_reconstructed"] = left
        blocks = [block for block in blocks if block.name not in left]
    generator = torch.Generator().manual_seed(seed)
    reports: list[BlockReport] = []
    apart = _Apart(model, blocks, held_out, schedule, acts=acts, rows=rows)
    ours = PausedPasses(model, blocks, chunks, quantized, place)
    theirs = PausedPasses(model, blocks, chunks, full_precision, place, pause_after=True)
    with closing(ours), closing(theirs), closing(apart):
        for block in blocks:
            with Meter() as meter:
                problem = maker.make(block, ours.enter_block(), theirs)
                loss_apart = apart.enter_block(block)
                with quantized(), resident(*block.modules(model.module)):
                    before = loss_apart()
                    losses = _train(problem, schedule, acts, generator)
                    after = loss_apart()
            reports.append(_report(problem, losses, meter, before, after))
            seen = losses.iterations * min(schedule.batch, len(points))
            note_training(model, losses.iterations, seen)
            if progress is not None:
                progress(len(reports), len(blocks))
    return reports


class _Apart:
    """Held-out points on their way through both networks, beside those that training draws.

    They have passes of their own, so that the training points are gathered exactly as without them.

    Args:
        model: the quantized network.
        blocks: partition of the network.
        points: the held-out points; None where there are none.
        schedule: that of the training.
        acts: whether activation quantizers are on.
        rows: rows of blocks and layers.
    """

    def __init__(
        self,
        model: QuantizedModel,
        blocks: Sequence[Block],
        points: CalibrationSet | None,
        schedule: Schedule,
        *,
        acts: bool,
        rows: Mapping[str, Rows],
    ) -> None:
        self._norm, self._passes = schedule.norm, list[PausedPasses]()
        if points is None or not schedule.iterations:
            return
        # Points come in the order of sampler calls: the first few would be of early calls only.
        few = points.rows(evenly(len(points), _held(schedule)))
        quantized = partial(model.using, weights=True, acts=acts)
        full_precision = partial(model.using, weights=False, acts=False)
        # Losses of layers and mixed streams belong to the training.
        plain = replace(schedule, mix=0.0, layers=0.0)
        sizes = [len(few)]
        self._maker = ProblemMaker(model, plain, few.step, sizes, None, full_precision, rows)
        self._passes = [
            PausedPasses(model, blocks, [few], quantized),
            PausedPasses(model, blocks, [few], full_precision, pause_after=True),
        ]

    def enter_block(self, block: Block) -> Callable[[], float | None]:
        """Go on to a block; returns what measures its present loss on the held-out points."""
        if not self._passes:
            return lambda: None
        ours, theirs = self._passes
        problem = self._maker.make(block, ours.enter_block(), theirs)
        every = torch.arange(len(problem.steps))
        return lambda: problem.loss(every, self._norm)

    def close(self) -> None:
        """End the passes."""
        for each in self._passes:
            each.close()


def _rows(
    model: QuantizedModel, blocks: Sequence[Block], points: CalibrationSet
) -> dict[str, Rows]:
    """Rows of blocks and of their layers."""
    names = {name for block in blocks for name in (block.name, *block.layers)}
    with model.using(weights=False, acts=False):
        return module_rows(model.module, points, names, model.run)


def reconstruct_in_stages(
    model: QuantizedModel,
    blocks: Sequence[Block],
    points: CalibrationSet,
    schedules: tuple[Schedule, Schedule],
    calibrate: Callable[[], None],
    *,
    seed: int,
    progress: BlockProgress,
    held_out: CalibrationSet | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Learn every block's weights with activations in floating point, then activation scales.

    Args:
        model: network with weight ranges set.
        blocks: partition of the network.
        points: points to learn from.
        schedules: of the weights, then of the activation scales.
        calibrate: sets activation ranges; called between the stages.
        seed: seed of the minibatches of the first stage; the second has the next one.
        progress: called with (blocks done, blocks in all), each block counted twice.
        held_out: see ``reconstruct``.

    Returns:
        What the blocks of each stage report, for the notes: ``weights`` and ``acts``.
    """
    weights, acts = schedules
    count = len(blocks)
    rounding = reconstruct(
        model,
        blocks,
        points,
        weights,
        acts=False,
        seed=seed,
        progress=lambda done, _: progress(done, 2 * count),
        held_out=held_out,
    )
    calibrate()
    scales = reconstruct(
        model,
        blocks,
        points,
        acts,
        acts=True,
        seed=seed + 1,
        progress=lambda done, _: progress(count + done, 2 * count),
        held_out=held_out,
    )
    return {
        "weights": [report.note() for report in rounding],
        "acts": [report.note() for report in scales],
    }


class _Training(NamedTuple):
    """Iterations of one block, its losses, and the drift of its zero points, see BlockReport."""

    iterations: int
    before: float
    soft: float
    after: float
    drift: float


def _train(
    problem: BlockProblem, schedule: Schedule, acts: bool, generator: torch.Generator
) -> _Training:
    """Optimise one block and freeze its codes."""
    model, block = problem.model, problem.block
    judged = evenly(len(problem.steps), _judged(schedule))
    layers = {name: model.layers[name] for name in block.layers}
    quantizers = model.product_quantizers(block.name) if acts else []
    before = soft = problem.loss(judged, schedule.norm)
    learning = start_learning(layers, quantizers, schedule.groups, schedule.rank)
    iterations, drift = 0, 0.0
    try:
        if learning.parameters and schedule.iterations:
            iterations = optimise(problem, learning, schedule, generator)
            soft = problem.loss(judged, schedule.norm)
    finally:  # an interrupt must leave codes behind, not undecided roundings
        drift = learning.finish()
    return _Training(iterations, before, soft, problem.loss(judged, schedule.norm), drift)


def _report(
    problem: BlockProblem,
    training: _Training,
    meter: Meter,
    before: float | None,
    after: float | None,
) -> BlockReport:
    return BlockReport(
        problem.block.name,
        *training,
        meter.seconds,
        meter.cpu_seconds,
        meter.rss_growth,
        meter.device_bytes,
        problem.nbytes,
        before,
        after,
    )


def _judged(schedule: Schedule) -> int:
    """Number of points to measure losses on: three measurements take a tenth of the training."""
    affordable = schedule.iterations * schedule.batch // 16
    return min(_JUDGED, max(_JUDGED_LEAST, affordable))


def _held(schedule: Schedule) -> int:
    """Number of held-out points: their two passes and two losses take a tenth of the training."""
    return max(_HELD_LEAST, schedule.iterations * schedule.batch // 16)
