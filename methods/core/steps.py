"""Step policies: how many calibration points each sampler call gives, and which images they are of.

Every policy turns a trajectory into counts, one a call, whose sum is what was asked; the points are
then dealt by ``deal``, so that all policies treat images alike.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from quantarena.methods.core.trajectory import CalibrationSet, Trajectory


def deal(
    trajectory: Trajectory, counts: Tensor, generator: torch.Generator, *, repeat: bool = False
) -> CalibrationSet:
    """Points in the order of calls, ``counts[k]`` of them from call k.

    Rows come from one shuffled deck that runs through all calls: no row is used again before every
    other was, and a call has no row twice unless it wants more points than there are rows.

    Args:
        trajectory: what was recorded.
        counts: points of each call, (S,), integers.
        generator: shuffles the rows.
        repeat: allow a call to hold one point several times where rows run out.

    Raises:
        ValueError: counts do not fit the trajectory, or rows run out and ``repeat`` is off.
    """
    if counts.shape != (trajectory.calls,) or bool((counts < 0).any()):
        raise ValueError(f"counts must be {trajectory.calls} numbers of at least 0, one a call")
    most = int(counts.max())
    if most > trajectory.rows and not repeat:
        raise ValueError(
            f"{most} points at one step asked, {trajectory.rows} images recorded: "
            "record more images, ask for fewer points, or set repeat"
        )
    order = torch.randperm(trajectory.rows, generator=generator)
    calls = torch.repeat_interleave(torch.arange(trajectory.calls), counts)
    return trajectory.pick(calls, order[torch.arange(len(calls)) % trajectory.rows])


def require_points(samples: int) -> None:
    """Refuse an empty set.

    Raises:
        ValueError: fewer than one point.
    """
    if samples < 1:
        raise ValueError(f"{samples} calibration points asked: at least 1 is needed")


@dataclass(frozen=True, slots=True)
class AllSteps:
    """Every recorded point."""

    def counts(self, trajectory: Trajectory, seed: int) -> Tensor:
        """Points of each call, (S,)."""
        return torch.full((trajectory.calls,), trajectory.rows)

    def draw(self, trajectory: Trajectory, seed: int) -> CalibrationSet:
        """All points, call after call; the seed orders the images."""
        generator = torch.Generator().manual_seed(seed)
        return deal(trajectory, self.counts(trajectory, seed), generator)


@dataclass(frozen=True, slots=True)
class PerStep:
    """Equally many points at every call, for ranges that are found step by step.

    Attributes:
        samples: points at each call.
    """

    samples: int

    def counts(self, trajectory: Trajectory, seed: int) -> Tensor:
        """Points of each call, (S,)."""
        require_points(self.samples)
        return torch.full((trajectory.calls,), self.samples)

    def draw(self, trajectory: Trajectory, seed: int) -> CalibrationSet:
        """The points, call after call."""
        generator = torch.Generator().manual_seed(seed)
        return deal(trajectory, self.counts(trajectory, seed), generator)


@dataclass(frozen=True, slots=True)
class CensoredNormalSteps:
    """Calls drawn from a clamped normal (PTQ4DM, Shang et al., CVPR 2023, Eq. 15).

    With T calls, ``t = floor(T * Normal(mean_fraction, std_fraction))`` is clamped to [0, T - 1]:
    a censored normal, whose tails pile up at both ends. The default of 0.4 is the released
    script's; the paper's text leaves the deviation ambiguous.

    The mirror trap: t = 0 is next to the clean image, but samplers start in noise, so t is call
    ``T - 1 - t``. The released code counts both from zero and stores the sample after the step,
    which labels the noisiest samples as the cleanest. Here a point is what the network was fed,
    with the timestep it was fed.

    Attributes:
        samples: points in all; exactly that many come out.
        mean_fraction: mean of t over T.
        std_fraction: standard deviation of t over T.
        repeat: allow a call to hold one point several times where images run out.
    """

    samples: int
    mean_fraction: float = 0.4
    std_fraction: float = 0.4
    repeat: bool = False

    def _draws(self, calls: int, generator: torch.Generator) -> Tensor:
        require_points(self.samples)
        if not (math.isfinite(self.mean_fraction) and 0 <= self.std_fraction < math.inf):
            raise ValueError("mean_fraction must be finite, std_fraction finite and at least 0")
        normal = torch.randn(self.samples, generator=generator, dtype=torch.float64)
        return calls * (self.mean_fraction + self.std_fraction * normal)

    def unclamped(self, calls: int, seed: int) -> Tensor:
        """The draws before floor and clamp, (samples,) float64."""
        return self._draws(calls, torch.Generator().manual_seed(seed))

    def _counts(self, calls: int, generator: torch.Generator) -> Tensor:
        time = self._draws(calls, generator).floor().clamp(0, calls - 1).long()
        return torch.bincount(calls - 1 - time, minlength=calls)

    def counts(self, trajectory: Trajectory, seed: int) -> Tensor:
        """Points of each call, (S,)."""
        return self._counts(trajectory.calls, torch.Generator().manual_seed(seed))

    def draw(self, trajectory: Trajectory, seed: int) -> CalibrationSet:
        """The points, call after call."""
        generator = torch.Generator().manual_seed(seed)
        counts = self._counts(trajectory.calls, generator)
        return deal(trajectory, counts, generator, repeat=self.repeat)
