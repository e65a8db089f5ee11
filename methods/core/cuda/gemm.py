"""The integer matrix product of all layers: packed weights, int8 operands, int32 sums.

With stored activation codes ``a' = a - shift``, ``z' = zx - shift`` and weight codes ``c``::

    T = sum a' c - z' * sum c - zw * (sum a' - K z')

which is ``sum (a - zx)(c - zw)`` whatever the shift.  Weights of fewer than 8 bits are unpacked in
registers to the *top* bits of an int8, one shift and one mask a code; the sums are then
``2**(8 - bits)`` times too large and are shifted back at the end, exactly.  Products of two int8
add up to less than 2**30 over the deepest layer (65,000 products), so saturating instructions are
exact too. The later subtractions may wrap in between, but T fits int32 and is exact.
"""

import triton
import triton.language as tl
from torch import Tensor

from quantarena.methods.core.cuda.packing import segment_length, segments
from quantarena.methods.core.cuda.problem import Problem
from quantarena.methods.core.cuda.quantize import code_shift
from quantarena.methods.core.cuda.tuning import Config

FLOAT, INTEGER, ADD = 0, 1, 2
"""Modes of writing: the output, T itself, or the output added to the present values."""
_GROUP_ROWS = 8


@triton.jit  # type: ignore[untyped-decorator]
def multiply_kernel(
    codes: tl.tensor,  # int8 (pixels, pitch): activation codes minus SHIFT
    weights: tl.tensor,  # uint8 (groups * columns, row_bytes): see packing
    out: tl.tensor,
    weight_sum: tl.tensor,  # int32 (groups * columns,)
    weight_zero: tl.tensor,  # int32 (groups * columns,), read where ASYMMETRIC
    code_sums: tl.tensor,  # int32 (pixels, groups), read where ASYMMETRIC
    weight_scale: tl.tensor,  # float32 (groups * columns,)
    bias: tl.tensor,  # float32 (groups * columns,), read where HAS_BIAS
    act_scale: tl.tensor,  # float32 (steps,)
    act_zero: tl.tensor,  # int32 (steps,)
    step: tl.tensor,  # int32 (1,)
    rows: tl.tensor,
    columns: tl.tensor,  # of one group
    depth: tl.tensor,
    segment: tl.tensor,  # bytes of a segment
    row_bytes: tl.tensor,
    channels: tl.tensor,  # of one group
    pitch: tl.tensor,  # channels of all groups
    in_width: tl.tensor,  # of the padded image
    in_pixels: tl.tensor,
    out_width: tl.tensor,
    out_pixels: tl.tensor,
    kernel_h: tl.tensor,
    kernel_w: tl.tensor,
    stride_h: tl.tensor,
    stride_w: tl.tensor,
    dilation_h: tl.tensor,
    dilation_w: tl.tensor,
    pitch_image: tl.tensor,  # of the output
    pitch_channel: tl.tensor,
    pitch_pixel: tl.tensor,
    BITS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    ALIGN: tl.constexpr,  # divides segment
    SHIFT: tl.constexpr,
    WINDOWED: tl.constexpr,
    ASYMMETRIC: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    MODE: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """One BLOCK_M x BLOCK_N tile of the product of one group."""
    # neighbouring programs share rows and columns, so that the L2 cache serves them
    tiles_m = (rows + BLOCK_M - 1) // BLOCK_M
    tiles_n = (columns + BLOCK_N - 1) // BLOCK_N
    band = tl.program_id(0) // (GROUP * tiles_n)
    band_rows = tl.minimum(tiles_m - band * GROUP, GROUP)
    within = tl.program_id(0) % (GROUP * tiles_n)
    m = (band * GROUP + within % band_rows) * BLOCK_M + tl.arange(0, BLOCK_M)  # (M,)
    n = (within // band_rows) * BLOCK_N + tl.arange(0, BLOCK_N)  # (N,) in the group
    group = tl.program_id(1)
    ch = group * columns + n
    m_ok = m < rows
    n_ok = n < columns

    image = m // out_pixels
    pixel = m % out_pixels
    if WINDOWED:
        corner = (pixel // out_width) * stride_h * in_width + (pixel % out_width) * stride_w
        first = image.to(tl.int64) * in_pixels + corner  # (M,) first pixel of the window
    else:
        first = m.to(tl.int64)
    a_rows = codes + (first * pitch + group * channels)[:, None]  # (M, 1)

    segment = tl.multiple_of(segment, ALIGN)
    row_bytes = tl.multiple_of(row_bytes, ALIGN)
    w_rows = weights + ch[None, :] * row_bytes  # (1, N)
    total = tl.full((BLOCK_M, BLOCK_N), 0, tl.int32)
    for start in range(0, segment, BLOCK_K):
        j = start + tl.arange(0, BLOCK_K)  # (K,) place in the segment
        j_ok = j < segment
        w_ok = j_ok[:, None] & n_ok[None, :]
        for s in tl.static_range(SEGMENTS):
            k = s * segment + j
            if WINDOWED:
                tap = k // channels
                line = (tap // kernel_w) * dilation_h * in_width
                offset = (line + (tap % kernel_w) * dilation_w) * pitch + k % channels
            else:
                offset = k
            a_ok = m_ok[:, None] & (j_ok & (k < depth))[None, :]
            a = tl.load(a_rows + offset[None, :], mask=a_ok, other=0)  # (M, K)

            # planes, most significant first; each field goes to the top, then below the last one
            w = tl.full((BLOCK_K, BLOCK_N), 0, tl.uint8)
            if BITS == 8:
                w = tl.load(w_rows + j[:, None], mask=w_ok, other=0)
            if BITS & 4:
                at = (s % (SEGMENTS // 2)) * segment
                byte = tl.load(w_rows + (at + j)[:, None], mask=w_ok, other=0)
                w = (byte << (4 - 4 * (s // (SEGMENTS // 2)))) & 0xF0
            if BITS & 2:
                at = ((BITS & 4) * SEGMENTS // 8 + s % (SEGMENTS // 4)) * segment
                byte = tl.load(w_rows + (at + j)[:, None], mask=w_ok, other=0)
                w = w | (((byte << (6 - 2 * (s // (SEGMENTS // 4)))) & 0xC0) >> (BITS & 4))
            if BITS & 1:
                at = (BITS & 6) * segment
                byte = tl.load(w_rows + (at + j)[:, None], mask=w_ok, other=0)
                w = w | (((byte << (7 - s)) & 0x80) >> (BITS & 6))
            total = tl.dot(a, w.to(tl.int8, bitcast=True), total, out_dtype=tl.int32)

    total = total >> (8 - BITS)
    entry = tl.load(step)
    z = tl.load(act_zero + entry) - SHIFT
    total -= z * tl.load(weight_sum + ch, mask=n_ok, other=0)[None, :]
    if ASYMMETRIC:
        window_sum = tl.full((BLOCK_M,), 0, tl.int32)  # sum of the stored codes under the window
        groups = pitch // channels
        for tap in range(0, kernel_h * kernel_w):
            line = (tap // kernel_w) * dilation_h * in_width
            at = first + line + (tap % kernel_w) * dilation_w
            window_sum += tl.load(code_sums + at * groups + group, mask=m_ok, other=0)
        zw = tl.load(weight_zero + ch, mask=n_ok, other=0)
        total -= (window_sum - depth * z)[:, None] * zw[None, :]

    place = image.to(tl.int64) * pitch_image + pixel.to(tl.int64) * pitch_pixel  # (M,)
    target = out + place[:, None] + ch.to(tl.int64)[None, :] * pitch_channel
    ok = m_ok[:, None] & n_ok[None, :]
    if MODE == 1:
        tl.store(target, total, mask=ok)
    else:
        scale = tl.load(act_scale + entry) * tl.load(weight_scale + ch, mask=n_ok, other=0.0)
        y = total.to(tl.float32) * scale[None, :]
        if HAS_BIAS:
            y += tl.load(bias + ch, mask=n_ok, other=0.0)[None, :]
        if MODE == 2:
            y += tl.load(target, mask=ok, other=0.0).to(tl.float32)
        tl.store(target, y.to(out.dtype.element_ty), mask=ok)


def multiply(
    codes: Tensor,
    code_sums: Tensor | None,
    out: Tensor,
    problem: Problem,
    buffers: dict[str, Tensor],
    step: Tensor,
    *,
    weight_bits: int,
    act_bits: int,
    mode: int,
    config: Config,
) -> None:
    """Multiplies codes by packed weights and writes ``out``.

    Args:
        codes: activation codes from ``quantize``.
        code_sums: sums from ``quantize``; needed where ``buffers`` has ``weight_zero``.
        out: output tensor, float for ``FLOAT`` and ``ADD``, int32 for ``INTEGER``; strides as in
            ``problem``.
        problem: sizes and strides of the call.
        buffers: ``weights, weight_sum, weight_scale, act_scale, act_zero``; ``weight_zero`` and
            ``bias`` where there are any.
        step: int32 ``(1,)``, the entry of the activation tables.
        weight_bits: width of a weight code.
        act_bits: width of an activation code.
        mode: ``FLOAT``, ``INTEGER`` or ``ADD``.
        config: tile sizes.
    """
    if out.numel() == 0:
        return
    segment = segment_length(problem.depth, weight_bits)
    height, width = problem.padded
    tiles = -(-problem.rows // config.rows) * -(-problem.columns // config.columns)
    unused = buffers["weight_sum"]
    multiply_kernel[(tiles, problem.groups)](
        codes,
        buffers["weights"],
        out,
        buffers["weight_sum"],
        buffers.get("weight_zero", unused),
        unused if code_sums is None else code_sums,
        buffers["weight_scale"],
        buffers.get("bias", buffers["weight_scale"]),
        buffers["act_scale"],
        buffers["act_zero"],
        step,
        problem.rows,
        problem.columns,
        problem.depth,
        segment,
        buffers["weights"].shape[1],
        problem.channels,
        problem.channels * problem.groups,
        width,
        height * width,
        problem.out_size[1],
        problem.out_pixels,
        *problem.kernel,
        *problem.stride,
        *problem.dilation,
        *problem.out_pitch,
        BITS=weight_bits,
        SEGMENTS=segments(weight_bits),
        ALIGN=next(size for size in (16, 8, 4) if segment % size == 0),
        SHIFT=code_shift(act_bits),
        WINDOWED=problem.windowed,
        ASYMMETRIC="weight_zero" in buffers,
        HAS_BIAS="bias" in buffers,
        MODE=mode,
        GROUP=_GROUP_ROWS,
        BLOCK_M=config.rows,
        BLOCK_N=config.columns,
        BLOCK_K=config.depth,
        num_warps=config.warps,
        num_stages=config.stages,
    )
