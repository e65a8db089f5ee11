"""Float activations to int8 codes, channels innermost, in one pass.

Codes of 8 bits are unsigned and do not fit the signed operands of integer matrix products, so 128
is subtracted when they are stored; the zero point moves with them and the sums stay exact.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quantarena.methods.core.cuda.problem import Problem

MAGIC = tl.constexpr(12582912.0)
"""1.5 * 2**23: adding and subtracting it rounds a small float32 to the nearest even integer."""


def code_shift(act_bits: int) -> int:
    """The value subtracted from a code before it is stored as int8."""
    return 128 if act_bits == 8 else 0


@triton.jit  # type: ignore[untyped-decorator]
def quantize_kernel(
    x: tl.tensor,  # float, any strides
    codes: tl.tensor,  # int8 (batch, padded_height, padded_width, groups * channels)
    sums: tl.tensor,  # int32 (pixels, groups), zero on entry; read where HAS_SUMS
    inverse: tl.tensor,  # float32 (steps,): 1 / scale
    zero: tl.tensor,  # int32 (steps,)
    multiplier: tl.tensor,  # float32 (groups * channels,), read where HAS_MULT
    step: tl.tensor,  # int32 (1,): entry of the tables
    height: tl.tensor,
    width: tl.tensor,
    padded_height: tl.tensor,
    padded_width: tl.tensor,
    pad_top: tl.tensor,
    pad_left: tl.tensor,
    channels: tl.tensor,  # of one group
    groups: tl.tensor,
    stride_batch: tl.tensor,
    stride_channel: tl.tensor,
    stride_line: tl.tensor,
    stride_pixel: tl.tensor,
    TOP: tl.constexpr,  # largest code
    SHIFT: tl.constexpr,
    HAS_MULT: tl.constexpr,
    HAS_SUMS: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """One tile of BLOCK_X pixels of a padded line by BLOCK_C channels of a group."""
    across = (padded_width + BLOCK_X - 1) // BLOCK_X
    line = tl.program_id(0) // across  # padded line, over all images
    image = line // padded_height
    down = line % padded_height - pad_top
    px = (tl.program_id(0) % across) * BLOCK_X + tl.arange(0, BLOCK_X)  # (X,)
    blocks = (channels + BLOCK_C - 1) // BLOCK_C
    group = tl.program_id(1) // blocks
    c = (tl.program_id(1) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)  # (C,) in the group
    ch = group * channels + c

    entry = tl.load(step)
    z = tl.load(zero + entry)
    zf = z.to(tl.float32)
    low = -zf
    high = TOP - zf

    valid = (px < padded_width)[:, None] & (c < channels)[None, :]  # (X, C)
    across_x = px - pad_left
    real = (across_x >= 0) & (across_x < width) & (down >= 0) & (down < height)  # (X,)
    start = x + image.to(tl.int64) * stride_batch + down.to(tl.int64) * stride_line
    place = (
        across_x.to(tl.int64)[:, None] * stride_pixel + ch.to(tl.int64)[None, :] * stride_channel
    )
    value = tl.load(start + place, mask=valid & real[:, None], other=0.0).to(tl.float32)
    value = value * tl.load(inverse + entry)
    if HAS_MULT:
        value = value * tl.load(multiplier + ch, mask=c < channels, other=0.0)[None, :]
    # the clamp stands between product and sum, so that they cannot fuse and round differently
    value = tl.where(value == value, value, low)
    value = tl.minimum(tl.maximum(value, low), high)
    code = ((value + MAGIC) - MAGIC).to(tl.int32) + z
    code = tl.where(real[:, None], code, z) - SHIFT

    pixel = line.to(tl.int64) * padded_width + px  # (X,)
    pitch = groups * channels
    tl.store(codes + pixel[:, None] * pitch + ch[None, :], code.to(tl.int8), mask=valid)
    if HAS_SUMS:
        # _sum_combine by itself: tl.sum is a jit function, which an interpreter that was turned
        # on after Triton's import cannot call
        part = tl.reduce(tl.where(valid, code, 0), 1, tl.standard._sum_combine)  # (X,)
        tl.atomic_add(sums + pixel * groups + group, part, mask=px < padded_width)


def quantize(
    x: Tensor, problem: Problem, tables: dict[str, Tensor], step: Tensor, act_bits: int, sums: bool
) -> tuple[Tensor, Tensor | None]:
    """Computes the activation codes of an input.

    Args:
        x: float32, bfloat16 or float16 input, of the shape and strides that ``problem`` describes.
        problem: sizes and strides of the call.
        tables: ``act_inverse`` and ``act_zero``, ``(steps,)``; ``in_mult`` where there is one.
        step: entry of the tables, int32 ``(1,)`` on the device.
        act_bits: width of a code.
        sums: whether to compute sums over the channels of a group.

    Returns:
        int8 ``(pixels, channels of all groups)`` codes minus :func:`code_shift`, and int32
        ``(pixels, groups)`` sums of them or None.
    """
    groups = problem.groups if sums else 1
    channels = problem.channels * problem.groups // groups
    codes = x.new_empty((problem.pixels, channels * groups), dtype=torch.int8)
    total = x.new_zeros((problem.pixels, groups), dtype=torch.int32) if sums else None
    height, width = problem.padded
    block_x = min(64, max(16, triton.next_power_of_2(width)))
    block_c = min(64, max(16, triton.next_power_of_2(channels)))
    lines = problem.batch * height * -(-width // block_x)
    if codes.numel() == 0:
        return codes, total
    quantize_kernel[(lines, groups * -(-channels // block_c))](
        x,
        codes,
        codes if total is None else total,
        tables["act_inverse"],
        tables["act_zero"],
        tables.get("in_mult", tables["act_inverse"]),
        step,
        *problem.size,
        height,
        width,
        *problem.padding,
        channels,
        groups,
        *problem.in_strides,
        TOP=(1 << act_bits) - 1,
        SHIFT=code_shift(act_bits),
        HAS_MULT="in_mult" in tables,
        HAS_SUMS=sums,
        BLOCK_X=block_x,
        BLOCK_C=block_c,
        num_warps=4,
    )
    return codes, total
