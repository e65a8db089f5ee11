"""The gate of recorded steps: a recording against the network that it stands for.

A replay runs operation by operation. What a kernel computes with other last bits than torch is
compared with torch on the same operands, and then replaced by torch's values. So no code falls the
other way later, and the result must be the network's bit for bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_map

from quantarena.methods.core.errors import QuantArenaError
from quantarena.methods.core.kernels.step_abi import PointOp
from quantarena.methods.core.packed.step.plan import Frame, Held, Plan
from quantarena.methods.core.packed.step.pointwise import Pointwise
from quantarena.methods.core.packed.step.steps import NativeStep
from quantarena.methods.core.packed.step.trace import View

NAN = 0xFF
"""Bytes of an arena before a check: floats of these are NaN."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """A recorded step against its network.

    Attributes:
        max_rel: largest difference of a kernel from torch, relative to the largest value.
        worst: the operation that it is at.
        compared: operations that were compared.
        equal: whether the result has the network's bits once these operations have torch's.
    """

    max_rel: float
    worst: str
    compared: int
    equal: bool

    def require(self, limit: float) -> None:
        """Refuses a recording that computes something else.

        Raises:
            QuantArenaError: it does.
        """
        if not self.max_rel <= limit:
            raise QuantArenaError(
                f"the recorded step differs from torch by {self.max_rel:.2e} at {self.worst}; the "
                f"limit is {limit:.0e}"
            )
        if not self.equal:
            raise QuantArenaError("the recorded step does not compute what the network computes")


@torch.no_grad()
def verify(plan: Plan, inputs: Sequence[Tensor], call: int, expected: Any) -> Agreement:
    """Replays operation by operation, in memory full of NaN.

    Args:
        plan: the recording.
        inputs: tensors as for ``Plan.__call__``.
        call: the sampler call.
        expected: what the network returned on these inputs.
    """
    frame = plan.frame()
    frame.arena.fill_(NAN)
    held = plan.begin(frame, inputs)
    worst, where, compared, native = 0.0, "", 0, 0
    for step in plan.steps:
        if not isinstance(step, NativeStep):
            plan.run_torch(step, frame, held)
            continue
        wanted = None if step.exact else _by_torch(plan, step, frame, held)
        plan.run_native(native, frame, call)
        native += 1
        if wanted is None:
            continue
        view = step.operands[step.written[0]]
        assert view is not None
        got = plan.tensor(view, frame, held)
        gap = float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
        gap = gap if gap == gap else torch.inf  # no number is above NaN
        compared += 1
        if gap > worst:
            worst, where = gap, step.sources[-1].name
        got.copy_(wanted)
    pairs = zip(tree_flatten(plan.result(frame, held))[0], tree_flatten(expected)[0], strict=True)
    equal = all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)
    return Agreement(worst, where, compared, equal)


def _by_torch(plan: Plan, step: NativeStep, frame: Frame, held: Held) -> Tensor:
    """What torch computes in an operation's place, from its operands as they are now."""

    def value(leaf: Any) -> Any:
        return plan.tensor(leaf, frame, held) if isinstance(leaf, View) else leaf

    if step.program is not None:
        return _interpreted(step.program, [value(view) for view in step.program.inputs])
    operation = step.sources[0]
    args, kwargs = (tree_map(value, part) for part in (operation.args, operation.kwargs))
    result = operation.function(*args, **kwargs)
    first = result[0] if isinstance(result, tuple) else result
    assert isinstance(first, Tensor)
    return first.clone()


_FUNCTIONS: dict[PointOp, Callable[[Tensor, Tensor, float], Tensor]] = {
    PointOp.ADD: lambda a, b, _: a + b,
    PointOp.SUB: lambda a, b, _: a - b,
    PointOp.MUL: lambda a, b, _: a * b,
    PointOp.DIV: lambda a, b, _: a / b,
    PointOp.ADD_NUMBER: lambda a, _, k: a + k,
    PointOp.MUL_NUMBER: lambda a, _, k: a * k,
    PointOp.DIV_NUMBER: lambda a, _, k: a / k,
    PointOp.NUMBER_SUB: lambda a, _, k: k - a,
    PointOp.NUMBER_DIV: lambda a, _, k: k / a,
    PointOp.NEGATE: lambda a, _b, _k: -a,
    PointOp.EXP: lambda a, _b, _k: a.exp(),
    PointOp.SIN: lambda a, _b, _k: a.sin(),
    PointOp.COS: lambda a, _b, _k: a.cos(),
    PointOp.SILU: lambda a, _b, _k: F.silu(a),
    PointOp.GELU: lambda a, _b, _k: F.gelu(a),
    PointOp.GELU_TANH: lambda a, _b, _k: F.gelu(a, approximate="tanh"),
}


def _interpreted(program: Pointwise, inputs: Sequence[Tensor]) -> Tensor:
    """A program's result by torch, one operation at a time."""
    values = [x.float() for x in inputs]
    results: list[Tensor] = []
    for code in program.codes:
        a, b = (values[at] if at >= 0 else results[-1 - at] for at in (code.a, code.b))
        results.append(_FUNCTIONS[code.op](a, b, code.value))
    return results[-1] if results else values[-1].clone()
