"""The teacher's walk from new noise: distillation that needs no recorded sample (EfficientDM).

The teacher's prediction at each call is computed anyway, as the student's target; with the
sampler's step, fitted to a recording, it also takes the walk to its next sample. So every walk is a
new trajectory of the full-precision network, and none costs more than a recorded one.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.record.steps import WholeWalks
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.techniques.distill.sampler_fit import TOLERANCE
from quantarena.methods.techniques.distill.student_walk import fit_walks
from quantarena.methods.techniques.distill.walk import Walk

FITTED = 4
"""Recorded images that the sampler's step is fitted to: thousands of values, a few unknowns."""


def fresh_walk(teacher: nn.Module, recorded: Trajectory, batch: int) -> Walk:
    """Walks of the teacher over all sampler calls, each from ``batch`` new samples of noise.

    Conditions such as labels and prompts are those of recorded images, newly drawn for each walk.

    Args:
        teacher: full-precision network; runs once on a few recorded walks.
        recorded: the recording.
        batch: rows of each walk, all guidance halves counted; one image at least.

    Raises:
        Unsupported: the recording's halves differ in their samples, or the sampler's step cannot be
            fitted, as where it adds noise of its own or clips samples.
    """
    halves = recorded.halves
    few = WholeWalks(min(FITTED, recorded.images) * halves).draw(recorded, 0)
    walks = fit_walks(teacher, few)
    error = float(walks.step.error.max())
    if error > TOLERANCE:
        raise Unsupported(f"new walks need the sampler's step, its fit is off by {error:.2g}")
    images = max(1, batch // halves)
    of_images = torch.zeros(images, dtype=torch.long)
    rest = walks.step.rest[:, :1]  # what the fit leaves of recorded walks is no part of new ones
    fit = replace(walks.step, rest=torch.zeros_like(rest))
    spread = recorded.sample[0].float().square().mean().sqrt()  # of the sampler's initial noise
    past: list[Tensor] = []

    def start(generator: torch.Generator) -> CalibrationSet:
        past.clear()
        image = torch.randint(recorded.images, (images, 1), generator=generator)
        row = (image + torch.arange(halves) * recorded.images).flatten()
        drawn = recorded.pick(torch.zeros_like(row), row)
        noise = spread * torch.randn(images, *drawn.sample.shape[1:], generator=generator)
        return replace(drawn, sample=noise.repeat_interleave(halves, 0), image=None)

    def step(prediction: Tensor, call: int, sample: Tensor) -> Tensor:
        past.append(walks.by_half(prediction.to(sample.device)))
        now = fit.next(call, sample[::halves], past, of_images)
        return now.repeat_interleave(halves, 0)

    return Walk(recorded.timestep, start, step)
