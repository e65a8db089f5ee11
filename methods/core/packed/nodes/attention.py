"""Integer attention products by the native kernels (``csrc/attention.h``).

All functions give None where the kernels do not apply, and the caller computes the products itself:
no library, tensors other than float32 on the CPU, a gradient, an operand in floating point, ranges
by channel or by token, or sums too long for their accumulators.
"""

import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from quantarena.methods.core.kernels import native
from quantarena.methods.core.kernels.observer import Kind, NativeOperation, here
from quantarena.methods.core.quantizers.activation import ActQuantizer
from quantarena.methods.core.quantizers.call_tables import bank_entry
from quantarena.methods.core.quantizers.log import LogQuantizer, last_code

MOST_PRODUCTS = 33000
"""In one sum: as many products of two 8-bit codes fit an int32."""
_SCORES, _MIX, _ATTEND = range(3)
_NO_GRID = (0,) * 7
_LAYOUT = struct.Struct("=64qf4x")
"""The layout of ``QaAttention`` in ``csrc/attention_call.h``.

29 sizes, 7 pointers, 4 grids of 7 numbers, one float.
"""


@dataclass(frozen=True, slots=True)
class Products:
    """The quantizers of one attention, as the kernels take them.

    Attributes:
        query: quantizer of the queries; like those of keys and values it is static and has one
            range, a bank by sampler call, or either of these for each head.
        key: quantizer of the keys, except the excluded ones.
        value: quantizer of all values.
        softmax: quantizer of the softmax's output, except the excluded columns.
        excluded: number of leading keys in floating point.
        library: kernels to run on; None for those of this process.
    """

    query: ActQuantizer
    key: ActQuantizer
    value: ActQuantizer
    softmax: ActQuantizer | LogQuantizer
    excluded: int = 0
    library: native.Library | None = None

    def apply(self) -> bool:
        """Whether the kernels can compute with these quantizers."""
        return (self.library or native.library()).attention is not None and all(
            isinstance(q, LogQuantizer)
            or (
                (q.axis is None or (q.axis == 1 and q.ids is not None and q.ids.dim() == 1))
                and q.scale.numel() > 0
            )
            for q in (self.query, self.key, self.value, self.softmax)
        )

    def log_settings(self) -> tuple[int, int, int, int]:
        """Codes an octave, axes with a scale of their own, last code, whether it stands for 0."""
        q = self.softmax
        if not isinstance(q, LogQuantizer):
            return (0, 0, 0, 0)
        return (q.per_octave, q.axes, last_code(q.bits, q.per_octave), int(q.zero_code))


def scores(
    products: Products, query: Tensor, key: Tensor, *, integer: bool = False
) -> Tensor | None:
    """``query @ key^T`` of codes.

    Args:
        products: the quantizers.
        query: (B, H, queries, width).
        key: (B, H, keys, width).
        integer: the sums themselves, zero points taken off, without the excluded keys.

    Returns:
        (B, H, queries, keys), or int32 (B, H, queries, keys - excluded).
    """
    if not _suits(products, query, key):
        return None
    keys = key.shape[2] - products.excluded * integer
    y = query.new_empty(*query.shape[:3], keys, dtype=torch.int32 if integer else None)
    return _run(products, _SCORES, y, query=query, key=key)


def mix(
    products: Products, probs: Tensor, value: Tensor, *, integer: bool = False
) -> Tensor | None:
    """``probs @ value`` of codes.

    Args:
        products: the quantizers.
        probs: (B, H, queries, keys), rows of a softmax.
        value: (B, H, keys, width).
        integer: the sums themselves, zero points taken off, without the excluded keys.

    Returns:
        (B, H, queries, width), or integers: int32, of logarithmic codes as ``log_accumulate`` has
        them, int64 (per_octave, B, H, queries, width).

    Raises:
        ValueError: NaN or infinity where the range is found at run time.
    """
    if not _suits(products, probs, value):
        return None
    shape = (*probs.shape[:3], value.shape[3])
    y = probs.new_empty(shape)
    if integer:
        log = isinstance(products.softmax, LogQuantizer)
        lead = (products.softmax.per_octave,) if isinstance(products.softmax, LogQuantizer) else ()
        y = probs.new_empty(*lead, *shape, dtype=torch.int64 if log else torch.int32)
    return _run(products, _MIX, y, value=value, probs=probs.contiguous())


def attend(
    products: Products,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    factor: float,
) -> Tensor | None:
    """``softmax(query @ key^T * factor + mask) @ value`` of codes.

    Args:
        products: the quantizers.
        query: (B, H, queries, width).
        key: (B, H, keys, width).
        value: (B, H, keys, width of values).
        mask: broadcasts over the scores: added, or True where a key is seen; rows that see none
            give 0.
        factor: the factor of the scores.

    Returns:
        (B, H, queries, width of values); heads of a token side by side in memory.

    Raises:
        ValueError: NaN or infinity where the softmax's range is found at run time.
    """
    if not _suits(products, query, key, value):
        return None
    batch, heads, queries, _ = query.shape
    keys, width = value.shape[2:]
    if key.shape != (batch, heads, keys, query.shape[3]) or value.shape[:2] != (batch, heads):
        return None
    y = query.new_empty(batch, queries, heads, width).transpose(1, 2)
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = query.new_zeros(mask.shape).masked_fill(~mask, -torch.inf)
        mask = mask.float().expand(batch, heads, queries, keys)
    probs = None
    if isinstance(products.softmax, LogQuantizer) and products.softmax.scale is None:
        probs = query.new_empty(batch, heads, queries, keys)
    return _run(
        products,
        _ATTEND,
        y,
        query=query,
        key=key,
        value=value,
        mask=mask,
        probs=probs,
        factor=factor,
    )


