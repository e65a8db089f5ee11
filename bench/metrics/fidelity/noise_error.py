"""Closeness to full precision inside the sampler: noise prediction by call, last latents.

Images show what is left after the decoder and rounding to 8 bits; these two see the damage where
it is made. The first is measured on full precision's own trajectory, so errors do not add up over
calls; the second at the end of each sampler's own trajectory, where they have.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from quantarena.bench.metrics.bootstrap import Array
from quantarena.methods.core.record.trajectory import Trajectory

PROBE_IMAGES = 8
"""Images whose calls are repeated: more would cost as much as drawing them."""
SQNR_CAP = 120.0
"""dB of an equal answer; float32 rounding alone stays below it."""

At = Callable[[int], AbstractContextManager[None]]
"""Sets a network's sampler call for the block."""


@torch.no_grad()
def predictions(
    network: nn.Module, recorded: Trajectory, at: At = lambda _: nullcontext()
) -> Tensor:
    """What a network predicts on each recorded input.

    Args:
        network: takes what the trajectory holds.
        recorded: the inputs, (S, N, C, ...).
        at: sets the sampler call, for networks whose tables depend on it.

    Returns:
        float32 (S, N, C, ...). Of networks that predict a variance behind the noise, which doubles
        the channels, the noise alone.
    """
    rows = torch.arange(recorded.rows)
    found = []
    for call in range(recorded.calls):
        with at(call):
            output = recorded.pick(torch.full_like(rows, call), rows).call(network)
        channels = recorded.sample.shape[2]
        if output.dim() == 4 and output.shape[1] == 2 * channels:
            output = output[:, :channels]
        found.append(output.float().contiguous())
    return torch.stack(found)


def sqnr(reference: Tensor, test: Tensor, halves: int = 1) -> Array:
    """Signal-to-quantization-noise ratio of each prediction in dB; higher is better.

    ``10 log10(sum r^2 / sum (t - r)^2)`` over channels, positions and guidance halves of an image.

    Args:
        reference: full precision's predictions, (S, halves x N, ...).
        test: the other network's on the same inputs.
        halves: rows of one image, as in ``Trajectory``.

    Returns:
        (S, N) float64, within +-120 dB.

    Raises:
        ValueError: other shapes, or predictions that are not finite.
    """
    if reference.shape != test.shape:
        raise ValueError(f"predictions differ in shape: {reference.shape} and {test.shape}")
    calls, rows = reference.shape[:2]
    signal, noise = (
        x.double().pow(2).reshape(calls, halves, rows // halves, -1).sum((1, 3))
        for x in (reference, test.double() - reference.double())
    )
    if not bool((signal + noise).isfinite().all()):
        bad = int((~(signal + noise).isfinite()).any(1).nonzero()[0])
        raise ValueError(f"predictions of sampler call {bad} are not finite")
    ratio = 10 * torch.log10(signal / noise)  # equal predictions: infinite; two zeros: NaN
    return np.asarray(ratio.nan_to_num(nan=SQNR_CAP).clamp(-SQNR_CAP, SQNR_CAP).numpy())
