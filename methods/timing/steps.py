"""Times recorded steps: whole calls that take turns, and what of them is not the native loop."""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch

from quantarena.methods.core.packed.step.plan import Plan
from quantarena.methods.core.packed.step.recorded import RecordedStep
from quantarena.methods.timing.clock import thread_clock

WARMUP = 3


@torch.no_grad()
def in_turns(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of calls that take turns, one of each in a round, by the thread's clock.

    In every second round they come in reverse order. Where the clock is the processor's, it does
    not count what other processes do, but for the caches that they fill.

    Args:
        calls: by name.
        rounds: rounds to keep, after a few that are not.
    """
    clock = thread_clock()
    spent: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(WARMUP + rounds):
        for name in names if number % 2 else names[::-1]:
            started = clock()
            calls[name]()
            if number >= WARMUP:
                spent[name].append(clock() - started)
    return spent


def ratio(base: list[float], other: list[float]) -> float:
    """Median over rounds of one call's time over another's."""
    return statistics.median(a / b for a, b in zip(base, other, strict=True))


class _Watched:
    """A step library that adds up the time of its loop."""

    def __init__(self, run: Callable[..., int]) -> None:
        self._run, self._clock, self.spent = run, thread_clock(), 0.0

    def run(self, *arguments: Any) -> int:
        """Runs the loop."""
        started = self._clock()
        error = self._run(*arguments)
        self.spent += self._clock() - started
        return error


@torch.no_grad()
def share_outside(step: RecordedStep, plan: Plan, call: Callable[[], Any], rounds: int) -> float:
    """The median share of a recorded step's time that is not in the native loop.

    It holds Python, operations of torch, and the two readings of the clock.

    Args:
        step: what is called.
        plan: its recording of that call.
        call: calls it.
        rounds: calls to look at.
    """
    clock, library = thread_clock(), plan._library
    watched = _Watched(library.run)
    plan._library = watched  # type: ignore[assignment]
    shares = []
    try:
        replayed = step.told.replayed
        for _ in range(rounds):
            watched.spent, started = 0.0, clock()
            call()
            shares.append(1 - watched.spent / (clock() - started))
        if step.told.replayed != replayed + rounds:
            raise ValueError(f"the step was not replayed: {step.told.reason}")
    finally:
        plan._library = library
    return statistics.median(shares)
