"""Panels: the packed form that the native kernels read, and the int16 overflow proof.

Output channels go in panels of 16, the K axis (kernel row, kernel column, channel padded to 4) in
units of 16.  A unit is eight 32-byte vectors; a code takes exactly its bits, split into planes of
4, 2 and 1 bits, so that 3 = 2 + 1 and 5 = 4 + 1 need no byte more than promised.  Within a vector
the order is 8 channels x 4 k (``quad``: unsigned-by-signed byte products) or 16 channels x 2 k
(``pair``: 16-bit products).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantarena.methods.core.kernels.formats import IntegerLayer

PANEL = 16
UNIT = 16


@dataclass(frozen=True, slots=True, eq=False)
class Chunks:
    """Chunks of the K axis after which the accumulators of a layer's panels are emptied."""

    start: Tensor
    """int32 ``(groups * panels + 1,)`` into ``units``."""
    units: Tensor
    """Chunk lengths in units that cannot overflow an int16 accumulator; uint16 bits in int16."""
    pair: bool
    """Whether products are 16-bit and accumulated in int32."""


@dataclass(frozen=True, slots=True, eq=False)
class Panels:
    """The packed weights of one layer."""

    codes: Tensor
    """uint8 ``(groups * panels, units, 32 * bits)``."""
    chunks: Chunks
    sums: Tensor
    """int32 ``(out,)``: sum of the weight codes of an output channel."""


