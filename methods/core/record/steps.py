"""Step policies: how many calibration points each sampler call gives, and which images they are of.

Every policy turns a trajectory into counts, one a call, whose sum is what was asked; the points are
then dealt by ``deal``, so that all policies treat images alike.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.record.trajectory import Trajectory


class CallPolicy(Protocol):
    """Chooses calibration points from a trajectory; the same seed gives the same points."""

    def counts(self, trajectory: Trajectory, seed: int) -> Tensor:
        """Points of each call, (S,) integers that sum to the number of points."""
        ...

    def draw(self, trajectory: Trajectory, seed: int) -> CalibrationSet:
        """The points."""
        ...


def deal(
    trajectory: Trajectory, counts: Tensor, generator: torch.Generator, *, repeat: bool = False
) -> tuple[Tensor, Tensor]:
    """Points in the order of calls, ``counts[k]`` of them from call k.

    Rows come from one shuffled deck that runs through all calls: no row is used again before every
    other was, and a call has no row twice unless it wants more points than there are rows.

    Args:
        trajectory: what was recorded.
        counts: points of each call, (S,), integers.
        generator: shuffles the rows.
        repeat: allow a call to hold one point several times where rows run out.

    Returns:
        Call and row of each point, (N,) each, for ``Trajectory.pick``.

    Raises:
        ValueError: counts do not fit the trajectory, or rows run out and ``repeat`` is off.
    """
    if counts.shape != (trajectory.calls,) or bool((counts < 0).any()):
        raise ValueError(f"counts must be {trajectory.calls} numbers of at least 0, one a call")
    most = int(counts.max())
    if most > trajectory.rows and not repeat:
        raise ValueError(
            f"{most} points at one step asked, {trajectory.rows} recorded: "
            "record more images, ask for fewer points, or set repeat"
        )
    order = torch.randperm(trajectory.rows, generator=generator)
    calls = torch.repeat_interleave(torch.arange(trajectory.calls), counts)
    return calls, order[torch.arange(len(calls)) % trajectory.rows]


class CountedCalls(ABC):
    """A policy that says how many points each call gives; the rest is common to all."""

    __slots__ = ()

    @abstractmethod
    def count(self, trajectory: Trajectory, generator: torch.Generator) -> Tensor:
        """Points of each call, (S,) integers; what is random comes from the generator."""

    @property
    def may_repeat(self) -> bool:
        """Whether a call may hold one point several times where images run out."""
        return bool(getattr(self, "repeat", False))

    def counts(self, trajectory: Trajectory, seed: int) -> Tensor:
        """Points of each call, (S,) integers that sum to the number of points."""
        return self.count(trajectory, torch.Generator().manual_seed(seed))

    def places(self, trajectory: Trajectory, seed: int) -> tuple[Tensor, Tensor]:
        """Call and row of each point, (N,) each, call after call.

        Raises:
            ValueError: settings that do not fit, or more points than were recorded.
        """
        generator = torch.Generator().manual_seed(seed)
        counts = self.count(trajectory, generator)
        return deal(trajectory, counts, generator, repeat=self.may_repeat)

    def draw(self, trajectory: Trajectory, seed: int) -> CalibrationSet:
        """The points, call after call.

        Raises:
            ValueError: as ``places``.
        """
        return trajectory.pick(*self.places(trajectory, seed))


def require_points(samples: int) -> None:
    """Refuse an empty set.

    Raises:
        ValueError: fewer than one point.
    """
    if samples < 1:
        raise ValueError(f"{samples} calibration points asked: at least 1 is needed")


@dataclass(frozen=True, slots=True)
class AllCalls(CountedCalls):
    """Every recorded point; the seed orders the images."""

    def count(self, trajectory: Trajectory, generator: torch.Generator) -> Tensor:
        """All rows of each call, (S,)."""
        return torch.full((trajectory.calls,), trajectory.rows)


@dataclass(frozen=True, slots=True)
class PerCall(CountedCalls):
    """Equally many points at every call, for ranges that are found step by step.

    Attributes:
        samples: points at each call.
    """

    samples: int

    def count(self, trajectory: Trajectory, generator: torch.Generator) -> Tensor:
        """``samples`` of each call, (S,)."""
        require_points(self.samples)
        return torch.full((trajectory.calls,), self.samples)


def points_per_call(trajectory: Trajectory, samples: int) -> int:
    """Points that each sampler call gets when ``samples`` are shared evenly.

    Raises:
        Unsupported: there are more calls than points.
    """
    if samples < trajectory.calls:
        raise Unsupported(
            f"ranges by sampler call need a point at each of {trajectory.calls} calls, the preset "
            f"allows {samples}: take fewer steps or a larger preset"
        )
    return min(samples // trajectory.calls, trajectory.rows)


@dataclass(frozen=True, slots=True)
class UniformStride(CountedCalls):
    """Equally many points at equally spaced sampler calls (Q-Diffusion, section 4.2).

    Attributes:
        samples: points in all; exactly that many come out.
        steps: distinct calls to visit, first and last among them; 0 visits as many as ``samples``
            and the sampler allow.
    """

    samples: int
    steps: int = 0

    def count(self, trajectory: Trajectory, generator: torch.Generator) -> Tensor:
        """Points of each call, (S,): even up to one, the earlier calls have it."""
        require_points(self.samples)
        visited = min(self.steps or trajectory.calls, trajectory.calls, self.samples)
        counts = torch.zeros(trajectory.calls, dtype=torch.long)
        each = torch.full((visited,), self.samples // visited)
        each[: self.samples % visited] += 1
        counts[torch.linspace(0, trajectory.calls - 1, visited).round().long()] = each
        return counts


@dataclass(frozen=True, slots=True)
class CensoredNormalCalls(CountedCalls):
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

    def count(self, trajectory: Trajectory, generator: torch.Generator) -> Tensor:
        """How often each call was drawn, (S,)."""
        calls = trajectory.calls
        time = self._draws(calls, generator).floor().clamp(0, calls - 1).long()
        return torch.bincount(calls - 1 - time, minlength=calls)


@dataclass(frozen=True, slots=True)
class WholeWalks(CountedCalls):
    """The same rows at every call, so that the points of a row are one walk of the sampler.

    An image's guidance halves are taken together while there is room.

    Attributes:
        rows: points at each call.
    """

    rows: int

    def count(self, trajectory: Trajectory, generator: torch.Generator) -> Tensor:
        """``rows`` of each call, (S,)."""
        require_points(self.rows)
        return torch.full((trajectory.calls,), self.rows)

    def places(self, trajectory: Trajectory, seed: int) -> tuple[Tensor, Tensor]:
        """Call and row of each point, (N,) each, call after call.

        Raises:
            ValueError: more rows than were recorded.
        """
        generator = torch.Generator().manual_seed(seed)
        deal(trajectory, self.count(trajectory, generator), generator)  # refuses too many
        image = torch.randperm(trajectory.images, generator=generator)
        halves = torch.arange(trajectory.halves) * trajectory.images
        row = (image[:, None] + halves).flatten()[: self.rows]
        calls = torch.arange(trajectory.calls)
        return calls.repeat_interleave(self.rows), row.repeat(trajectory.calls)


@dataclass(frozen=True, slots=True)
class Paired:
    """Images drawn by another policy, each with all its guidance halves side by side.

    Attributes:
        policy: draws images: as many points come out as it draws, times the halves.
    """

    policy: CountedCalls

    def counts(self, trajectory: Trajectory, seed: int) -> Tensor:
        """Points of each call, (S,) integers that sum to the number of points."""
        return self.policy.counts(trajectory.first_half(), seed) * trajectory.halves

    def draw(self, trajectory: Trajectory, seed: int) -> CalibrationSet:
        """The points, call after call; with two halves points 2i and 2i + 1 are one image's.

        Raises:
            ValueError: as ``CountedCalls.places``.
        """
        call, image = self.policy.places(trajectory.first_half(), seed)
        halves = torch.arange(trajectory.halves) * trajectory.images
        row = image[:, None] + halves
        return trajectory.pick(call.repeat_interleave(trajectory.halves), row.flatten())
