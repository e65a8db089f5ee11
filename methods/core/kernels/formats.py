"""The integer format of a quantized layer, independent of any backend.

:class:`IntegerLayer` is the contract between the quantization core and the kernels. It computes,
with activation code ``a`` and weight code ``c``::

    a    = clamp(round_half_even(x * inv_scale * in_mult[k]) + zx, 0, 2**act_bits - 1)
    T[n] = sum_k (a[k] - zx) * (c[n, k] - zw[n])
    y[n] = sx * sw[n] * T[n] + bias[n]

where ``inv_scale = float32(1) / float32(sx)``, NaN gives the code of ``-inf`` (0), and convolution
padding contributes ``a = zx``, that is nothing. Weight codes lie in the signed-offset domain
``[-2**(bits-1), 2**(bits-1) - 1]``, zero points of weights in ``[-2**bits, 2**bits]``. A layer
whose codes and zero points could make T larger than an int32 is refused.

The canonical code stream of checkpoints is :func:`pack_codes`: row-major, ``code + 2**(bits-1)`` as
``bits`` bits, least significant first, with padding only in the last byte.
"""

from dataclasses import dataclass, fields
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal["linear", "conv2d"]

MAX_DEPTH = 65_000
"""Most products per output: sums of ``a * c`` then fit int32, as K * 255 * 128 < 2**31.

Whether T itself fits depends on the codes and zero points, see :func:`largest_sum`.
"""
MAX_SUM = (1 << 31) - 1
"""Largest value of an int32."""


def _check_bits(bits: int) -> None:
    if not isinstance(bits, int) or not 1 <= bits <= 8:
        raise ValueError(f"bits must be an integer from 1 to 8, got {bits!r}")


def code_range(bits: int) -> tuple[int, int]:
    """Smallest and largest signed-offset weight code of a width."""
    _check_bits(bits)
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def largest_sum(codes: Tensor, zero: Tensor, act_bits: int, far: int = 0) -> int:
    """Bounds ``|T|`` over all inputs and all zero points of activations.

    ``a - zx`` lies between ``-act_max`` and ``act_max``, and all of it on one side of zero where
    ``zx`` is an end of the range. So no sum, complete or partial, exceeds ``act_max`` times the sum
    of the positive, or of the negative, values of ``c - zw``; the bound is reached. A zero point
    that is ``far`` beyond the codes makes all differences so much larger, and of one sign.

    Args:
        codes: (out, ...) weight codes.
        zero: (out,) zero points of the weights.
        act_bits: width of an activation code.
        far: how far beyond the codes zero points of activations may lie.

    Returns:
        The bound; one that is cheaper to find where already that one fits an int32.
    """
    top, rows = (1 << act_bits) - 1 + far, codes.detach().flatten(1)
    zero = zero.detach().to(torch.int64)
    low, high = rows.amin(1).to(torch.int64) - zero, rows.amax(1).to(torch.int64) - zero
    coarse = top * rows.shape[1] * int(torch.maximum(high, -low).clamp(min=0).max())
    if coarse <= MAX_SUM:
        return coarse
    sides = [
        max(int(w.clamp(min=0).sum()), -int(w.clamp(max=0).sum()))
        for w in (row.to(torch.int64) - z for row, z in zip(rows, zero, strict=True))
    ]
    return top * max(sides)


