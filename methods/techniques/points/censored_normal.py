"""Calibration points from a clamped normal over sampler calls (PTQ4DM's NDTC)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from quantarena.methods.core.record.call_counts import CountedCalls, require_points
from quantarena.methods.core.record.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class CensoredNormalCalls(CountedCalls):
    """Calls drawn from a clamped normal (PTQ4DM, Shang et al., CVPR 2023, Eq. 15).

    With T calls, ``t = floor(T * Normal(mean_fraction, std_fraction))`` is clamped to [0, T - 1]:
    a censored normal, whose tails pile up at both ends. The default of 0.4 is the released
    script's; the paper's text leaves the deviation ambiguous.

    The direction of time is easily mistaken: t = 0 is next to the clean image, but samplers start
    in noise, so t is call ``T - 1 - t``. The released code counts both from zero and stores the
    sample after the step, which labels the noisiest samples as the cleanest. Here a point is what
    the network was fed, with the timestep it was fed.

    Attributes:
        samples: number of points drawn.
        mean_fraction: mean of t over T.
        std_fraction: standard deviation of t over T.
        repeat: allow a call to have one point several times when there are too few images.
    """

    samples: int
    mean_fraction: float = 0.4
    std_fraction: float = 0.4
    repeat: bool = False

    def draws(self, calls: int, generator: torch.Generator) -> Tensor:
        """Values of t before floor and clamp, (samples,) float64.

        Raises:
            ValueError: no points, or fractions that are not finite or negative.
        """
        require_points(self.samples)
        if not (math.isfinite(self.mean_fraction) and 0 <= self.std_fraction < math.inf):
            raise ValueError("mean_fraction must be finite, std_fraction finite and at least 0")
        normal = torch.randn(self.samples, generator=generator, dtype=torch.float64)
        return calls * (self.mean_fraction + self.std_fraction * normal)

    def count(self, trajectory: Trajectory, generator: torch.Generator) -> Tensor:
        """How often each call was drawn, (S,)."""
        calls = trajectory.calls
        time = self.draws(calls, generator).floor().clamp(0, calls - 1).long()
        return torch.bincount(calls - 1 - time, minlength=calls)
