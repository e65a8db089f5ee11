"""The error of a network's noise predictions, by sampler call, against full precision.

Images show an error only after the decoder and rounding to 8 bits; this metric measures it where
it arises. The inputs are those of the full-precision trajectory, so errors do not accumulate.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from quantarena.bench.metrics.bootstrap import Array
from quantarena.methods.core.record.trajectory import Trajectory

PROBE_IMAGES = 8
"""Number of images whose calls are repeated; more would cost as much as drawing the images."""
SQNR_CAP = 120.0
"""The dB of equal predictions; predictions that differ by float32 rounding stay below it."""

At = Callable[[int], AbstractContextManager[None]]
"""A function that sets the sampler call of a network for the time of a block."""


@torch.no_grad()
def predictions(
    network: nn.Module, recorded: Trajectory, at: At = lambda _: nullcontext()
) -> Tensor:
    """The predictions of a network on each recorded input.

    Args:
        network: the network.
        recorded: its inputs, (S, N, C, ...), for S sampler calls.
        at: sets the sampler call, for networks with tables by call.

    Returns:
        float32 (S, N, C, ...), on the host. If a network also predicts a variance in as many
        further channels, only the noise is returned.
    """
    rows = torch.arange(recorded.rows)
    outputs = []
    for call in range(recorded.calls):
        with at(call):
            output = recorded.pick(torch.full_like(rows, call), rows).call(network)
        channels = recorded.sample.shape[2]
        if output.dim() == 4 and output.shape[1] == 2 * channels:
            output = output[:, :channels]
        outputs.append(output.float().cpu().contiguous())
    return torch.stack(outputs)


def sqnr(reference: Tensor, test: Tensor, halves: int = 1) -> Array:
    """The signal-to-quantization-noise ratio of each prediction in dB; higher is better.

    It is ``10 log10(sum r^2 / sum (t - r)^2)`` over channels, positions and guidance halves.

    Args:
        reference: full precision's predictions, (S, halves x N, ...).
        test: the other network's on the same inputs.
        halves: number of rows of one image, as in ``Trajectory``.

    Returns:
        (S, N) float64, within +-120 dB.

    Raises:
        ValueError: the shapes differ, or a prediction is not finite.
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
