"""Recorded points that a method did not learn from, to see whether what it learned carries over."""

import torch

from quantarena.methods.core.record.points import CalibrationSet, evenly
from quantarena.methods.core.record.trajectory import Trajectory


def held_out(
    trajectory: Trajectory, points: CalibrationSet, count: int, seed: int
) -> CalibrationSet | None:
    """Points of the recording that are not among ``points``, spread over the sampler calls.

    They come from images that no point is of, where there are any: another call of an image that
    was learned from is near to one that was.

    Args:
        trajectory: the recording.
        points: what a method learns from.
        count: largest number of points.
        seed: seed of the choice.

    Returns:
        None where every recorded point was drawn, or where it is unknown which were.
    """
    if points.image is None or points.half is None:
        return None
    images = trajectory.images
    left = torch.ones(trajectory.calls, trajectory.rows, dtype=torch.bool)
    left[points.step, points.half * images + points.image] = False
    strange = torch.ones(images, dtype=torch.bool)
    strange[points.image] = False
    unseen = left & strange.repeat(trajectory.halves)
    calls, rows = (unseen if bool(unseen.any()) else left).nonzero(as_tuple=True)
    if not len(calls):
        return None
    # Shuffled within each call: the order of calls stays, so that even steps visit all of them.
    shuffled = torch.randperm(len(calls), generator=torch.Generator().manual_seed(seed))
    order = shuffled[calls[shuffled].argsort(stable=True)]
    chosen = order[evenly(len(order), count)]
    return trajectory.pick(calls[chosen], rows[chosen])
