"""The policy that gives each layer its bits, and so makes methods comparable.

``uniform`` is the same for every method. ``published`` is the table of a method's paper and
released code, which the method brings along. ``budget`` lets a method choose widths itself, as long
as they cost no more than ``uniform``'s (``width_budget``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from quantarena.methods.core.bits import FP_WIDTH, AttentionBits, Bits
from quantarena.methods.core.errors import UnknownName, Unsupported, did_you_mean
from quantarena.methods.core.trace.network import Graph, LayerInfo, Role


@dataclass(frozen=True, slots=True)
class Rule:
    """Widths of one layer: each exact, or the requested one.

    A side that was requested in full precision stays so, whatever the rule says.

    Attributes:
        weight: bits of a weight code, 16 for full precision, None for what was requested.
        act: bits of an activation code, likewise.
    """

    weight: int | None = None
    act: int | None = None

    def of(self, bits: Bits) -> Bits:
        """The widths where ``bits`` was requested."""
        return Bits(_width(self.weight, bits.weight), _width(self.act, bits.act))


@dataclass(frozen=True, slots=True)
class AttentionRule:
    """Widths of attention operands; requested ones are those of activations.

    Attributes:
        operands: bits of a query, key or value code; 16 for full precision, None as requested.
        softmax: bits of a code of the softmax's output, likewise.
    """

    operands: int | None = FP_WIDTH
    softmax: int | None = FP_WIDTH

    def of(self, bits: Bits) -> AttentionBits:
        """The widths where ``bits`` was requested."""
        width, softmax = _width(self.operands, bits.act), _width(self.softmax, bits.act)
        return AttentionBits(width, width, width, softmax)


def _width(rule: int | None, requested: int) -> int:
    return requested if rule is None or requested == FP_WIDTH else rule


AS_REQUESTED, EIGHT, FLOAT = Rule(), Rule(8, 8), Rule(FP_WIDTH, FP_WIDTH)


@dataclass(frozen=True, slots=True)
class Policy:
    """A table from role to bits.

    A layer follows the first rule that fits it, in the order ``first``, ``kinds``, ``roles``;
    without one it gets the requested bits. Floors then raise the result.

    Attributes:
        name: the name on the row.
        floors: least widths by role; a request below them is raised to them. Roles that are not
            named get the requested bits.
        roles: rules by role.
        first: rules for the layer of a role that executes first, for papers whose exception is
            positional.
        kinds: rules by kind of layer, such as ``conv1d``.
        attention: rule for the attention products; full precision by default.
        source: the publication that the table was read from.
        bounded: whether layers without a floor have widths that the method chooses; the table then
            is what they may cost at most.
    """

    name: str
    floors: Mapping[Role, Bits] = field(default_factory=dict)
    roles: Mapping[Role, Rule] = field(default_factory=dict)
    first: Mapping[Role, Rule] = field(default_factory=dict)
    kinds: Mapping[str, Rule] = field(default_factory=dict)
    attention: AttentionRule = AttentionRule()
    source: str = ""
    bounded: bool = False

    def assign(self, graph: Graph, bits: Bits) -> dict[str, Bits]:
        """Bits of every layer by module path; a request for ``fp`` leaves all in floating point."""
        if bits.is_fp:
            return dict.fromkeys(graph.layers, bits)
        assigned: dict[str, Bits] = {}
        earlier: set[Role] = set()
        for name, layer in graph.layers.items():
            rule = self._rule(layer, layer.role not in earlier)
            earlier.add(layer.role)
            assigned[name] = self._raised(layer.role, rule.of(bits))
        return assigned

    def assign_attention(self, graph: Graph, bits: Bits) -> dict[str, AttentionBits]:
        """Widths of the attention products that are not left in floating point, by module path."""
        widths = self.attention.of(bits)
        return {} if widths.is_fp else dict.fromkeys(graph.attention, widths)

    def _rule(self, layer: LayerInfo, is_first: bool) -> Rule:
        if is_first and layer.role in self.first:
            return self.first[layer.role]
        return self.kinds.get(layer.kind) or self.roles.get(layer.role, AS_REQUESTED)

    def _raised(self, role: Role, bits: Bits) -> Bits:
        floor = self.floors.get(role)
        if floor is None:
            return bits
        return Bits(max(bits.weight, floor.weight), max(bits.act, floor.act))


_FLOOR = Bits(8, 8)

UNIFORM = Policy(
    "uniform",
    {Role.INPUT: _FLOOR, Role.OUTPUT: _FLOOR, Role.TIME_EMBED: _FLOOR},
)
"""Every layer at the requested bits; input, output and time embedding at 8 or more.

Those three hold few of the MACs (the row's coverage says how many: 0.4 % in emoji-t2i, 1.6 % in
emoji-dit). Every paper protects some of them, but not the same ones. Here all methods protect the
same ones, so that only the method differs. Attention products stay in floating point.
"""

BUDGET = Policy("budget", UNIFORM.floors, bounded=True)
"""The layers that ``uniform`` protects have its widths, the method chooses those of all others.

Their mean weight bits and their bit operations are at most what they are under ``uniform``.
"""

PUBLISHED = "published"
"""Name of the policy whose table comes from the method."""

POLICIES: dict[str, Policy] = {policy.name: policy for policy in (UNIFORM, BUDGET)}


def policy(name: str, method: str = "", published: Policy | None = None) -> Policy:
    """The policy of that name.

    Args:
        name: ``uniform``, ``budget`` or ``published``.
        method: name of the method that ``published`` belongs to, for the message.
        published: table of that method; None where it has none.

    Raises:
        UnknownName: there is none; the message suggests near names.
        Unsupported: the method has no published policy.
    """
    if name == PUBLISHED:
        if published is None:
            raise Unsupported(f"{method or 'this method'} has no published policy: use uniform")
        return published
    if name not in POLICIES:
        known = [*POLICIES, PUBLISHED]
        raise UnknownName(f"unknown policy {name!r}: {did_you_mean(name, known)}")
    return POLICIES[name]
