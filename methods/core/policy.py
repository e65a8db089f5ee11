"""Which layer gets which bits: the rule that makes methods comparable."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.errors import UnknownName, did_you_mean
from quantarena.methods.core.graph import Graph, Role


@dataclass(frozen=True, slots=True)
class Policy:
    """A table from role to bits.

    Attributes:
        name: as it stands on the row.
        floors: least widths by role; a request below them is raised to them. Roles that are not
            named get the requested bits.
    """

    name: str
    floors: Mapping[Role, Bits] = field(default_factory=dict)

    def assign(self, graph: Graph, bits: Bits) -> dict[str, Bits]:
        """Bits of every layer by module path; a request for ``fp`` leaves all in floating point."""
        if bits.is_fp:
            return dict.fromkeys(graph.layers, bits)
        return {name: self._raised(layer.role, bits) for name, layer in graph.layers.items()}

    def _raised(self, role: Role, bits: Bits) -> Bits:
        floor = self.floors.get(role)
        if floor is None:
            return bits
        return Bits(max(bits.weight, floor.weight), max(bits.act, floor.act))


_EIGHT = Bits(8, 8)

UNIFORM = Policy(
    "uniform",
    {Role.INPUT: _EIGHT, Role.OUTPUT: _EIGHT, Role.TIME_EMBED: _EIGHT},
)
"""Every layer at the requested bits; input, output and time embedding at 8 or more.

Those three hold few of the MACs (the row's coverage says how many: 0.4 % in emoji-t2i, 1.6 % in
emoji-dit); every paper protects some of them, each others. Here all methods protect the same ones,
so that only the method differs.
"""

POLICIES: dict[str, Policy] = {UNIFORM.name: UNIFORM}


def policy(name: str) -> Policy:
    """The policy of that name.

    Raises:
        UnknownName: there is none; the message suggests near names.
    """
    if name not in POLICIES:
        raise UnknownName(f"unknown policy {name!r}: {did_you_mean(name, POLICIES)}")
    return POLICIES[name]
