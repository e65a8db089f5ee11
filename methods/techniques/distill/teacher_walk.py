"""The teacher's walk, read from a recorded trajectory instead of run with a sampler.

A recording holds what the full-precision network was fed at every sampler call, so the next sample
of a walk that the teacher drives can be looked up. Guidance, eta and the sampler itself are already
part of the recorded samples.
"""

import torch
from torch import Tensor

from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.nested import leaves
from quantarena.methods.core.record.points import CalibrationSet, calls_of
from quantarena.methods.techniques.distill.walk import Walk


def teacher_walk(points: CalibrationSet, batch: int) -> Walk:
    """Walks over all sampler calls, each with ``batch`` newly drawn images.

    Args:
        points: the same rows at every call, call after call, as ``steps.WholeWalks`` draws them.
        batch: rows of each walk; all recorded rows where there are fewer.

    Raises:
        ValueError: calls differ in their number of points, or a call has none.
        Unsupported: an input beside sample and timestep changes from call to call.
    """
    calls = len(calls_of(points))
    rows = len(points) // calls
    if not torch.equal(points.step, torch.arange(calls).repeat_interleave(rows)):
        raise ValueError("a recorded walk needs the same rows at every call, call after call")
    _require_constant(points, rows)
    chosen = torch.arange(0)

    def start(generator: torch.Generator) -> CalibrationSet:
        nonlocal chosen
        chosen = torch.randperm(rows, generator=generator)[:batch]
        return points.rows(chosen)

    def step(prediction: Tensor, call: int, sample: Tensor) -> Tensor:
        return points.sample[(call + 1) * rows + chosen]

    return Walk(points.timestep[::rows], start, step)


def _require_constant(points: CalibrationSet, rows: int) -> None:
    for path, leaf in leaves(points.conditions).items():
        if isinstance(leaf, Tensor) and path not in points.fixed:
            by_call = leaf.reshape(-1, rows, *leaf.shape[1:])
            if not torch.equal(by_call, by_call[:1].expand_as(by_call)):
                raise Unsupported(f"{path} changes from call to call: it cannot be distilled yet")
