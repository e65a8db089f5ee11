"""A sampler's step, fitted to recorded walks: so that a quantized network can walk on its own.

A recording holds what the sampler fed the network at every call, not the sampler itself. But
samplers are linear in the sample and in the predictions: DDIM and Euler in the present prediction,
DPM-Solver and PLMS in a few past ones too, classifier-free guidance in the predictions of both
halves. So the coefficients of each step are fits by least squares over recorded samples and
full-precision predictions. The residual, such as the fresh noise of an ancestral sampler or the
effect of clipping, is stored by image and added again: a network that predicts what full precision
predicted walks exactly along the recording.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.record.points import CalibrationSet

TOLERANCE = 1e-3
"""Largest relative residual at which a fit without past predictions is accepted."""
_PAST = 3
"""Past predictions that a fit may use."""


@dataclass(frozen=True, slots=True)
class FittedStep:
    """``x' = keep x + sum_h halves[h] e_h + sum_j past[j] g_j + rest``, one row for each step.

    Attributes:
        keep: coefficient of the sample, (S - 1,).
        halves: coefficients of the present prediction of each guidance half, (S - 1, H).
        past: coefficients of the guided predictions one, two ... calls ago, (S - 1, P).
        rest: residual of each recorded step, (S - 1, images, C, ...).
        error: size of ``rest`` relative to the recorded step, (S - 1,).
    """

    keep: Tensor
    halves: Tensor
    past: Tensor
    rest: Tensor
    error: Tensor

    def guidance(self, call: int) -> Tensor:
        """Weight of each half's prediction in the guided one, (H,); the weights sum to 1."""
        return shares(self.halves[min(call, len(self.halves) - 1)])

    def all_guidance(self) -> Tensor:
        """The weights at every sampler call, (S, H); the last call has those of the one before."""
        return torch.stack([self.guidance(call) for call in range(len(self.keep) + 1)])

    def next(
        self, call: int, sample: Tensor, predictions: Sequence[Tensor], images: Tensor
    ) -> Tensor:
        """Compute the sample of the next call.

        Args:
            call: present sampler call, not the last.
            sample: sample at the present call, (N, C, ...).
            predictions: predictions of this and earlier calls, oldest first, (N, H, C, ...) each.
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
    """Coefficients divided by their sum; equal shares where they cancel out."""
    total = coefficients.sum()
    if float(total.abs()) <= 1e-6 * float(coefficients.abs().sum()):
        return torch.full_like(coefficients, 1 / len(coefficients))
    return coefficients / total


def weighted(predictions: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over guidance halves: (N, H, ...) with weights (H,) or (N, H) gives (N, ...)."""
    return (predictions * weights[..., *[None] * (predictions.dim() - 2)]).sum(1)


def fit_step(samples: Tensor, predictions: Tensor) -> FittedStep:
    """Find the coefficients of every step.

    Args:
        samples: recorded samples, (S, N, C, ...).
        predictions: full-precision predictions on them, (S, N, H, C, ...).

    Raises:
        ValueError: fewer than two calls.
    """
    if len(samples) < 2:
        raise ValueError("a sampler's step needs two recorded calls at least")
    fits: list[tuple[Tensor, Tensor, float]] = []  # coefficients, residual, its relative size
    guided: list[Tensor] = []
    for call in range(len(samples) - 1):
        now = predictions[call].double()
        columns = [samples[call].double(), *now.unbind(1)]
        target = samples[call + 1].double()
        moved = float((target - columns[0]).square().mean().sqrt())
        recent = guided[::-1][:_PAST]
        tried = [_solve(columns + recent[:count], target) for count in range(len(recent) + 1)]
        errors = [float(rest.square().mean().sqrt()) / max(moved, 1e-12) for _, rest in tried]
        good = [k for k, error in enumerate(errors) if error <= TOLERANCE]
        best = good[0] if good else 0
        fits.append((*tried[best], errors[best]))
        guided.append(weighted(now, shares(fits[-1][0][1 : 1 + now.shape[1]])))
    halves = predictions.shape[2]
    past = torch.zeros(len(fits), _PAST)
    for call, (solution, _, _) in enumerate(fits):
        tail = solution[1 + halves :]
        past[call, : len(tail)] = tail.float()
    return FittedStep(
        torch.stack([s[0] for s, _, _ in fits]).float(),
        torch.stack([s[1 : 1 + halves] for s, _, _ in fits]).float(),
        past,
        torch.stack([rest for _, rest, _ in fits]).float(),
        torch.tensor([error for _, _, error in fits]),
    )


def by_image(points: CalibrationSet) -> tuple[int, int, int]:
    """Number of calls, images and guidance halves of whole walks.

    Raises:
        Unsupported: the halves of an image do not lie side by side, or the sampler feeds them
            different samples.
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
    """Least squares: the coefficients and the residual."""
    flat = torch.stack([column.reshape(-1) for column in columns], 1)
    solution = torch.linalg.lstsq(flat, target.reshape(-1, 1), driver="gelsd").solution[:, 0]
    return solution, target - (flat @ solution).reshape(target.shape)
