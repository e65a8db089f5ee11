"""Bits, bytes, coverage and bit operations, observed on the packed tensors and the traced graph.

A bit operation (BOP) is one multiply-accumulate times the bits of its two factors; a factor in
floating point counts 32. The MACs of one image are cut into shares whose factors have one width
each: layers, the two products of each attention, and what runs in floating point beside or instead
of a quantized layer.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from quantarena.methods.core.bits import FP, FP_WIDTH, Bits
from quantarena.methods.core.errors import QuantArenaError
from quantarena.methods.core.model.attention import QuantAttention
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.width_budget import FLOAT_BITS
from quantarena.methods.core.network import tensor_bytes
from quantarena.methods.core.trace.network import AttentionInfo, Graph, LayerInfo


@dataclass(frozen=True, slots=True)
class Compute:
    """The operations of a network for one image.

    Attributes:
        code_bits: mean bits of a weight code over all layers; 32 for weights in floating point.
        bops: bit operations.
        fp_bops: bit operations of the full-precision network.
        branch_macs: MACs that floating-point branches add beside quantized layers.
        attention: number of quantized attention products.
    """

    code_bits: float
    bops: int
    fp_bops: int
    branch_macs: int
    attention: int


@dataclass(frozen=True, slots=True)
class Footprint(Compute):
    """The observed size and operations of a network.

    Attributes:
        weight_bits: mean bits of what takes 32 bits in full precision: ``32 * packed_bytes /
            fp_bytes``.
        act_bits: mean activation bits, weighted by MACs.
        coverage: share of all MACs at each width: ``w4a8`` of layers, ``a8a4`` of attention
            products by the bits of their two factors, ``fp`` of all in floating point.
        packed_bytes: bytes of all parameters and buffers as they lie in memory: codes, padding,
            scales, and what stayed in floating point.
        fp_bytes: bytes of the full-precision network's parameters and buffers at fp32.
        layers: number of quantized layers.
    """

    weight_bits: float
    act_bits: float
    coverage: dict[str, float]
    packed_bytes: int
    fp_bytes: int
    layers: int


@dataclass(frozen=True, slots=True)
class MacShare:
    """MACs of one image whose factors have the same widths.

    Attributes:
        label: name in the coverage.
        macs: number of multiply-accumulates.
        left, right: bits of the factors, 32 in floating point.
        act: mean bits of those factors that are activations.
    """

    label: str
    macs: float
    left: float
    right: float
    act: float


def footprint(
    graph: Graph,
    widths: Mapping[str, Bits],
    original: nn.Module,
    packed_bytes: int,
    *,
    means: Mapping[str, float] | None = None,
    layers: Mapping[str, QuantLayer] | None = None,
    attention: Mapping[str, QuantAttention] | None = None,
    tabulated: Collection[str] = (),
) -> Footprint:
    """The footprint of a network.

    Args:
        graph: trace of the original.
        widths: observed bits of its layers; a missing layer counts as floating point.
        original: the full-precision network.
        packed_bytes: bytes of the packed network's tensors.
        means: observed mean bits of each layer's weight codes, where they are not all the same.
        layers: quantized layers, for their options and for the widths that were declared.
        attention: quantized attention products.
        tabulated: paths of modules that tables stand for; their layers do not run.

    Raises:
        QuantArenaError: declared widths are not those observed.
    """
    layers, attention, means = layers or {}, attention or {}, means or {}
    require_declared(layers, attention, widths, means)
    fp_bytes = tensor_bytes(original, float_bits=FLOAT_BITS)
    gone = graph.inside(tabulated)
    shares: list[MacShare] = []
    branch_macs, code_bits, weights = 0.0, 0.0, 0
    for name, info in graph.layers.items():
        if name in gone:
            continue
        bits = widths.get(name, FP)
        mean = means.get(name, float(bits.weight)) if bits.weight != FP_WIDTH else FLOAT_BITS
        code_bits, weights = code_bits + mean * info.weights, weights + info.weights
        act = _width(bits.act)
        shares.append(MacShare(str(bits), float(info.macs), mean, act, act))
        if (layer := layers.get(name)) is not None:
            branch_macs += _branch_macs(info, layer)
    for name, products in graph.attention.items():
        shares += _attention_shares(products, attention.get(name))
    rest = graph.other_macs - sum(info.macs for info in graph.attention.values())
    shares += [_floating(rest), _floating(branch_macs)]
    macs: Counter[str] = Counter()
    for share in shares:
        macs[share.label] += share.macs  # type: ignore[assignment]
    total = max(1.0, sum(share.macs for share in shares))
    return Footprint(
        weight_bits=FLOAT_BITS * packed_bytes / max(1, fp_bytes),
        act_bits=sum(p.macs * p.act for p in shares) / total,
        coverage={name: count / total for name, count in macs.most_common() if count},
        packed_bytes=packed_bytes,
        fp_bytes=fp_bytes,
        layers=len(widths),
        code_bits=code_bits / max(1, weights),
        bops=round(sum(p.macs * p.left * p.right for p in shares)),
        fp_bops=graph.total_macs * FLOAT_BITS**2,
        branch_macs=round(branch_macs),
        attention=len(attention),
    )


def require_declared(
    layers: Mapping[str, QuantLayer],
    attention: Mapping[str, QuantAttention],
    widths: Mapping[str, Bits],
    means: Mapping[str, float],
) -> None:
    """Hold declared widths against observed ones.

    A bit map may move bits between the channels of a layer; their mean has to be what was declared.

    Raises:
        QuantArenaError: naming the first layer or product that differs.
    """
    for name, layer in layers.items():
        packed = widths.get(name, FP)
        mean = means.get(name, float(packed.weight))
        if packed.act != layer.bits.act or abs(mean - layer.bits.weight) > 1e-6:
            raise QuantArenaError(
                f"{name}: declared {layer.bits}, packed is {mean:g} bits a weight and {packed.act} "
                "an activation: the method reports other widths than it made"
            )
    for name, quant in attention.items():
        if quant.observed() != quant.bits:
            raise QuantArenaError(
                f"{name}: declared attention {quant.bits}, its quantizers are {quant.observed()}"
            )


def _branch_macs(info: LayerInfo, layer: QuantLayer) -> float:
    """MACs in floating point that the layer's options add."""
    positions = info.macs / info.weights
    return sum((option.float_macs(info.macs, positions) for option in layer.options), 0.0)


def _attention_shares(info: AttentionInfo, quant: QuantAttention | None) -> Iterator[MacShare]:
    """Both products; excluded key tokens leave one factor of each in floating point."""
    if quant is None:
        yield _floating(info.macs)
        return
    bits = quant.observed()
    outside = min(1.0, quant.excluded / info.keys)
    for macs, free, other in (
        (info.qk_macs, bits.key, bits.query),
        (info.av_macs, bits.softmax, bits.value),
    ):
        yield _product(macs * (1 - outside), free, other)
        yield _product(macs * outside, FP_WIDTH, other)


def _product(macs: float, one: int, other: int) -> MacShare:
    left, right = _width(one), _width(other)
    label = "fp" if one == other == FP_WIDTH else f"a{max(one, other)}a{min(one, other)}"
    return MacShare(label, macs, left, right, (left + right) / 2)


def _floating(macs: float) -> MacShare:
    return MacShare("fp", macs, FLOAT_BITS, FLOAT_BITS, FLOAT_BITS)


def _width(bits: int) -> int:
    return FLOAT_BITS if bits == FP_WIDTH else bits