def _unit_blocks(codes: Tensor, groups: int) -> Tensor:
    """The codes as int8 ``(groups * panels, 16, units, 16)``, padded with zeros."""
    out = codes.shape[0] // groups
    kh, kw = codes.shape[2:] or (1, 1)
    codes = codes.reshape(groups, out, -1, kh, kw).permute(0, 1, 3, 4, 2)
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % 4))
    codes = codes.reshape(groups, out, -1)
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % UNIT, 0, -out % PANEL))
    return codes.reshape(-1, PANEL, codes.shape[-1] // UNIT, UNIT).contiguous()


def _planes(vectors: Tensor, bits: int) -> Tensor:
    """Packs ``(..., 8, 32)`` codes into ``(..., 32 * bits)`` bytes."""
    if bits == 8:
        return vectors.view(torch.uint8).flatten(-2)
    values = (vectors.to(torch.int16) + (1 << (bits - 1))).to(torch.uint8)
    parts, shift = [], 0
    for width in (4, 2, 1):
        if not bits & width:
            continue
        fields = (values >> shift) & ((1 << width) - 1)
        per_byte = 8 // width
        fields = fields.reshape(*fields.shape[:-2], 8 // per_byte, per_byte, 32)
        packed = torch.zeros_like(fields.select(-2, 0))
        for i in range(per_byte):
            packed |= fields.select(-2, i) << (width * i)
        parts.append(packed.flatten(-2))
        shift += width
    return torch.cat(parts, dim=-1)


FOLDED_BITS = 6
"""Widest codes whose difference from any zero point fits a byte: |zero| is at most 2**bits."""


def factors(layer: IntegerLayer) -> Tensor:
    """The weight operands of a layer's byte products, see :func:`operands`."""
    return operands(layer.weight_codes, layer.weight_zero, layer.weight_bits)


def operands(codes: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The weight operands of byte products, int8 in the shape of the weight codes.

    These are codes minus zero points, which the kernels subtract as they unpack a panel. Codes that
    are too wide for that stay as they are (16-bit products subtract zero points from them too, and
    need no overflow proof).
    """
    if bits > FOLDED_BITS:
        return codes
    return (codes - zero.view(-1, *[1] * (codes.dim() - 1))).to(torch.int8)


def prove_chunks(blocks: Tensor, act_max: int) -> list[list[int]] | None:
    """Splits each panel's K axis so that no int16 accumulator can overflow, whatever the input.

    A lane of an int16 accumulator receives two products per step of four k.  The sum of its
    positive weights times ``act_max`` bounds every partial sum from above, that of its negative
    weights from below.  Chunks grow greedily, which gives the fewest.

    Args:
        blocks: int8 ``(panels, 16, units, 16)`` weight operands.
        act_max: largest activation code.

    Returns:
        Chunk lengths in units per panel, or None where a single unit overflows.
    """
    lanes = blocks.view(*blocks.shape[:3], 4, 2, 2).to(torch.int32)
    up = lanes.clamp(min=0).sum(dim=(3, 5)).permute(2, 0, 1, 3).flatten(2) * act_max
    down = lanes.clamp(max=0).sum(dim=(3, 5)).permute(2, 0, 1, 3).flatten(2) * act_max
    if int(up.max()) > 32767 or int(down.min()) < -32768:
        return None
    units, panels = up.shape[:2]
    chunks: list[list[int]] = [[] for _ in range(panels)]
    length = [0] * panels
    high, low = torch.zeros_like(up[0]), torch.zeros_like(up[0])
    for unit in range(units):
        high, low = high + up[unit], low + down[unit]
        over = (high.amax(dim=1) > 32767) | (low.amin(dim=1) < -32768)
        if bool(over.any()):
            high[over], low[over] = up[unit][over], down[unit][over]
        for panel, full in enumerate(over.tolist()):
            if full:
                chunks[panel].append(length[panel])
                length[panel] = 0
            length[panel] += 1
    for panel in range(panels):
        chunks[panel].append(length[panel])
    return chunks


def plan_chunks(
    codes: Tensor, groups: int, act_bits: int, wide_accumulators: bool, pair: bool | None = None
) -> Chunks:
    """Chooses the form of a layer's panels, and where their int16 accumulators are emptied.

    Args:
        codes: the result of :func:`factors`, ``(out, in)`` or ``(out, in / groups, kh, kw)``.
        groups: convolution groups.
        act_bits: width of the activation codes.
        wide_accumulators: the kernels accumulate byte products in int32 (VNNI, scalar), so that
            neither the proof nor the 16-bit form is needed.
        pair: the form, where it is given by a layer that this one is part of.

    Returns:
        The chunks of every panel.

    Raises:
        ValueError: byte products are asked for but could overflow.
    """
    blocks = _unit_blocks(codes, groups)
    panels, _, units, _ = blocks.shape
    chunks: list[list[int]] | None = [[units]] * panels
    if pair:
        chunks = None
    elif not wide_accumulators:
        chunks = prove_chunks(blocks, (1 << act_bits) - 1)
        # shorter chunks than 8 steps on average cost more than 16-bit products do
        short = chunks is not None and 2 * sum(map(len, chunks)) > panels * max(units, 2)
        if pair is None and short:
            chunks = None
        if pair is not None and chunks is None:
            raise ValueError("products of these weights do not fit int16")
    pair = chunks is None
    if chunks is None:
        chunks = [[units]] * panels
    counts = torch.tensor([0, *map(len, chunks)], dtype=torch.int32)
    flat = torch.tensor([n for panel in chunks for n in panel], dtype=torch.int32)
    return Chunks(counts.cumsum(0, dtype=torch.int32), flat.to(torch.int16), pair)


def panel_bytes(layer: IntegerLayer) -> int:
    """Bytes of a layer's panels, padding included."""
    height, width = layer.kernel_size
    padded = -(-layer.weight_codes.shape[1] // 4) * 4 * height * width
    panels = layer.groups * -(-layer.out_features // layer.groups // PANEL)
    return panels * -(-padded // UNIT) * 2 * UNIT * layer.weight_bits


def pack_panels(layer: IntegerLayer, wide_accumulators: bool, pair: bool | None = None) -> Panels:
    """Repacks a layer for the native kernels; arguments as for :func:`plan_chunks`."""
    chunks = plan_chunks(factors(layer), layer.groups, layer.act_bits, wide_accumulators, pair)
    codes = panel_codes(layer.weight_codes, layer.weight_bits, layer.groups, chunks.pair)
    sums = layer.weight_codes.flatten(1).sum(dim=1, dtype=torch.int32)
    return Panels(codes, chunks, sums)


def panel_codes(codes: Tensor, bits: int, groups: int, pair: bool) -> Tensor:
    """The panels of weight codes; see ``Panels.codes``.

    Args:
        codes: int8 ``(out, in)`` or ``(out, in / groups, kh, kw)``.
        bits: width of one code.
        groups: convolution groups.
        pair: see ``Chunks.pair``.
    """
    blocks = _unit_blocks(codes, groups)
    panels, _, units, _ = blocks.shape
    lanes = 2 if pair else 4
    order = blocks.view(panels, PANEL, units, UNIT // lanes, lanes).permute(0, 2, 3, 1, 4)
    return _planes(order.reshape(panels, units, 8, 32).contiguous(), bits).contiguous()


def unpack_panels(
    codes: Tensor, layer_shape: tuple[int, ...], bits: int, groups: int, pair: bool
) -> Tensor:
    """Reads weight codes back from packed panels.

    Args:
        codes: ``Panels.codes``.
        layer_shape: shape of the weight codes, ``(out, in)`` or ``(out, in / groups, kh, kw)``.
        bits: width of one code.
        groups: convolution groups.
        pair: ``Panels.pair``.

    Returns:
        int8 tensor of ``layer_shape``.
    """
    panels, units, _ = codes.shape
    if bits == 8:
        vectors = codes.view(panels, units, 8, 32).view(torch.int8)
    else:
        values = torch.zeros(panels, units, 8, 32, dtype=torch.uint8)
        start = shift = 0
        for width in (4, 2, 1):
            if not bits & width:
                continue
            plane = codes[..., start : start + 32 * width].reshape(panels, units, width, 1, 32)
            moves = torch.arange(0, 8, width, dtype=torch.uint8).view(-1, 1)
            fields = (plane >> moves) & ((1 << width) - 1)
            values |= fields.flatten(-3, -2) << shift
            start += 32 * width
            shift += width
        vectors = (values.to(torch.int16) - (1 << (bits - 1))).to(torch.int8)
    lanes = 2 if pair else 4
    blocks = vectors.reshape(panels, units, UNIT // lanes, PANEL, lanes).permute(0, 3, 1, 2, 4)
    out = layer_shape[0] // groups
    kh, kw = (layer_shape[2], layer_shape[3]) if len(layer_shape) == 4 else (1, 1)
    channels = layer_shape[1]
    padded = -(-channels // 4) * 4
    flat = blocks.reshape(groups, panels // groups * PANEL, units * UNIT)
    flat = flat[:, :out, : kh * kw * padded].reshape(groups, out, kh, kw, padded)
    return flat[..., :channels].permute(0, 1, 4, 2, 3).reshape(layer_shape).contiguous()
