"""From traced operations to what a plan runs: native operations, or calls of torch."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from quantarena.methods.core.kernels.observer import Kind
from quantarena.methods.core.kernels.step_abi import (
    OF_CALL,
    GatherStruct,
    LayerNormStruct,
    ProductsStruct,
    StepLibrary,
)
from quantarena.methods.core.packed.step.pointwise import (
    Pointwise,
    expanded,
    fused,
    pointwise,
    program_struct,
)
from quantarena.methods.core.packed.step.simplify import Usage
from quantarena.methods.core.packed.step.trace import LAYERS, Operation, Trace, View

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class NativeStep:
    """One operation of ``qa_run_plan``.

    Attributes:
        kind: of the function.
        function: its address.
        params: its structure.
        operands: in the order that the function takes them.
        written: which of them it writes.
        more: its second structure.
        flags: see ``QaOp``.
        table: see ``QaOp``.
        exact: whether it computes the bits of the network's own operations.
        sources: the traced operations that it stands for.
        program: what it computes element by element, where it does.
        keep: what must outlive the structures.
    """

    kind: Kind
    function: int
    params: Any
    operands: tuple[View | None, ...]
    written: tuple[int, ...]
    more: Any = None
    flags: int = 0
    table: int = 0
    exact: bool = True
    sources: tuple[Operation, ...] = ()
    program: Pointwise | None = None
    keep: tuple[Any, ...] = ()

    @property
    def touched(self) -> set[int]:
        """Numbers of the buffers that it reads or writes."""
        return {view.buffer for view in self.operands if view is not None}


@dataclass(frozen=True, slots=True)
class TorchStep:
    """One operation that torch runs."""

    operation: Operation

    @property
    def touched(self) -> set[int]:
        """Numbers of the buffers that it reads or writes."""
        operation = self.operation
        return {view.buffer for view in (*operation.reads, *operation.writes)}


Step = NativeStep | TorchStep
_Draft = Step | tuple[tuple[Operation, ...], Pointwise]
"""A step, or a program before it has a structure, with the operations that it stands for."""


def lower(trace: Trace, library: StepLibrary, *, exact: bool, shared: bool) -> list[Step]:
    """What runs for each operation of a trace, in order.

    Args:
        trace: the operations.
        library: kernels of recorded steps.
        exact: leave to torch what the kernels compute with other last bits.
        shared: operations with tables read the entry of the call; else the one that was recorded.
    """
    drafts: list[_Draft] = []
    reads = Usage.of(trace).reads
    for operation in trace.operations:
        if operation.native is not None:
            drafts.append(_told(operation, shared=shared))
            continue
        programs = pointwise(operation)
        if programs is not None and all(
            (p.exact or not exact) and program_struct(p) is not None for p in programs
        ):
            drafts += [((operation,), program) for program in programs if program.result.numel]
            continue
        single = not any(reads[view.buffer] for view in operation.writes[1:])
        step = _kernel(operation, library) if single else None
        if step is not None and exact and not step.exact:
            step = None
        drafts.append(step or TorchStep(operation))
    return [_finished(draft, library) for draft in _fused(drafts, trace)]


def _told(operation: Operation, *, shared: bool) -> NativeStep:
    """A native call as it was made."""
    call = operation.native
    assert call is not None
    reads_call = call.tables and shared
    flags = call.flags if call.kind in LAYERS or reads_call else 0
    written = tuple(
        i
        for i, view in enumerate(operation.operands)
        if view is not None and view in operation.writes
    )
    return NativeStep(
        call.kind,
        address_of(call.function),
        call.params,
        operation.operands,
        written,
        call.more,
        flags,
        OF_CALL if reads_call else call.entry,
        sources=(operation,),
        keep=(call,),
    )


def address_of(function: Any) -> int:
    """Address of a ctypes function."""
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)


def _kernel(operation: Operation, library: StepLibrary) -> NativeStep | None:
    """Kernels of their own, within rounding of torch's."""
    makers = {
        aten.native_layer_norm.default: _layer_norm,
        aten.embedding.default: _gather,
        aten._scaled_dot_product_flash_attention_for_cpu.default: _products,
    }
    maker = makers.get(operation.function)
    found = None if maker is None else maker(operation)
    if found is None:
        return None
    kernel, params, operands = found
    return NativeStep(
        Kind.KERNEL,
        getattr(library, kernel),
        params,
        operands,
        (0,),
        exact=kernel == "gather",
        sources=(operation,),
    )


_Found = tuple[str, ctypes.Structure, tuple[View | None, ...]]


def _floats(views: Sequence[View | None]) -> bool:
    return all(view is None or view.dtype == torch.float32 for view in views)


