"""Chooses the fastest of several networks from rounds in which they took turns.

Rounds are compared as pairs. A machine changes its speed between rounds, and medians of each
network by itself may then come from rounds of different speed.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from quantarena.bench.devices.turns import Turns, take_turns
from quantarena.methods.core.record.trajectory import CalibrationSet

FEW = 5
"""Rounds of all networks; those that are clearly slower drop out."""
DECIDING = 20
"""Rounds of the others; a row's own speed-up has as many at least."""
_LEAST = 1e-9
"""Seconds of a call that did nothing but wait, by the clocks."""

Seconds = Mapping[str, Sequence[float]]
"""Name of a network to the seconds of its calls, round by round."""
Interval = tuple[float, float, float]
"""A median, and both ends of its 95 % interval."""


def ratio_interval(fp: Sequence[float], test: Sequence[float], seed: int = 0) -> Interval:
    """Median of paired ratios ``fp / test`` and its 95 % bootstrap interval."""
    ratios = np.asarray(fp) / np.asarray(test)
    generator = np.random.default_rng(seed)
    draws = generator.integers(0, len(ratios), (2000, len(ratios)))
    medians = np.median(ratios[draws], axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


def fastest_of(seconds: Seconds) -> str:
    """The network of the least median share of its rounds; the first of equals.

    The share is that of the geometric mean of all networks in a round. Of two networks it is the
    one whose median paired ratio to the other is below 1.
    """
    names = list(seconds)
    logs = np.log(np.asarray([seconds[name] for name in names]))
    shares = np.median(logs - logs.mean(0), axis=1)
    return names[int(np.argmin(shares))]


@dataclass(frozen=True, slots=True)
class Choice:
    """The fastest of several networks, and how it was found.

    Attributes:
        name: of the fastest.
        stages: seconds of each network by round: all of them, then those that were left, if more
            than one was.
    """

    name: str
    stages: tuple[Seconds, ...]

    def last(self, names: Collection[str]) -> Seconds:
        """The last rounds in which all of these networks took their turns."""
        found = next(stage for stage in reversed(self.stages) if set(names) <= stage.keys())
        return {name: found[name] for name in names}

    def among(self, names: Sequence[str]) -> str:
        """The fastest of some of the networks."""
        return fastest_of(self.last(names))

    def ratio(self, name: str) -> Interval:
        """How many times as fast as another network the chosen one is, with its interval."""
        both = self.last((name, self.name))
        return ratio_interval(both[name], both[self.name])


def choose(networks: Mapping[str, nn.Module], points: CalibrationSet) -> Choice:
    """Let networks take turns, and choose the fastest by paired rounds.

    After ``FEW`` rounds, those drop out that are slower than the fastest with the whole interval of
    their paired ratio. The others take turns again, for ``DECIDING`` fresh rounds, and these alone
    decide between them.

    Args:
        networks: by name.
        points: one batch of recorded inputs.
    """
    first = _own_seconds(take_turns(networks, points, FEW))
    leader = fastest_of(first)
    close = [
        name
        for name in networks
        if name == leader or ratio_interval(first[name], first[leader])[1] <= 1
    ]
    if len(close) == 1:
        return Choice(leader, (first,))
    left = {name: networks[name] for name in close}
    second = _own_seconds(take_turns(left, points, DECIDING))
    return Choice(fastest_of(second), (first, second))


def _own_seconds(turns: Turns) -> Seconds:
    """Seconds of each call, less what it waited for other processes.

    That suits a choice between networks, whichever of them was held up. Times to publish come from
    ``take_turns``, which takes nothing off.
    """
    return {
        name: [max(call.seconds - call.waited, _LEAST) for call in calls]
        for name, calls in turns.calls.items()
    }
