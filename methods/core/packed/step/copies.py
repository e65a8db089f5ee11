"""Copies around packed layers, which read and write any layout themselves.

A copy into another layout that one layer alone reads, and one of a layer's output that nobody else
reads (into its place in a concatenation), are passes over memory for nothing. The layer gets the
strides of what the copy read or wrote. Codes, sums and outputs are the same numbers.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from quantarena.methods.core.kernels.native import GeometryStruct
from quantarena.methods.core.kernels.observer import Kind
from quantarena.methods.core.packed.step.steps import NativeStep, Step, TorchStep
from quantarena.methods.core.packed.step.trace import View

_X, _Y = 0, 1
_AXES = ("batch", "channel", "row", "pixel")
"""Of a four-dimensional view, in its order."""


def without_copies(steps: Sequence[Step], outputs: set[int]) -> list[Step]:
    """The steps without copies that a layer can do.

    Args:
        steps: what runs, in order.
        outputs: numbers of buffers that the network returns.
    """
    kept = list(steps)
    at = 0
    while at < len(kept):
        if not (_into_reader(kept, at, outputs) or _into_writer(kept, at, outputs)):
            at += 1
    return kept


def _copied(step: Step) -> tuple[View, View] | None:
    """Where a plain copy writes and reads; None for anything else."""
    program = step.program if isinstance(step, NativeStep) else None
    if program is None or program.codes or len(program.inputs) != 1:
        return None
    to, source = program.result, program.inputs[0]
    plain = to.dtype == source.dtype == torch.float32 and to.shape == source.shape
    return (to, source) if plain and len(to.shape) == len(_AXES) else None


def _written(step: Step) -> set[int]:
    if isinstance(step, TorchStep):
        return {view.buffer for view in step.operation.writes}
    return {view.buffer for i in step.written if (view := step.operands[i]) is not None}


def _touching(steps: Sequence[Step], buffer: int) -> list[int]:
    return [at for at, step in enumerate(steps) if buffer in step.touched]


def _moved(step: Step, operand: int, old: View, new: View) -> NativeStep | None:
    """A layer that has ``new`` in place of an image ``old``; None where it cannot."""
    if not isinstance(step, NativeStep) or step.kind is not Kind.LAYER or step.flags:
        return None
    geometry = step.more
    if not isinstance(geometry, GeometryStruct) or any(step.operands[2:]):
        return None
    if step.operands[operand] != old or step.operands[1 - operand] in (old, new):
        return None
    side = "xy"[operand]
    names = [f"{side}_{axis}" for axis in _AXES]
    if [getattr(geometry, name) for name in names] != list(old.strides):
        return None
    changed = GeometryStruct.from_buffer_copy(geometry)
    for name, stride in zip(names, new.strides, strict=True):
        setattr(changed, name, stride)
    operands = list(step.operands)
    operands[operand] = new
    return replace(step, operands=tuple(operands), more=changed)


def _into_reader(steps: list[Step], at: int, outputs: set[int]) -> bool:
    """Drops a copy that one layer alone reads: the layer reads the source."""
    views = _copied(steps[at])
    if views is None or views[0].buffer in outputs:
        return False
    to, source = views
    users = _touching(steps, to.buffer)
    if len(users) != 2 or users[0] != at:
        return False
    reader = users[1]
    if any(source.buffer in _written(step) for step in steps[at + 1 : reader + 1]):
        return False
    layer = _moved(steps[reader], _X, to, source)
    if layer is None:
        return False
    steps[reader] = layer
    del steps[at]
    return True


def _into_writer(steps: list[Step], at: int, outputs: set[int]) -> bool:
    """Drops a copy of what a layer writes and nobody else reads: the layer writes to its place."""
    views = _copied(steps[at])
    if views is None or views[1].buffer in outputs:
        return False
    to, source = views
    users = _touching(steps, source.buffer)
    if len(users) != 2 or users[1] != at:
        return False
    writer = users[0]
    if any(to.buffer in step.touched for step in steps[writer:at]):
        return False
    layer = _moved(steps[writer], _Y, source, to)
    if layer is None:
        return False
    steps[writer] = layer
    del steps[at]
    return True
