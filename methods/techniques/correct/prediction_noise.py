"""The quantization noise of a prediction, by sampler call: what correlates, what is constant, rest.

PTQD (He et al., NeurIPS 2023, arXiv:2305.10657) writes the error of a quantized network as

    quantized - full = k * full + mu + rest

with one ``k`` for each sampler call and one ``mu`` for each channel of it. ``k`` and ``mu`` can be
undone: ``(quantized - mu) / (1 + k)``. ``rest`` looks like fresh noise to the sampler.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.record.points import CalibrationSet, calls_of
from quantarena.methods.techniques.distill.sampler_fit import weighted

_BATCH = 64


@dataclass(frozen=True, slots=True)
class PredictionNoise:
    """The parts of the noise at every sampler call.

    Attributes:
        slope: k, (S,).
        bias: mu of each channel, (S, C).
        deviation: standard deviation of the rest, (S,).
        error: mean square of the whole noise over that of the full-precision prediction, (S,).
        left: the same after the correction.
    """

    slope: Tensor
    bias: Tensor
    deviation: Tensor
    error: Tensor
    left: Tensor

    def correction(self) -> tuple[Tensor, Tensor]:
        """Gain and shift of each channel that undo slope and bias, (S, C) each."""
        gain = (1 / (1 + self.slope))[:, None].expand_as(self.bias)
        return gain, -self.bias * gain


@dataclass(frozen=True, slots=True)
class _Sums:
    """Sums over rows and places of the full prediction x and the noise d, (C,) each."""

    count: int
    x: Tensor
    d: Tensor
    xx: Tensor
    xd: Tensor
    dd: Tensor

    @classmethod
    def of(cls, full: Tensor, noise: Tensor) -> "_Sums":
        x, d = (t.double().transpose(0, 1).flatten(1) for t in (full, noise))
        return cls(x.shape[1], x.sum(1), d.sum(1), (x * x).sum(1), (x * d).sum(1), (d * d).sum(1))

    def __add__(self, other: "_Sums") -> "_Sums":
        names = ("x", "d", "xx", "xd", "dd")
        return _Sums(
            self.count + other.count,
            *(getattr(self, name) + getattr(other, name) for name in names),
        )


def measure_noise(
    model: QuantizedModel,
    points: CalibrationSet,
    full: Tensor,
    *,
    guidance: Tensor | None = None,
    correlated: bool = True,
    biased: bool = True,
    negative: bool = False,
    residual_bias: bool = True,
) -> PredictionNoise:
    """Measure the noise of a quantized model on recorded points of every sampler call.

    Channels of the prediction beyond those of the sample, such as a learned variance, are left out.

    Args:
        model: every range set; it runs once on the points.
        points: whole walks, the guidance halves of an image side by side.
        full: full-precision predictions at the points, (N, C', ...); sums are taken where they are.
        guidance: weight of each half's prediction in the guided one at each call, (S, H), with
            which the noise is that of the guided prediction; None takes every row by itself.
        correlated: find ``k``; if false, it is 0.
        biased: find ``mu``; if false, it is 0.
        negative: let ``k`` be negative; if false, such a one counts as 0. Where the noise shrinks
            the prediction, dividing by less than 1 would enlarge the rest.
        residual_bias: ``k`` and ``mu`` are fitted together, by least squares; if false, as in the
            released code: ``k`` over all channels at once, ``mu`` the mean of the whole noise.

    Raises:
        ValueError: a sampler call has no points.
    """
    found = [
        _solve(
            _sums_at(model, points, full, call, None if guidance is None else guidance[call]),
            correlated=correlated,
            biased=biased,
            negative=negative,
            residual_bias=residual_bias,
        )
        for call in calls_of(points)
    ]
    columns = (torch.stack(column).float() for column in zip(*found, strict=True))
    return PredictionNoise(*columns)


@torch.no_grad()
def _sums_at(
    model: QuantizedModel, points: CalibrationSet, full: Tensor, call: int, weights: Tensor | None
) -> _Sums:
    """Sums over all points of one sampler call."""
    here, total = (points.step == call).nonzero().flatten(), None
    channels, halves = points.sample.shape[1], 1 if weights is None else len(weights)
    for index in torch.split(here, max(1, _BATCH // halves) * halves):
        wanted = full[index, :channels]
        noise = model.run(points.rows(index))[:, :channels].to(wanted.device) - wanted
        if weights is not None:
            wanted, noise = (guided(each, weights) for each in (wanted, noise))
        sums = _Sums.of(wanted, noise)
        total = sums if total is None else total + sums
    assert total is not None
    return total


def guided(rows: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of the halves of each image, which lie side by side: (N * H, ...)."""
    return weighted(rows.reshape(-1, len(weights), *rows.shape[1:]), weights.to(rows))


def _solve(
    sums: _Sums, *, correlated: bool, biased: bool, negative: bool, residual_bias: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Slope, bias, deviation of the rest, and relative error before and after."""
    n, channels = sums.count, len(sums.x)
    mean_x, mean_d = sums.x / n, sums.d / n
    xx, xd = sums.xx - n * mean_x**2, sums.xd - n * mean_x * mean_d
    if not residual_bias:  # one mean for all channels
        whole = n * channels
        xx, xd = sums.xx - sums.x * sums.x.sum() / whole, sums.xd - sums.x * sums.d.sum() / whole
    slope = torch.zeros((), dtype=torch.double)
    if correlated and float(xx.sum()) > 0:
        slope = xd.sum() / xx.sum()
        slope = slope if negative else slope.clamp(min=0)
        slope = slope.clamp(min=-0.5)  # the correction divides by 1 + slope
    bias = torch.zeros_like(mean_d)
    if biased:
        bias = mean_d - slope * mean_x if residual_bias else mean_d
    # of the rest d - k x - mu
    square = sums.dd - 2 * slope * sums.xd + slope**2 * sums.xx
    cross = 2 * bias * (sums.d - slope * sums.x)
    rest = (square - cross + n * bias**2).sum().clamp(min=0)
    power = sums.xx.sum().clamp(min=1e-30)
    deviation = (rest / (n * channels)).sqrt()
    return slope, bias, deviation, sums.dd.sum() / power, rest / (1 + slope) ** 2 / power
