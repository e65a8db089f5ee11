"""A linear layer whose rows have activation ranges of their own, in one native call.

The kernel quantizes each row with its own scale and zero point, multiplies integers, and scales
back by row and by output channel; K-groups add up in its epilogue:

    y[r, n] = sum_g s[r, g] * w[g, n] * sum_k (a[r, k] - z[r, g]) * (c[g, n, k] - zw[g, n]) + b[n]
"""

import ctypes

import torch
from torch import Tensor

from quantarena.methods.core.kernels import native
from quantarena.methods.core.kernels.geometry import layer_struct
from quantarena.methods.core.kernels.observer import Kind, NativeOperation, here
from quantarena.methods.core.packed.nodes.leaf import PackedLayer


def row_product(
    leaf: PackedLayer,
    x: Tensor,
    scale: Tensor,
    zero: Tensor,
    in_mult: Tensor | None,
    bias: Tensor | None,
) -> Tensor | None:
    """Quantizes, multiplies and scales back.

    Args:
        leaf: codes (G * O, K / G, 1, 1) in G groups.
        x: (R, K) float32 on the CPU.
        scale: (R, G), of the activations.
        zero: (R, G) integers, at most ``FAR`` beyond the codes; sums of products fit int32.
        in_mult: (K,), multiplies ``x / scale``; or None.
        bias: (O,), or None.

    Returns:
        (R, O) float32; None where there are no native kernels.

    Raises:
        MemoryError: no memory for scratch.
    """
    library, groups = leaf.library, int(leaf.metadata["groups"])
    if library.run is None:
        return None
    x, scale, zero = x.contiguous(), scale.contiguous(), zero.to(torch.int32).contiguous()
    rows, outputs = len(x), leaf.weight_shape[0] // groups
    y = torch.empty(rows, outputs)
    extra = {"in_mult": in_mult, "bias": bias}
    given = {name: value for name, value in extra.items() if value is not None}
    struct = layer_struct(
        leaf.metadata, leaf.uses_pairs, {**dict(leaf.named_buffers()), **given}, sums=True
    )
    image = native.GeometryStruct(1, 1, rows, 1, rows, 0, 0, x.shape[1], 1, 0, 0, outputs, 1)
    ranges = native.RowScalesStruct(scale.data_ptr(), zero.data_ptr())
    error = library.run(
        ctypes.addressof(struct),
        ctypes.addressof(image),
        x.data_ptr(),
        y.data_ptr(),
        0,
        torch.get_num_threads(),
        0,
        ctypes.addressof(ranges),
    )
    if error:
        raise MemoryError("rows with their own ranges: no memory for scratch")
    if here.tell is not None:
        operands, fixed = (x, y, scale, zero), (in_mult, bias)
        here.tell(
            NativeOperation(
                Kind.LAYER, library.run, operands, struct, image, fixed=fixed, keep=(leaf,)
            )
        )
    return y