def _run(
    products: Products,
    stage: int,
    y: Tensor,
    *,
    query: Tensor | None = None,
    key: Tensor | None = None,
    value: Tensor | None = None,
    mask: Tensor | None = None,
    probs: Tensor | None = None,
    factor: float = 1.0,
) -> Tensor:
    """One call of the kernels.

    Args:
        products: the quantizers.
        stage: a value of ``QaStage``.
        y: tensor for the result; its type says whether integers are wanted.
        query: as in ``attend``.
        key: as in ``attend``.
        value: as in ``attend``.
        mask: (B, H, queries, keys), added to the scores.
        probs: given for ``_MIX``, room for ``_ATTEND`` where codes wait for their range.
        factor: the factor of the scores.

    Returns:
        ``y``.
    """
    query, key, value = (_dense(x) for x in (query, key, value))
    lead = query if query is not None else probs
    rows = value if value is not None else key
    assert lead is not None
    assert rows is not None
    samples, heads, queries = lead.shape[:3]
    buffers: list[Tensor] = []  # tensors that the call points to besides its operands
    quantizers = (
        products.query if query is not None else None,
        products.key if key is not None else None,
        products.value if value is not None else None,
        None if stage == _SCORES else products.softmax,
    )
    grids = [x for q in quantizers for x in _grid(q, samples, heads, buffers)]
    log_scale = products.softmax.scale if isinstance(products.softmax, LogQuantizer) else None
    call = _LAYOUT.pack(
        samples,
        heads,
        queries,
        rows.shape[2],
        query.shape[3] if query is not None else 0,
        value.shape[3] if value is not None else 0,
        products.excluded,
        *_strides(query),
        *_strides(key),
        *_strides(value),
        *_strides(y),
        *((0, 0, 0, 0) if mask is None else mask.stride()),
        stage,
        not y.is_floating_point(),
        *products.log_settings(),
        _at(query),
        _at(key),
        _at(value),
        _at(mask),
        _at(probs),
        _at(log_scale),
        y.data_ptr(),
        *grids,
        factor,
    )
    function = (products.library or native.library()).attention
    assert function is not None
    error = function(call, torch.get_num_threads())
    if error == native.NO_MEMORY:
        raise MemoryError("attention: out of memory for scratch buffers")
    if error:
        raise ValueError("cannot quantize: the tensor holds NaN or infinity")
    if here.tell is not None:
        banks = sum(
            1 << i for i, q in enumerate(quantizers) if isinstance(q, ActQuantizer) and q.steps
        )
        here.tell(
            NativeOperation(
                Kind.ATTENTION,
                function,
                (query, key, value, mask, probs, y),
                call,
                fixed=(*buffers, log_scale),
                flags=banks,
                tables=banks > 0,
            )
        )
    return y


def _dense(x: Tensor | None) -> Tensor | None:
    """The tensor with its channels side by side in memory."""
    return x if x is None or x.stride(3) == 1 else x.contiguous()


def _strides(x: Tensor | None) -> tuple[int, ...]:
    """The strides of samples, heads and rows."""
    return (0, 0, 0) if x is None else x.stride()[:3]


def _at(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _grid(
    quantizer: ActQuantizer | LogQuantizer | None, samples: int, heads: int, buffers: list[Tensor]
) -> tuple[int, ...]:
    """``QaGrid``: scales, zero points, groups of heads, entries of samples, entry, groups, top."""
    if not isinstance(quantizer, ActQuantizer):
        return _NO_GRID
    scale, zero = quantizer.scale.contiguous(), quantizer.zero_point.contiguous()
    buffers += (scale, zero)
    ids, entry, first, groups = None, None, 0, 1
    if quantizer.axis is not None:
        assert quantizer.ids is not None
        ids = quantizer.ids.contiguous()
        buffers.append(ids)
        if len(ids) != heads:
            raise ValueError(f"{heads} heads, ranges were calibrated for {len(ids)}")
        groups = scale.shape[-1]
    if quantizer.steps:
        found = bank_entry(quantizer.clock, quantizer.steps, samples)
        if isinstance(found, Tensor):
            entry = found.contiguous()
            buffers.append(entry)
        else:
            first = found
    top = (1 << quantizer.bits) - 1
    return (scale.data_ptr(), zero.data_ptr(), _at(ids), _at(entry), first, groups, top)


def _suits(products: Products, *operands: Tensor) -> bool:
    if torch.compiler.is_compiling():  # the float form is operators already
        return False
    graph = torch.is_grad_enabled()
    for x in operands:
        if x.dtype is not torch.float32 or not x.is_cpu or (graph and x.requires_grad):
            return False
        if max(x.shape[2:]) > MOST_PRODUCTS:
            return False
    return products.apply()
