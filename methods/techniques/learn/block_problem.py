"""The inputs and targets that one block is optimised on."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.record.rows import Rows
from quantarena.methods.core.trace.blocks import Block
from quantarena.methods.techniques.learn.block_rows import BlockInputs, CallArguments, gathered
from quantarena.methods.techniques.learn.lockstep import PausedPasses
from quantarena.methods.techniques.learn.losses import reconstruction_loss
from quantarena.methods.techniques.learn.module_outputs import module_outputs
from quantarena.methods.techniques.learn.schedule import Schedule

PIECE = 128
"""Points of one forward pass that computes targets."""


@dataclass(frozen=True, slots=True)
class BlockProblem:
    """One block with everything that its optimisation reads.

    Attributes:
        model: the quantized network that holds the block.
        block: the block to optimise.
        steps: sampler call of each point, (N,).
        inputs: arguments that the quantized prefix gives the block.
        target: full-precision output, (N, ...).
        full: full-precision stream into the block, (N, ...); None where the schedule does not need
            it.
        layer_targets: full-precision outputs of the block's layers but the last; empty where the
            schedule does not need them.
        nbytes: size of all these rows, in memory or in files.
    """

    model: QuantizedModel
    block: Block
    steps: Tensor
    inputs: BlockInputs
    target: Tensor
    full: Tensor | None
    layer_targets: dict[str, Tensor]
    nbytes: int

    def run(self, index: Tensor, stream: Tensor | None = None) -> Any:
        """The block's output on some points, each at its own sampler call."""
        args, kwargs = self.inputs.at(index, stream)
        with self.model.clock.at(self.steps[index]):
            output = self.block.run(self.model.module, args, kwargs)
        return output.unflatten(0, (len(index), -1)) if self.inputs.folded else output

    @torch.no_grad()
    def loss(self, index: Tensor, norm: float) -> float:
        """Reconstruction loss of the block's output on some points."""
        output = self.run(index)
        return float(reconstruction_loss(output, self.target[index].to(output.device), norm))


@dataclass(frozen=True, slots=True)
class ProblemMaker:
    """Gathers the inputs and targets of each block from two passes that pause there.

    Attributes:
        model: the quantized network.
        schedule: decides which rows are needed.
        steps: sampler call of each point, (N,).
        sizes: points in each chunk.
        folder: where files of rows go; None keeps rows in memory.
        full_precision: context in which all quantizers of the model are off.
        rows: rows of blocks and layers; a layer without rows of the points has no loss of its own.
    """

    model: QuantizedModel
    schedule: Schedule
    steps: Tensor
    sizes: Sequence[int]
    folder: Path | None
    full_precision: Callable[[], AbstractContextManager[None]]
    rows: Mapping[str, Rows]

    def make(
        self, block: Block, arguments: list[CallArguments], theirs: PausedPasses
    ) -> BlockProblem:
        """Gather what one block is optimised on.

        Args:
            block: the block.
            arguments: what the quantized prefix gives it, chunk by chunk.
            theirs: full-precision passes, paused before the previous block or after it.

        Raises:
            Unsupported: the block's arguments or output cannot be split by points.
        """
        inputs = BlockInputs(block.name, arguments, self.sizes, self.folder)
        nbytes, full = inputs.nbytes, None
        layer_targets: dict[str, Tensor] = {}
        full_arguments = theirs.enter_block()
        if self.schedule.mix or self.schedule.layers or block.tails:
            full_inputs = BlockInputs(block.name, full_arguments, self.sizes, self.folder)
            full = full_inputs.stream
            target, layer_targets = self._targets(block, full_inputs)
            nbytes += full_inputs.nbytes + sum(t.nbytes for t in layer_targets.values())
        else:
            outputs = theirs.finish_block()
            target = _as_rows(block, outputs, self.sizes, self.folder, folded=inputs.folded)
        nbytes += target.nbytes
        return BlockProblem(
            self.model, block, self.steps, inputs, target, full, layer_targets, nbytes
        )

    @torch.no_grad()
    def _targets(self, block: Block, inputs: BlockInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Full-precision outputs of the block, and of its layers where they have losses."""
        wanted = [
            name
            for name in (block.layers[:-1] if self.schedule.layers else ())
            if name not in self.rows or self.rows[name].returned
        ]
        outputs: list[Tensor] = []
        layer_outputs: dict[str, list[Tensor]] = {name: [] for name in wanted}
        count = len(self.steps)
        pieces = [
            torch.arange(start, min(start + PIECE, count)) for start in range(0, count, PIECE)
        ]
        with self.full_precision(), module_outputs(self.model.module, wanted) as latest:
            for index in pieces:
                args, kwargs = inputs.at(index)
                outputs.append(block.run(self.model.module, args, kwargs))
                for name in wanted:
                    layer_outputs[name].append(latest[name])
        sizes = [len(index) for index in pieces]

        def as_rows(chunks: Sequence[Any], folded: bool) -> Tensor:
            return _as_rows(block, chunks, sizes, self.folder, folded=folded)

        rows = {
            name: as_rows(
                chunks, inputs.folded or (name in self.rows and self.rows[name].returned > 1)
            )
            for name, chunks in layer_outputs.items()
        }
        return as_rows(outputs, inputs.folded), rows


def _as_rows(
    block: Block,
    chunks: Sequence[Any],
    sizes: Sequence[int],
    folder: Path | None,
    *,
    folded: bool,
) -> Tensor:
    """Outputs of all chunks in one tensor with a row for each point.

    Args:
        block: the block.
        chunks: its outputs.
        sizes: points in each chunk.
        folder: where rows live in files; None keeps them in memory.
        folded: whether the block's stream, and so its output, has several rows for each point.
    """
    if folded:
        chunks = [
            output.reshape(size, -1, *output.shape[1:])
            if isinstance(output, Tensor) and output.dim() and len(output) % size == 0
            else output
            for output, size in zip(chunks, sizes, strict=True)
        ]
    for output, size in zip(chunks, sizes, strict=True):
        if not isinstance(output, Tensor) or not output.dim() or len(output) != size:
            raise Unsupported(
                f"{block.name} cannot be reconstructed: it must give one tensor with a row for "
                f"each of {size} points, not {_shape(output)}"
            )
    return gathered(chunks, folder)


def _shape(output: Any) -> str:
    return str(tuple(output.shape)) if isinstance(output, Tensor) else type(output).__name__
