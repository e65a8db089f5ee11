"""A sampler's step, read from recorded walks: so that a quantized network can walk on its own.

A recording holds what the sampler fed the network at every call, not the sampler. But samplers are
linear in the sample and in the predictions (DDIM and Euler in the present one, DPM-Solver and PLMS
in a few past ones too, classifier-free guidance in that of both halves). So the coefficients of
each step are found by least squares over recorded samples and full-precision predictions. What is
left, such as fresh noise of an ancestral sampler or the effect of clipping, is kept by image and
added again: a walk that predicts as full precision did is the recorded walk.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.record.points import CalibrationSet

TOLERANCE = 1e-3
"""Share of a step that a fit may leave before past predictions are tried too."""
_PAST = 3


@dataclass(frozen=True, slots=True)
class FittedStep:
    """``x' = keep x + sum_h halves[h] e_h + sum_j past[j] g_j + rest``, one row a step.

    Attributes:
        keep: of the sample, (S - 1,).
        halves: of the present prediction of each guidance half, (S - 1, H).
        past: of the guided predictions one, two ... calls ago, (S - 1, P).
        rest: what that leaves of each recorded step, (S - 1, images, C, ...).
        error: size of ``rest`` relative to the step that was taken, (S - 1,).
    """

    keep: Tensor
    halves: Tensor
    past: Tensor
    rest: Tensor
    error: Tensor

    def guidance(self, call: int) -> Tensor:
        """Share of each half's prediction in the guided one, (H,), of sum 1."""
        return shares(self.halves[min(call, len(self.halves) - 1)])

    def next(
        self, call: int, sample: Tensor, predictions: Sequence[Tensor], images: Tensor
    ) -> Tensor:
        """The sample of the next call.

        Args:
            call: the present one, not the last.
            sample: at the present call, (N, C, ...).
            predictions: of this call and those before it, oldest first, (N, H, C, ...) each.
            images: which recorded images these are, (N,).

        Returns:
            (N, C, ...).
        """
        result = self.keep[call] * sample + self.rest[call][images]
        result = result + weighted(predictions[-1], self.halves[call])
        for back in range(min(self.past.shape[1], len(predictions) - 1)):
            past = weighted(predictions[-2 - back], self.guidance(call - 1 - back))
            result = result + self.past[call, back] * past
        return result


def shares(coefficients: Tensor) -> Tensor:
    """Coefficients over their sum; all alike where they cancel."""
    total = coefficients.sum()
    if float(total.abs()) <= 1e-6 * float(coefficients.abs().sum()):
        return torch.full_like(coefficients, 1 / len(coefficients))
    return coefficients / total


def weighted(predictions: Tensor, weights: Tensor) -> Tensor:
    """Sum over guidance halves: (N, H, ...) under (H,) or (N, H) gives (N, ...)."""
    return (predictions * weights[..., *[None] * (predictions.dim() - 2)]).sum(1)


def fit_step(samples: Tensor, predictions: Tensor) -> FittedStep:
    """Find every step's coefficients.

    Args:
        samples: recorded samples, (S, N, C, ...).
        predictions: full-precision predictions on them, (S, N, H, C, ...).

    Raises:
        ValueError: fewer than two calls.
    """
    if len(samples) < 2:
        raise ValueError("a sampler's step needs two recorded calls at least")
    found: list[tuple[Tensor, Tensor, float]] = []
    guided: list[Tensor] = []
    for call in range(len(samples) - 1):
        now = predictions[call].double()
        columns = [samples[call].double(), *now.unbind(1)]
        target = samples[call + 1].double()
        moved = float((target - columns[0]).square().mean().sqrt())
        recent = guided[::-1][:_PAST]
        tries = [_solve(columns + recent[:count], target) for count in range(len(recent) + 1)]
        errors = [float(rest.square().mean().sqrt()) / max(moved, 1e-12) for _, rest in tries]
        good = [k for k, error in enumerate(errors) if error <= TOLERANCE]
        best = good[0] if good else 0
        found.append((*tries[best], errors[best]))
        guided.append(weighted(now, shares(found[-1][0][1 : 1 + now.shape[1]])))
    halves = predictions.shape[2]
    past = torch.zeros(len(found), _PAST)
    for call, (solution, _, _) in enumerate(found):
        tail = solution[1 + halves :]
        past[call, : len(tail)] = tail.float()
    return FittedStep(
        torch.stack([s[0] for s, _, _ in found]).float(),
        torch.stack([s[1 : 1 + halves] for s, _, _ in found]).float(),
        past,
        torch.stack([rest for _, rest, _ in found]).float(),
        torch.tensor([error for _, _, error in found]),
    )


def by_image(points: CalibrationSet) -> tuple[int, int, int]:
    """Calls, images and guidance halves of whole walks; halves of an image lie side by side.

    Raises:
        Unsupported: they do not, or the sampler feeds an image's halves different samples.
    """
    calls = len(points.histogram())
    rows = len(points) // calls
    halves = 1 if points.half is None else int(points.half.max()) + 1
    fits = torch.equal(points.step, torch.arange(calls).repeat_interleave(rows))
    if not fits or rows % halves:
        raise Unsupported("a network's own walk needs whole recorded walks, all halves of an image")
    units = points.sample.reshape(calls, rows // halves, halves, *points.sample.shape[1:])
    if not torch.equal(units, units[:, :, :1].expand_as(units)):
        raise Unsupported("a network's own walk needs both guidance halves at the same sample")
    return calls, rows // halves, halves


def _solve(columns: Sequence[Tensor], target: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares: coefficients, and what they leave of the target."""
    flat = torch.stack([column.reshape(-1) for column in columns], 1)
    solution = torch.linalg.lstsq(flat, target.reshape(-1, 1), driver="gelsd").solution[:, 0]
    return solution, target - (flat @ solution).reshape(target.shape)
