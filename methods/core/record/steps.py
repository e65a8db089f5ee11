"""Draw policies: how many calibration points come from each sampler call, and of which images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.record.call_counts import CountedCalls, deal, require_points
from quantarena.methods.core.record.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class AllCalls(CountedCalls):
    """Every recorded point; the seed decides the order of the images."""

    def count(self, trajectory: Trajectory, generator: torch.Generator) -> Tensor:
        """The number of recorded rows, for each call, (S,)."""
        return torch.full((trajectory.calls,), trajectory.rows)


@dataclass(frozen=True, slots=True)
class PerCall(CountedCalls):
    """Equally many points at every call, for ranges by sampler call.

    Attributes:
        samples: number of points at each call.
    """

    samples: int

    def count(self, trajectory: Trajectory, generator: torch.Generator) -> Tensor:
        """``samples`` for each call, (S,)."""
        require_points(self.samples)
        return torch.full((trajectory.calls,), self.samples)


def points_per_call(trajectory: Trajectory, samples: int) -> int:
    """Number of points of each sampler call when ``samples`` points are shared evenly.

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
        samples: number of points drawn.
        calls: number of distinct calls, the first and the last among them; 0 takes as many as
            ``samples`` and the sampler allow.
    """

    samples: int
    calls: int = 0

    def count(self, trajectory: Trajectory, generator: torch.Generator) -> Tensor:
        """Points of each call, (S,): even up to one, the earlier calls have it."""
        require_points(self.samples)
        visited = min(self.calls or trajectory.calls, trajectory.calls, self.samples)
        counts = torch.zeros(trajectory.calls, dtype=torch.long)
        each = torch.full((visited,), self.samples // visited)
        each[: self.samples % visited] += 1
        counts[torch.linspace(0, trajectory.calls - 1, visited).round().long()] = each
        return counts


@dataclass(frozen=True, slots=True)
class WholeWalks(CountedCalls):
    """The same rows at every call, so that the points of one row are one walk of the sampler.

    The guidance halves of an image are drawn together as long as ``rows`` allows.

    Attributes:
        rows: number of points at each call.
    """

    rows: int

    def count(self, trajectory: Trajectory, generator: torch.Generator) -> Tensor:
        """``rows`` for each call, (S,)."""
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