def sums_fit(codes: Tensor, zero: Tensor, act_bits: int, far: int = 0) -> bool:
    """Whether all sums of a layer provably fit int32; arguments as for :func:`largest_sum`."""
    return codes[0].numel() <= MAX_DEPTH and largest_sum(codes, zero, act_bits, far) <= MAX_SUM


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Packs signed-offset codes into the canonical bit stream.

    Args:
        codes: integer tensor of any shape, values in ``code_range(bits)``.
        bits: width of one code, 1 to 8.

    Returns:
        uint8 tensor of ``ceil(numel * bits / 8)`` bytes.

    Raises:
        ValueError: a code out of range or a bad width.
    """
    low, high = code_range(bits)
    if codes.dtype.is_floating_point or codes.dtype.is_complex or codes.dtype == torch.bool:
        raise ValueError(f"codes must be integers, got {codes.dtype}")
    flat = codes.detach().cpu().reshape(-1)
    if flat.numel() and (int(flat.min()) < low or int(flat.max()) > high):
        raise ValueError(f"codes must lie in [{low}, {high}] for {bits} bits")
    values = (flat.to(torch.int16) - low).to(torch.uint8)
    if bits == 8:
        return values
    # eight codes fill exactly `bits` bytes
    values = torch.nn.functional.pad(values, (0, -values.numel() % 8)).view(-1, 8)
    word = torch.zeros(values.shape[0], dtype=torch.int64)
    for i in range(8):
        word |= values[:, i].to(torch.int64) << (bits * i)
    stream = torch.stack([(word >> (8 * i)) & 255 for i in range(bits)], dim=1)
    return stream.to(torch.uint8).reshape(-1)[: (flat.numel() * bits + 7) // 8].clone()


def unpack_codes(stream: Tensor, bits: int, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """Inverse of :func:`pack_codes`.

    Args:
        stream: uint8 tensor written by :func:`pack_codes`.
        bits: width of one code, 1 to 8.
        shape: shape of the codes.

    Returns:
        int8 tensor of that shape, signed-offset codes, on the device of the stream.

    Raises:
        ValueError: the stream has the wrong type or length.
    """
    low, _ = code_range(bits)
    count = prod(shape)
    if stream.dtype != torch.uint8 or stream.numel() != (count * bits + 7) // 8:
        raise ValueError(
            f"{count} codes of {bits} bits need {(count * bits + 7) // 8} uint8, "
            f"got {stream.numel()} of {stream.dtype}"
        )
    flat = stream.detach().reshape(-1)
    if bits < 8:
        padded = torch.nn.functional.pad(flat, (0, -flat.numel() % bits)).view(-1, bits)
        word = torch.zeros(padded.shape[0], dtype=torch.int64, device=flat.device)
        for i in range(bits):
            word |= padded[:, i].to(torch.int64) << (8 * i)
        mask = (1 << bits) - 1
        flat = torch.stack([(word >> (bits * i)) & mask for i in range(8)], dim=1).reshape(-1)
    return (flat[:count].to(torch.int16) + low).to(torch.int8).reshape(tuple(shape))


@dataclass(frozen=True, slots=True, eq=False)
class IntegerLayer:
    """One quantized linear or 2-d convolution layer (the module docstring says what it computes).

    Example:
        >>> import torch
        >>> layer = IntegerLayer(
        ...     kind="linear", weight_codes=torch.ones(2, 3, dtype=torch.int8), weight_bits=4,
        ...     weight_scale=torch.tensor([0.5, 1.0]),
        ...     weight_zero=torch.zeros(2, dtype=torch.int32), act_bits=8,
        ...     act_scale=torch.tensor(0.1), act_zero=torch.tensor(128))
        >>> layer.out_features, layer.depth
        (2, 3)
    """

    kind: Kind
    weight_codes: Tensor
    """int8, ``(out, in)`` or ``(out, in / groups, kh, kw)``."""
    weight_bits: int
    weight_scale: Tensor
    """float32 ``(out,)``."""
    weight_zero: Tensor
    """int32 ``(out,)`` in the offset domain; all zero for symmetric weights."""
    act_bits: int
    act_scale: Tensor
    """float32 scalar, or ``(steps,)`` for a bank selected by index at call time."""
    act_zero: Tensor
    """integer, shape of ``act_scale``, each in ``[0, 2**act_bits - 1]``."""
    in_mult: Tensor | None = None
    """float32 ``(in,)``: multiplier per input channel, applied before rounding."""
    bias: Tensor | None = None
    """float32 ``(out,)``."""
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        """Normalizes types and validates.

        Raises:
            ValueError: one line that names the field.
        """

        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        _check_bits(self.weight_bits)
        _check_bits(self.act_bits)
        if self.kind not in ("linear", "conv2d"):
            raise ValueError(f"kind must be 'linear' or 'conv2d', got {self.kind!r}")
        if self.weight_codes.dim() != (2 if self.kind == "linear" else 4):
            raise ValueError(
                f"weight_codes of a {self.kind} layer cannot have shape "
                f"{tuple(self.weight_codes.shape)}"
            )
        if self.weight_codes.dtype.is_floating_point or self.weight_codes.numel() == 0:
            raise ValueError("weight_codes must be a non-empty integer tensor")
        low, high = code_range(self.weight_bits)
        codes = self.weight_codes.detach().cpu()
        if int(codes.min()) < low or int(codes.max()) > high:
            raise ValueError(
                f"weight_codes must lie in [{low}, {high}] for {self.weight_bits} bits"
            )
        put("weight_codes", codes.to(torch.int8).contiguous())
        out = self.weight_codes.shape[0]
        self._vector("weight_scale", out, torch.float32, put)
        self._vector("weight_zero", out, torch.int32, put)
        if not bool(torch.isfinite(self.weight_scale).all()):
            raise ValueError("weight_scale must be finite")
        if int(self.weight_zero.abs().max()) > 1 << self.weight_bits:
            raise ValueError(f"weight_zero must lie within +-2**{self.weight_bits}")
        if self.bias is not None:
            self._vector("bias", out, torch.float32, put)
        self._check_activation(put)
        for name in ("stride", "padding", "dilation"):
            pair = tuple(int(v) for v in getattr(self, name))
            if len(pair) != 2 or min(pair) < (0 if name == "padding" else 1):
                raise ValueError(f"{name} must be two non-negative integers, got {pair}")
            put(name, pair)
        if self.kind == "linear" and (self.groups, self.stride, self.padding) != (
            1,
            (1, 1),
            (0, 0),
        ):
            raise ValueError("a linear layer has no groups, stride or padding")
        if self.groups < 1 or out % self.groups:
            raise ValueError(f"{out} output channels do not divide into {self.groups} groups")
        if self.in_mult is not None:
            self._vector("in_mult", self.in_features, torch.float32, put)
        if not sums_fit(self.weight_codes, self.weight_zero, self.act_bits):
            raise ValueError(
                f"sums of {self.depth} products with these codes and zero points may exceed an "
                "int32: split the input channels over several layers"
            )

    def _vector(self, name: str, length: int, dtype: torch.dtype, put: Any) -> None:
        value = getattr(self, name).detach().cpu()
        if value.numel() != length:
            raise ValueError(f"{name} must have {length} entries, got {tuple(value.shape)}")
        put(name, value.reshape(length).to(dtype).contiguous())

    def _check_activation(self, put: Any) -> None:
        scale = self.act_scale.detach().cpu().to(torch.float32)
        zero = self.act_zero.detach().cpu()
        if scale.dim() > 1 or scale.numel() == 0 or zero.numel() != scale.numel():
            raise ValueError("act_scale and act_zero must be scalars or tables of one length")
        inverse = torch.ones((), dtype=torch.float32) / scale
        if not bool(((scale > 0) & torch.isfinite(scale) & torch.isfinite(inverse)).all()):
            raise ValueError("act_scale must be positive and finite, and so must be its inverse")
        high = (1 << self.act_bits) - 1
        if bool((zero != zero.round()).any()) or int(zero.min()) < 0 or int(zero.max()) > high:
            raise ValueError(f"act_zero must be integers in [0, {high}]")
        put("act_scale", scale.contiguous())
        put("act_zero", zero.to(torch.int32).reshape(scale.shape).contiguous())

    @property
    def out_features(self) -> int:
        """Number of output channels."""
        return int(self.weight_codes.shape[0])

    @property
    def in_features(self) -> int:
        """Number of input channels, over all groups."""
        return int(self.weight_codes.shape[1]) * self.groups

    @property
    def depth(self) -> int:
        """Number of products per output element."""
        return prod(self.weight_codes.shape[1:])

    @property
    def steps(self) -> int:
        """Number of entries of the activation table; 1 for a static quantizer."""
        return int(self.act_scale.numel())

    @property
    def kernel_size(self) -> tuple[int, int]:
        """Kernel height and width, (1, 1) for a linear layer."""
        if self.kind == "linear":
            return 1, 1
        return int(self.weight_codes.shape[2]), int(self.weight_codes.shape[3])

    def metadata(self) -> dict[str, Any]:
        """JSON-able description without tensors, for :meth:`from_tensors`."""
        return {
            "kind": self.kind,
            "weight_shape": list(self.weight_codes.shape),
            "weight_bits": self.weight_bits,
            "act_bits": self.act_bits,
            "act_shape": list(self.act_scale.shape),
            "has_in_mult": self.in_mult is not None,
            "has_bias": self.bias is not None,
            "stride": list(self.stride),
            "padding": list(self.padding),
            "dilation": list(self.dilation),
            "groups": self.groups,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Canonical tensors of a checkpoint; weight codes as ``codes``, a packed bit stream."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        del named["weight_codes"]
        present = {k: v for k, v in named.items() if isinstance(v, Tensor)}
        return {"codes": pack_codes(self.weight_codes, self.weight_bits), **present}

    @classmethod
    def from_tensors(cls, metadata: dict[str, Any], tensors: dict[str, Tensor]) -> "IntegerLayer":
        """Rebuilds a layer from :meth:`metadata` and :meth:`tensors`.

        Raises:
            ValueError: missing or inconsistent entries.
        """
        missing = {"codes", "weight_scale", "weight_zero", "act_scale", "act_zero"} - set(tensors)
        if missing:
            raise ValueError(f"checkpoint lacks {', '.join(sorted(missing))}")
        shape = tuple(int(v) for v in metadata["weight_shape"])
        codes = unpack_codes(tensors["codes"], metadata["weight_bits"], shape)
        rest: dict[str, Any] = {k: v for k, v in tensors.items() if k != "codes"}
        rest |= {k: tuple(metadata[k]) for k in ("stride", "padding", "dilation")}
        return cls(
            kind=metadata["kind"],
            weight_codes=codes,
            weight_bits=metadata["weight_bits"],
            act_bits=metadata["act_bits"],
            groups=metadata["groups"],
            **rest,
        )
