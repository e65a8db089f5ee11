"""Integer attention products by the native kernels (``csrc/attention.h``).

All functions give None where the kernels do not apply, and the caller computes the products itself:
no library, tensors other than float32 on the CPU, a gradient, an operand in floating point, ranges
by channel or by token, or sums too long for their accumulators.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantarena.methods.core.act_quantizer import ActQuantizer
from quantarena.methods.core.bank import bank_entry
from quantarena.methods.core.kernels import native
from quantarena.methods.core.log_quantizer import LogQuantizer
from quantarena.methods.core.logquant import LogParams

MOST_PRODUCTS = 33000
"""In one sum: as many products of two 8-bit codes fit an int32."""
_SCORES, _MIX, _ATTEND = range(3)
_NO_ROWS = (0, 0, 0)

_INTS = (
    "samples heads queries keys width value_width excluded "
    "q_sample q_head q_row k_sample k_head k_row v_sample v_head v_row y_sample y_head y_row "
    "mask_sample mask_head mask_row mask_key stage integer per_octave kept top zero_code"
)
_POINTERS = "query key value mask probs log_scale y"


class GridStruct(ctypes.Structure):
    """Mirror of ``QaGrid`` in ``csrc/attention.h``."""

    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("scale", "zero", "group", "entry")],
        *[(name, ctypes.c_int64) for name in ("first", "groups", "most")],
    ]


class AttentionStruct(ctypes.Structure):
    """Mirror of ``QaAttention`` in ``csrc/attention.h``."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in _INTS.split()],
        *[(name, ctypes.c_void_p) for name in _POINTERS.split()],
        ("grid", GridStruct * 4),
        ("factor", ctypes.c_float),
    ]


@dataclass(frozen=True, slots=True)
class Products:
    """What one attention is quantized with.

    Attributes:
        query: static, as ``key`` and ``value``: one range, a bank by sampler call, or either of
            these by head.
        key: of the keys but the excluded ones.
        value: of all values.
        softmax: of the softmax's output but the excluded columns.
        excluded: leading keys in floating point.
        library: to run on; None for this process's.
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
            isinstance(q, LogQuantizer) or (q.axis in (None, 1) and q.scale.numel() > 0)
            for q in (self.query, self.key, self.value, self.softmax)
        )


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
    call = _Call(products, _SCORES, integer, query.shape, key.shape[2], 0)
    call.give(query=query, key=key, y=y)
    return call.run(y)


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
    call = _Call(products, _MIX, integer, (*probs.shape[:3], 0), probs.shape[3], value.shape[3])
    call.give(value=value, probs=probs.contiguous(), y=y)
    if not integer:
        call.place("y", y)
    return call.run(y)


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
        factor: of the scores.

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
    call = _Call(products, _ATTEND, False, query.shape, keys, width)
    call.give(query=query, key=key, value=value, y=y)
    call.place("y", y)
    call.struct.factor = factor
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = query.new_zeros(mask.shape).masked_fill(~mask, -torch.inf)
        mask = mask.float().expand(batch, heads, queries, keys)
        call.give(mask=mask)
        call.set("mask_sample mask_head mask_row mask_key", mask.stride())
    if isinstance(products.softmax, LogQuantizer) and products.softmax.scale is None:
        call.give(probs=query.new_empty(batch, heads, queries, keys))
    return call.run(y)


class _Call:
    """One call of the kernels: the struct, and the tensors that it points to."""

    def __init__(
        self,
        products: Products,
        stage: int,
        integer: bool,
        lead: Sequence[int],
        keys: int,
        value_width: int,
    ) -> None:
        self.library = products.library or native.library()
        self.kept: list[Tensor] = []
        samples, heads, queries, width = lead
        self.struct = AttentionStruct(
            samples, heads, queries, keys, width, value_width, products.excluded
        )
        self.struct.stage, self.struct.integer = stage, integer
        used = {_SCORES: (0, 1), _MIX: (2, 3), _ATTEND: (0, 1, 2, 3)}[stage]
        quantizers = (products.query, products.key, products.value, products.softmax)
        for place in used:
            if isinstance(quantizer := quantizers[place], LogQuantizer):
                self._log(quantizer)
            else:
                self._grid(self.struct.grid[place], quantizer, samples, heads)

    def give(self, **tensors: Tensor) -> None:
        """Point to tensors; channels of queries, keys and values have to lie side by side."""
        for name, tensor in tensors.items():
            if name in ("query", "key", "value"):
                if tensor.stride(-1) != 1:
                    tensor = tensor.contiguous()
                self.place(name[0], tensor)
            setattr(self.struct, name, self._point(tensor))

    def place(self, name: str, tensor: Tensor) -> None:
        """Note the strides of samples, heads and rows."""
        self.set(f"{name}_sample {name}_head {name}_row", tensor.stride()[:3])

    def set(self, names: str, values: Sequence[int]) -> None:
        """Set several fields."""
        for name, value in zip(names.split(), values, strict=True):
            setattr(self.struct, name, value)

    def run(self, result: Tensor) -> Tensor:
        """Compute, and give back ``result``."""
        assert self.library.attention is not None
        error = self.library.attention(ctypes.byref(self.struct), torch.get_num_threads())
        if error == native.NO_MEMORY:
            raise MemoryError("attention: out of memory for scratch buffers")
        if error:
            raise ValueError("cannot quantize: the tensor holds NaN or infinity")
        return result

    def _point(self, tensor: Tensor) -> int:
        self.kept.append(tensor)
        return tensor.data_ptr()

    def _log(self, quantizer: LogQuantizer) -> None:
        grid = LogParams(torch.empty(0), quantizer.bits, quantizer.per_octave, quantizer.zero_code)
        self.set(
            "per_octave kept top zero_code",
            (quantizer.per_octave, quantizer.kept, grid.top, quantizer.zero_code),
        )
        if quantizer.scale is not None:
            self.give(log_scale=quantizer.scale.float())

    def _grid(self, grid: GridStruct, quantizer: ActQuantizer, samples: int, heads: int) -> None:
        grid.scale = self._point(quantizer.scale.detach().contiguous())
        grid.zero = self._point(quantizer.zero_point.detach().contiguous())
        grid.most, grid.groups = 2**quantizer.bits - 1, 1
        if quantizer.ids is not None:
            if len(quantizer.ids) != heads:
                raise ValueError(f"{heads} heads, ranges were calibrated for {len(quantizer.ids)}")
            grid.group = self._point(quantizer.ids.contiguous())
            grid.groups = quantizer.scale.shape[-1]
        if quantizer.steps:
            entry = bank_entry(quantizer.clock, quantizer.steps, samples)
            if isinstance(entry, Tensor):
                grid.entry = self._point(entry.contiguous())
            else:
                grid.first = entry


def _suits(products: Products, *operands: Tensor) -> bool:
    long = max(max(x.shape[2:]) for x in operands)
    graph = torch.is_grad_enabled() and any(x.requires_grad for x in operands)
    plain = all(x.dtype is torch.float32 and x.is_cpu for x in operands)
    return plain and not graph and long <= MOST_PRODUCTS and products.apply()
