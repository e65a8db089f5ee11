"""Policy ``budget``: what the widths that a method chooses may cost, and the check of it.

The widths of layers that have a floor in the policy (input, output and time embedding) stay the
policy's. All others are free, under two bounds, both of which ``uniform`` meets with equality: the
mean bits of a weight code over the weights of the free layers, and the sum over the free layers of
MACs times weight bits times activation bits. So the codes of a budget cell take the bytes of a
uniform cell of the same bits, with no more bit operations. A branch in floating point beside a
layer counts on both sides, with 32 bits a value: else one of full rank would be a second copy of
the layer that costs nothing. Rotations, and vectors such as multipliers and gains, are outside of
the bounds, as they are under ``uniform``.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from quantarena.methods.core.bits import FP, FP_WIDTH, Bits
from quantarena.methods.core.errors import QuantArenaError
from quantarena.methods.core.model.policy import Policy
from quantarena.methods.core.trace.network import Graph, LayerInfo

FLOAT_BITS = 32
"""What a factor in floating point counts in bit operations and in means."""
_SLACK = 1e-9
"""Relative room for sums of means in floating point."""


@dataclass(frozen=True, slots=True)
class Spending:
    """What an assignment of widths costs.

    Attributes:
        weight_bits: bits of all weight codes, and of branches in floating point.
        weights: number of weights, without branches.
        bops: bit operations for one image.
    """

    weight_bits: float
    weights: int
    bops: float

    @property
    def mean_bits(self) -> float:
        """Mean bits of a weight code; 0 where there are no weights."""
        return self.weight_bits / max(1, self.weights)

    def within(self, most: "Spending") -> bool:
        """Whether neither weight bits nor bit operations are more than in ``most``."""
        pairs = ((self.weight_bits, most.weight_bits), (self.bops, most.bops))
        return all(spent <= limit * (1 + _SLACK) for spent, limit in pairs)


@dataclass(frozen=True, slots=True)
class WidthBudget:
    """The bounds of one network.

    Attributes:
        bits: requested widths.
        layers: layers whose widths are free, by module path.
        fixed: widths of all other layers.
    """

    bits: Bits
    layers: Mapping[str, LayerInfo]
    fixed: Mapping[str, Bits]

    @classmethod
    def of(cls, policy: Policy, graph: Graph, bits: Bits) -> "WidthBudget | None":
        """The bounds under this policy; None where it leaves nothing to choose."""
        if not policy.bounded or bits.is_fp:
            return None
        assigned = policy.assign(graph, bits)
        free = {n: info for n, info in graph.layers.items() if info.role not in policy.floors}
        return cls(bits, free, {n: b for n, b in assigned.items() if n not in free})

    @property
    def most(self) -> Spending:
        """What the requested widths cost in every free layer."""
        return self.spending(dict.fromkeys(self.layers, self.bits))

    def spending(
        self,
        widths: Mapping[str, Bits],
        means: Mapping[str, float] | None = None,
        branches: Mapping[str, int] | None = None,
    ) -> Spending:
        """What widths cost in the free layers.

        Args:
            widths: bits by layer; a missing layer counts as floating point.
            means: mean weight bits of layers whose channels differ.
            branches: values of the branches in floating point beside layers. Each is multiplied as
                often as a weight of its layer.
        """
        weight_bits, bops = 0.0, 0.0
        for name, info in self.layers.items():
            bits = widths.get(name, FP)
            weight = _weight_bits(bits, (means or {}).get(name))
            weight_bits += weight * info.weights
            bops += info.macs * weight * (FLOAT_BITS if bits.act == FP_WIDTH else bits.act)
            beside = (branches or {}).get(name, 0)
            weight_bits += FLOAT_BITS * beside
            bops += FLOAT_BITS**2 * beside * info.macs / max(1, info.weights)
        return Spending(weight_bits, sum(info.weights for info in self.layers.values()), bops)

    def only(self, names: Collection[str]) -> "WidthBudget":
        """The bounds of some of the free layers, as if there were no others."""
        return replace(self, layers={n: self.layers[n] for n in names}, fixed={})

    def without(self, gone: Collection[str]) -> "WidthBudget":
        """The bounds where these layers do not run: they neither spend nor free any bits."""
        return replace(
            self,
            layers={n: info for n, info in self.layers.items() if n not in gone},
            fixed={n: bits for n, bits in self.fixed.items() if n not in gone},
        )

    def require(
        self,
        widths: Mapping[str, Bits],
        means: Mapping[str, float] | None = None,
        branches: Mapping[str, int] | None = None,
    ) -> Spending:
        """Hold widths against the bounds.

        Args:
            widths: bits by layer; a missing layer counts as floating point.
            means: mean weight bits of layers whose channels differ.
            branches: values of the branches in floating point beside layers.

        Returns:
            What they cost.

        Raises:
            QuantArenaError: a bound is exceeded, or a layer outside of it has other widths or a
                branch.
        """
        for name, bits in self.fixed.items():
            found = widths.get(name, FP)
            weight = _weight_bits(found, (means or {}).get(name))
            if found.act != bits.act or abs(weight - _weight_bits(bits, None)) > 1e-6:
                raise QuantArenaError(f"{name} is {found}, policy budget keeps it at {bits}")
            if (branches or {}).get(name):
                raise QuantArenaError(
                    f"{name} has a branch in floating point, policy budget keeps it at {bits}"
                )
        spent, most = self.spending(widths, means, branches), self.most
        if not spent.within(most):
            beside = sum((branches or {}).get(name, 0) for name in self.layers)
            of = f", {beside:,} values of branches in floating point among them" if beside else ""
            raise QuantArenaError(
                f"policy budget allows {most.mean_bits:g} bits a weight and {most.bops:.4g} bit "
                f"operations in the layers that it leaves free: {spent.mean_bits:.4f} and "
                f"{spent.bops:.4g} were spent{of}"
            )
        return spent


def _weight_bits(bits: Bits, mean: float | None) -> float:
    if bits.weight == FP_WIDTH:
        return FLOAT_BITS
    return bits.weight if mean is None else mean