def _layer_norm(operation: Operation) -> _Found | None:
    x, shape, weight, bias, eps = operation.args
    y = operation.writes[0]
    views = (y, x, weight, bias)
    if not _floats(views) or not all(view is None or view.dense() for view in views):
        return None
    width = torch.Size(shape).numel()
    rows = x.numel // max(1, width)
    return "layer_norm", LayerNormStruct(rows, width, eps), views


def _gather(operation: Operation) -> _Found | None:
    table, index = operation.args[:2]
    y = operation.writes[0]
    if not _floats((table, y)) or index.dtype != torch.int64:
        return None
    if not (table.dense() and index.dense() and y.dense()):
        return None
    rows, width = table.shape
    return "gather", GatherStruct(index.numel, width, rows), (y, table, index)


def _products(operation: Operation) -> _Found | None:
    """Attention without dropout and without a causal mask."""
    query, key, value = operation.args[:3]
    dropout, causal = (*operation.args[3:5], 0.0, False)[:2]
    mask, scale = (operation.kwargs.get(name) for name in ("attn_mask", "scale"))
    y = operation.writes[0]
    views = (y, query, key, value, mask)
    if dropout or causal or not _floats(views):
        return None
    if any(view.strides[3] != 1 and view.shape[3] != 1 for view in (y, query, key, value)):
        return None
    samples, heads, queries, width = query.shape
    keys = key.shape[2]
    strides = [view.strides[:3] for view in (y, query, key, value)]
    masked: tuple[int, ...] = (0, 0, 0, 0)
    if mask is not None:
        mask = expanded(mask, (samples, heads, queries, keys))
        if mask is None:
            return None
        masked = mask.strides
    struct = ProductsStruct(
        samples,
        heads,
        queries,
        keys,
        width,
        value.shape[3],
        *[stride for view in strides for stride in view],
        *masked,
        width**-0.5 if scale is None else scale,
    )
    return "products", struct, (y, query, key, value, mask)


def _fused(drafts: list[_Draft], trace: Trace) -> list[_Draft]:
    """Programs that are read by one later program alone become part of it."""
    result = list(drafts)
    last_write: dict[int, int] = {}
    position = 0
    outputs = {leaf.buffer for leaf in trace.outputs if isinstance(leaf, View)}
    while position < len(result):
        draft = result[position]
        if isinstance(draft, tuple):
            sources, program = draft
            for view in program.inputs:
                maker = last_write.get(view.buffer)
                if maker is None or view.buffer in outputs:
                    continue
                earlier = result[maker]
                if not isinstance(earlier, tuple):
                    continue
                if _touches(result, view.buffer) != {maker, position}:
                    continue
                if _changed(result, maker, position, earlier[1]):
                    continue
                joined = fused(earlier[1], program)
                if joined is None or program_struct(joined) is None:
                    continue
                result[position] = ((*earlier[0], *sources), joined)
                del result[maker]
                last_write = _last_writes(result[: position - 1])
                position -= 1
                break
            else:
                last_write[program.result.buffer] = position
                position += 1
            continue
        for number in _written(draft):
            last_write[number] = position
        position += 1
    return result


def _last_writes(drafts: Sequence[Any]) -> dict[int, int]:
    return {number: at for at, draft in enumerate(drafts) for number in _written(draft)}


def _written(draft: Any) -> set[int]:
    if isinstance(draft, tuple):
        return {draft[1].result.buffer}
    if isinstance(draft, TorchStep):
        return {view.buffer for view in draft.operation.writes}
    return {view.buffer for i in draft.written if (view := draft.operands[i]) is not None}


def _touched(draft: Any) -> set[int]:
    if isinstance(draft, tuple):
        return {draft[1].result.buffer, *(view.buffer for view in draft[1].inputs)}
    touched: set[int] = draft.touched
    return touched


def _touches(drafts: Sequence[Any], buffer: int) -> set[int]:
    return {at for at, draft in enumerate(drafts) if buffer in _touched(draft)}


def _changed(drafts: Sequence[Any], first: int, last: int, program: Pointwise) -> bool:
    """Whether what a program reads is written between two places."""
    reads = {view.buffer for view in program.inputs}
    return any(reads & _written(draft) for draft in drafts[first + 1 : last])


def _finished(draft: Any, library: StepLibrary) -> Step:
    if not isinstance(draft, tuple):
        step: Step = draft
        return step
    sources, program = draft
    return NativeStep(
        Kind.KERNEL,
        library.pointwise,
        program_struct(program),
        (program.result, *program.inputs),
        (0,),
        exact=program.exact,
        sources=sources,
        program=program,
    )
