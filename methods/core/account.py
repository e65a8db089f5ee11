"""Observed bits, bytes and coverage: read from tensors and the live graph, never from a name."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from quantarena.methods.core.bits import FP_WIDTH, Bits
from quantarena.methods.core.graph import Graph

FLOAT_BITS = 32


@dataclass(frozen=True, slots=True)
class Account:
    """What a network really holds.

    Attributes:
        weight_bits: mean bits a parameter, scales and floating-point parameters included.
        act_bits: mean activation bits, weighted by MACs.
        coverage: share of all MACs at each width; ``fp`` is what stays in floating point,
            attention products included.
        packed_bytes: bytes of all parameters as they lie in memory.
        fp_bytes: bytes of the full-precision network's parameters at fp32.
        layers: quantized layers.
    """

    weight_bits: float
    act_bits: float
    coverage: dict[str, float]
    packed_bytes: int
    fp_bytes: int
    layers: int


def account(
    graph: Graph, widths: Mapping[str, Bits], original: nn.Module, packed_bytes: int
) -> Account:
    """Sum up a network.

    Args:
        graph: trace of the original.
        widths: observed bits of its layers; a missing layer counts as floating point.
        original: the full-precision network.
        packed_bytes: bytes of the packed network's tensors.
    """
    parameters = sum(p.numel() for p in original.parameters())
    macs: Counter[str] = Counter()
    act_sum = float(graph.other_macs * FLOAT_BITS)
    macs["fp"] = graph.other_macs
    for name, info in graph.layers.items():
        bits = widths.get(name, Bits(FP_WIDTH, FP_WIDTH))
        macs[str(bits)] += info.macs
        act_sum += info.macs * (FLOAT_BITS if bits.act == FP_WIDTH else bits.act)
    total = max(1, graph.total_macs)
    return Account(
        weight_bits=8 * packed_bytes / parameters,
        act_bits=act_sum / total,
        coverage={name: count / total for name, count in macs.most_common() if count},
        packed_bytes=packed_bytes,
        fp_bytes=parameters * FLOAT_BITS // 8,
        layers=len(widths),
    )
