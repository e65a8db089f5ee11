"""What all draw policies share: from numbers of points per sampler call to calibration points.

A policy turns a trajectory into counts, one for each call. The points are then dealt by ``deal``,
so that all policies treat images alike. The policies themselves are in ``steps``, those of single
papers in ``techniques/points``.
"""

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor

from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.record.trajectory import Trajectory


class CallPolicy(Protocol):
    """Draws calibration points from a trajectory; the same seed gives the same points."""

    def counts(self, trajectory: Trajectory, seed: int) -> Tensor:
        """Number of points of each call, (S,) integers."""
        ...

    def draw(self, trajectory: Trajectory, seed: int) -> CalibrationSet:
        """Draw the points."""
        ...


def deal(
    trajectory: Trajectory, counts: Tensor, generator: torch.Generator, *, repeat: bool = False
) -> tuple[Tensor, Tensor]:
    """Choose ``counts[k]`` points of each call k, in the order of calls.

    Rows come from one shuffled deck that runs through all calls: no row is used again before every
    other one was, and a call has no row twice unless it wants more points than there are rows.

    Args:
        trajectory: the recorded calls.
        counts: number of points of each call, (S,), integers.
        generator: shuffles the rows.
        repeat: allow a call to have one point several times when there are too few rows.

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
    """A draw policy that is defined by the number of points of each sampler call."""

    __slots__ = ()

    @abstractmethod
    def count(self, trajectory: Trajectory, generator: torch.Generator) -> Tensor:
        """Number of points of each call, (S,) integers; all randomness comes from the generator."""

    @property
    def may_repeat(self) -> bool:
        """Whether a call may have one point several times when there are too few images."""
        return bool(getattr(self, "repeat", False))

    def counts(self, trajectory: Trajectory, seed: int) -> Tensor:
        """Number of points of each call, (S,) integers."""
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
        """Draw the points, call after call.

        Raises:
            ValueError: as ``places``.
        """
        return trajectory.pick(*self.places(trajectory, seed))


def require_points(samples: int) -> None:
    """Refuse an empty calibration set.

    Raises:
        ValueError: fewer than one point.
    """
    if samples < 1:
        raise ValueError(f"{samples} calibration points asked: at least 1 is needed")
