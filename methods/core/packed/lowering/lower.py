"""From a quantized layer to packed modules: every option has its packed form, or is refused.

Each part is lowered by the first strategy that applies to it; then come the modules around it.

| option | packed form |
|---|---|
| input splits, channel groups, K-groups of weights | groups of input channels, or a sum |
| banks by sampler call | the kernels' tables, indexed by the clock |
| offsets of input channels | off the input; their product with the weight onto the output |
| rotation of input channels | in floating point before the rest, input multipliers included |
| input multipliers | the kernels' quantize prologue |
| bit map | one module a width, outputs put back in order |
| token groups, dynamic ranges of tokens | ranges, codes and scales by row, in one call |
| groups of a convolution's patches | the same over one row for each output pixel |
| dynamic ranges of images | samples by zero point |
| weight-only | packed codes, float weight made at run time |
| gains by sampler call | onto input and output of a weight-only layer |
| low-rank branch | in floating point, in the call of the rest where that is one |
| affine map of output channels by sampler call | in floating point after the rest |
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.packed.lowering.case import Case, Ranges
from quantarena.methods.core.packed.lowering.channels import channel_sum, weights_alone
from quantarena.methods.core.packed.lowering.codes import WeightCodes, weight_codes
from quantarena.methods.core.packed.lowering.rows import (
    image_samples,
    patch_rows,
    pixel_rows,
    token_rows,
)
from quantarena.methods.core.packed.nodes.channel_sum import SplitPackedLayer
from quantarena.methods.core.packed.nodes.k_groups import one_call
from quantarena.methods.core.packed.nodes.node import Node
from quantarena.methods.core.packed.nodes.rebuild import wrapped
from quantarena.methods.core.packed.nodes.wrappers import Conv1dLayer, MixedWidthLayer
from quantarena.methods.core.quantizers.part import Part


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to lower a part.

    Attributes:
        applies: whether it is the way for this case, where no earlier one is.
        lower: makes the packed module, or raises ``Unsupported``.
    """

    applies: Callable[[Case], bool]
    lower: Callable[[Case], Node]


STRATEGIES: tuple[Strategy, ...] = (
    Strategy(lambda case: case.by_patch, patch_rows),
    Strategy(lambda case: case.ranges is Ranges.NONE, weights_alone),
    Strategy(lambda case: case.ranges in (Ranges.ONE, Ranges.CHANNELS), channel_sum),
    Strategy(lambda case: not case.layer.is_conv, token_rows),
    Strategy(lambda case: case.ranges is Ranges.RUN_TIME, image_samples),
    Strategy(lambda case: case.ranges is Ranges.POSITIONS, pixel_rows),
)
"""Every way to lower a part, in the order in which they are tried."""


def pack_layer(layer: QuantLayer) -> Node:
    """A layer's packed form, on its own model's clock.

    Raises:
        Unsupported: an option or a combination that has no integer form; it says which.
        ValueError: weight codes are not frozen, or ranges were never found.
    """
    codes = [weight_codes(layer, part) for part in layer.parts]
    nodes = [_lower_part(layer, p, c) for p, c in zip(layer.parts, codes, strict=True)]
    node = nodes[0] if len(nodes) == 1 else one_call(SplitPackedLayer(nodes))
    for option in layer.options:
        if (form := option.lower(layer)) is not None:
            node = wrapped(node, form.form, form.fields, form.tensors)
    if layer.spatial == 1:
        node = Conv1dLayer(node)
    node.set_clock(layer.clock)
    return node


def _lower_part(layer: QuantLayer, part: Part, codes: WeightCodes) -> Node:
    """One part; output channels of several widths are lowered width by width."""
    quantizer = part.weight_quantizer
    bit_map = None if quantizer is None else quantizer.bit_map
    if bit_map is None or len(torch.unique(bit_map)) == 1:
        return _lower_case(Case(layer, part.act_quantizer, codes))
    if layer.groups != 1:
        raise Unsupported(f"a bit map of a convolution in {layer.groups} groups has no packed form")
    widths = torch.unique(bit_map).tolist()
    rows = [(bit_map == width).nonzero().flatten() for width in widths]
    nodes = [
        _lower_case(Case(layer, part.act_quantizer, codes.rows(index, width)))
        for index, width in zip(rows, widths, strict=True)
    ]
    return MixedWidthLayer(nodes, torch.cat(rows).argsort())


def _lower_case(case: Case) -> Node:
    return next(strategy.lower(case) for strategy in STRATEGIES if strategy.applies(case))
