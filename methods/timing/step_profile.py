"""Where the time of a recorded step goes, by kind of operation.

The clock is the wall's: on some machines the processor's clock moves in steps of milliseconds, in
which thousands of operations fit. The median over calls leaves out what other programs took.
"""

import ctypes
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from quantarena.methods.core.kernels.native import LayerStruct
from quantarena.methods.core.kernels.observer import Kind
from quantarena.methods.core.kernels.step_abi import StepLibrary
from quantarena.methods.core.packed.step.plan import Plan
from quantarena.methods.core.packed.step.recorded import RecordedStep
from quantarena.methods.core.packed.step.steps import NativeStep

OUTSIDE = "outside the native loop"
"""Python, operations of torch, memory of the outputs."""


@dataclass(frozen=True, slots=True)
class Spent:
    """The time of all operations of one kind.

    Attributes:
        label: the kind.
        operations: how many a step has; 0 for what is outside the loop.
        seconds: wall time of a step, median of all calls.
    """

    label: str
    operations: int
    seconds: float


def label_of(step: NativeStep, library: StepLibrary) -> str:
    """The kind of an operation, as people read it."""
    if step.program is not None:
        return "+".join(code.op.name.lower() for code in step.program.codes) or "copy"
    if step.kind is Kind.LAYER and isinstance(step.params, LayerStruct):
        return "convolution" if step.params.kernel_h * step.params.kernel_w > 1 else "linear"
    if step.kind is Kind.KERNEL:
        names = ("layer_norm", "gather", "products")
        return next(name for name in names if getattr(library, name) == step.function)
    return step.kind.name.lower()


class _Timed:
    """A step library whose loop reads the clock after each operation of a plan."""

    def __init__(self, plan: Plan, library: StepLibrary) -> None:
        self._plan, self._library = plan, library
        self.spent = (ctypes.c_int64 * max(1, plan.native_operations))()

    def run(self, at: int, count: int, slots: Any, step: int, threads: int) -> int:
        """Runs operations of the plan."""
        first = (at - self._plan._ops_at) // self._plan._op_size
        to = ctypes.addressof(self.spent) + first * ctypes.sizeof(ctypes.c_int64)
        return int(self._library.timed(at, count, slots, step, threads, to))


@torch.no_grad()
def profile(step: RecordedStep, plan: Plan, call: Callable[[], Any], rounds: int) -> list[Spent]:
    """What a recorded step spends on each kind of operation, the most first.

    Args:
        step: what is called.
        plan: its recording of that call.
        call: calls it.
        rounds: calls to look at.

    Raises:
        ValueError: the call was not replayed.
    """
    library, native = plan._library, [s for s in plan.steps if isinstance(s, NativeStep)]
    labels = [label_of(each, library) for each in native]
    found: dict[str, list[float]] = defaultdict(list)
    replayed = step.told.replayed
    try:
        for _ in range(rounds):
            timed = _Timed(plan, library)
            plan._library = timed  # type: ignore[assignment]
            started = time.perf_counter_ns()
            call()
            whole = time.perf_counter_ns() - started
            spent: dict[str, int] = defaultdict(int)
            for label, nanoseconds in zip(labels, timed.spent, strict=False):
                spent[label] += nanoseconds
            spent[OUTSIDE] = whole - sum(spent.values())
            for label, nanoseconds in spent.items():
                found[label].append(1e-9 * nanoseconds)
    finally:
        plan._library = library
    if step.told.replayed != replayed + rounds:
        raise ValueError(f"the step was not replayed: {step.told.reason}")
    result = [Spent(k, labels.count(k), statistics.median(v)) for k, v in found.items()]
    return sorted(result, key=lambda spent: -spent.seconds)
