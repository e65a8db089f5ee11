"""Widths by layer under a budget: one candidate for each layer, the smallest sum of losses.

This is the multiple-choice knapsack that mixed-precision papers solve (HAWQ-V3, Yao et al., ICML
2021; MixDQ, Zhao et al., ECCV 2024), here with two bounds: the bits of all weight codes, and bit
operations. It assumes that losses of layers add up, which holds for the squared error of an output
as long as the errors of layers are small and unrelated.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.model.width_budget import Spending, WidthBudget

Losses = Mapping[str, Mapping[Bits, float]]
"""By layer, the loss of each candidate."""
_NODES = 20_000
"""Largest number of branches of a search, so that it ends at the same place on every machine."""
_GAP = 1e-3
"""Relative distance to the optimum at which a search ends."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """Widths by layer, and what they cost.

    Attributes:
        widths: the chosen candidate of each layer.
        loss: sum of the losses of these.
        equal: the same sum where every layer has the requested widths; None where these are no
            candidate of some layer.
        spent: what the widths cost.
        most: what they may cost.
    """

    widths: Mapping[str, Bits]
    loss: float
    equal: float | None
    spent: Spending
    most: Spending

    def note(self) -> dict[str, Any]:
        """What was chosen, as plain data for a row."""
        counts = Counter(str(bits) for bits in self.widths.values())
        found: dict[str, Any] = {
            "layers": dict(sorted(counts.items())),
            "mean_bits": round(self.spent.mean_bits, 4),
            "bops_share": round(self.spent.bops / max(1.0, self.most.bops), 4),
        }
        if self.equal:
            found["loss_to_equal"] = round(self.loss / self.equal, 4)
        return found


def allocate(losses: Losses, budget: WidthBudget) -> Allocation:
    """Choose a candidate for each layer so that the sum of losses is smallest within the budget.

    Args:
        losses: by free layer, the loss of each candidate, finite and not negative. Layers that are
            missing are left alone, with what the requested widths cost in them.
        budget: what the widths may cost.

    Returns:
        The best widths, to a thousandth of their loss, which is less than losses are known to.

    Raises:
        ValueError: a loss that is negative or not finite, or a layer without candidates.
        Unsupported: no choice of candidates is within the budget.
    """
    for name, row in losses.items():
        if not row or not all(np.isfinite(loss) and loss >= 0 for loss in row.values()):
            raise ValueError(f"{name}: losses have to be finite and not negative, one at least")
    budget = budget.only(losses)
    pairs = [(name, bits) for name in losses for bits in losses[name]]
    widths = _solve(losses, budget, pairs) if pairs else {}
    equal = [row.get(budget.bits) for row in losses.values()]
    return Allocation(
        widths,
        sum(losses[name][bits] for name, bits in widths.items()),
        None if None in equal else sum(loss for loss in equal if loss is not None),
        budget.spending(widths),
        budget.most,
    )


def _solve(losses: Losses, budget: WidthBudget, pairs: list[tuple[str, Bits]]) -> dict[str, Bits]:
    most = budget.most
    costs = [budget.only([name]).spending({name: bits}) for name, bits in pairs]
    spends = np.array([[c.weight_bits, c.bops] for c in costs])
    limits = np.array([max(1.0, most.weight_bits), max(1.0, most.bops)])
    names = list(losses)
    owner = np.array([names.index(name) for name, _ in pairs])
    one_each = (owner[None] == np.arange(len(names))[:, None]).astype(float)
    objective = np.array([losses[name][bits] for name, bits in pairs])
    least = sum(min(row.values()) for row in losses.values())
    objective /= least or objective.max() or 1.0
    room = 1.0
    # a solver's bounds have a tolerance, ours have none: try again with a little less room
    for _ in range(4):
        found = milp(
            objective,
            integrality=np.ones(len(pairs)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint((spends / limits).T, -np.inf, room),
            ],
            options={"mip_rel_gap": _GAP, "node_limit": _NODES},
        )
        if found.x is None:
            break
        chosen = {name: bits for (name, bits), x in zip(pairs, found.x, strict=True) if x > 0.5}
        if budget.spending(chosen).within(most):
            return chosen
        room -= 1e-6
    lowest = min((bits for _, bits in pairs), key=lambda bits: (bits.weight, bits.act))
    raise Unsupported(
        f"no choice of widths from {lowest} up is within the budget of {budget.bits}: it needs "
        "candidates with fewer bits"
    )
