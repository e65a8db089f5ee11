"""Time networks that take turns; what another process disturbed is timed again."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from quantarena.bench.devices.device import timed
from quantarena.methods.core.record.trajectory import CalibrationSet

WARMUP = 3
DISTURBED = 0.05
"""Share of a call during which a thread may wait for a core before the call is timed again."""
MOST_ROUNDS = 3
"""Rounds that are timed at most, as a multiple of those asked for."""
_TASKS = Path("/proc/self/task")
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Call:
    """One timed call.

    Attributes:
        seconds: wall time, or the GPU's own.
        waited: seconds that the thread that waited longest was ready to run but had no core.
    """

    seconds: float
    waited: float

    @property
    def disturbed(self) -> bool:
        """Whether another process held it up."""
        return self.waited > DISTURBED * self.seconds


@dataclass(frozen=True, slots=True)
class Turns:
    """Calls of several networks that took turns.

    Attributes:
        calls: those of each network, round by round.
        disturbed: rounds among them in which another process held up a call, because too few
            others were to be had.
    """

    calls: dict[str, list[Call]]
    disturbed: int

    def seconds(self, name: str) -> list[float]:
        """Seconds of each call of a network."""
        return [call.seconds for call in self.calls[name]]

    @property
    def warning(self) -> str:
        """A line about the disturbed rounds; empty where there are none."""
        rounds = len(next(iter(self.calls.values())))
        if not self.disturbed:
            return ""
        return (
            f"another process worked on these cores in {self.disturbed} of {rounds} timed rounds: "
            "time it again on a quiet machine"
        )


@torch.no_grad()
def take_turns(
    networks: Mapping[str, nn.Module],
    points: CalibrationSet,
    rounds: int,
    progress: Progress | None = None,
) -> Turns:
    """Time calls of networks, one of each in a round; in every second round in reverse order.

    A round in which another process held up a call is timed again. After ``MOST_ROUNDS`` times the
    rounds asked for, the least disturbed ones fill up what is missing.

    Args:
        networks: by name.
        points: one batch of recorded inputs.
        rounds: rounds to keep, after a few that are not timed.
        progress: called with (rounds done, rounds).
    """
    tried: list[dict[str, Call]] = []
    kept = 0
    names = list(networks)
    for index in range(WARMUP + MOST_ROUNDS * rounds):
        order = names if index % 2 == 0 else names[::-1]
        calls = {name: _call(networks[name], points) for name in order}
        if index >= WARMUP:
            tried.append(calls)
            kept += not _disturbance(calls)
        if progress is not None:
            progress(min(index + 1, WARMUP + kept), WARMUP + rounds)
        if kept == rounds:
            break
    if progress is not None:  # also where too few rounds were undisturbed
        progress(WARMUP + rounds, WARMUP + rounds)
    # sorting is stable: of undisturbed rounds the first ones stay, in their order
    chosen = sorted(tried, key=_disturbance)[:rounds]
    return Turns({name: [each[name] for each in chosen] for name in names}, rounds - kept)


def _disturbance(calls: Mapping[str, Call]) -> float:
    """The largest share of a call that it waited; 0 where none was disturbed."""
    return max((c.waited / c.seconds for c in calls.values() if c.disturbed), default=0.0)


def _call(network: nn.Module, points: CalibrationSet) -> Call:
    before = waits()
    seconds = timed(network, points)
    after = waits()
    if points.sample.is_cuda:  # these seconds are the GPU's
        return Call(seconds, 0.0)
    longest = max((after[t] - before[t] for t in after.keys() & before.keys()), default=0.0)
    return Call(seconds, min(max(0.0, longest), seconds))


def waits() -> dict[str, float]:
    """Seconds that each thread of this process has been ready to run without a core, by thread id.

    Linux counts them; elsewhere there are none.
    """
    found = {}
    for task in _TASKS.iterdir() if _TASKS.is_dir() else ():
        try:
            found[task.name] = int((task / "schedstat").read_text().split()[1]) / 1e9
        except (OSError, IndexError, ValueError):  # a thread that just ended, an older kernel
            continue
    return found
