"""The fidelity metrics: each image against the full-precision image of the same seed."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

from quantarena.bench.metrics.bootstrap import RESAMPLES, Groups
from quantarena.bench.metrics.fidelity.lpips import lpips, weights_sha256
from quantarena.bench.metrics.fidelity.noise_error import SQNR_CAP
from quantarena.bench.metrics.fidelity.psnr_ssim import (
    _NO_SSIM,
    PSNR_CAP,
    SSIM_SIGMA,
    SSIM_WINDOW,
    psnr,
    ssim,
)
from quantarena.bench.metrics.measurement import mean_of, unmeasured
from quantarena.bench.metrics.names import (
    FIDELITY,
    FRAME_CHANGES,
    LATENT,
    LPIPS,
    METRICS,
    PSNR,
    SQNR,
    SSIM,
    VIDEO,
)
from quantarena.bench.schema import Measurement

_ABSENT = {
    SSIM: _NO_SSIM,
    SQNR: "the network was not at hand, images alone were scored",
    LATENT: "latents were not at hand, images alone were scored",
}


def fidelity(
    fp: Tensor,
    test: Tensor,
    *,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
    """The fidelity metrics of images alone: PSNR, SSIM and LPIPS.

    Args:
        fp: full-precision images, uint8 (N, 3, H, W).
        test: images of the same seeds, the same shape.
        device: where LPIPS runs.
        progress: called with the number of pairs done.

    Returns:
        Name to (N,) float64. SSIM is missing if an image is smaller than its window.

    Raises:
        BadImages: the images are not pairs of uint8 images.
    """
    values = {PSNR: psnr(fp, test)}
    if min(fp.shape[2:]) >= SSIM_WINDOW:
        values[SSIM] = ssim(fp, test)
    values[LPIPS] = lpips(fp, test, device=device, progress=progress)
    return values


def summarise(
    per_image: Mapping[str, np.ndarray],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    groups: Groups | None = None,
    reasons: Mapping[str, str] | None = None,
) -> tuple[Measurement, ...]:
    """Means with 95 % bootstrap intervals over images or videos, in the order of ``names``.

    Args:
        per_image: name to (n,) values of the first n images.
        seed: seed of the resamples.
        resamples: number of resamples.
        groups: prompt of each image, if prompts repeat.
        reasons: name to the reason why a metric has no values.
    """
    found = []
    for name in (*FIDELITY, *(name for name in VIDEO if name in per_image)):
        values = per_image.get(name)
        sha256 = weights_sha256() if name == LPIPS else None
        if values is None:
            reason = (_ABSENT | dict(reasons or {})).get(name)
            one = unmeasured(METRICS[name], reason, "fp")
        else:
            one = mean_of(
                METRICS[name],
                values,
                seed=seed,
                resamples=resamples,
                groups=groups,
                reference="fp",
            )
        found.append(replace(one, impl=_impl(name), extractor_sha256=sha256))
    return tuple(found)


def _impl(name: str) -> str:
    metrics = f"torchmetrics {version('torchmetrics')}"
    return {
        PSNR: f"{metrics}, mean of dB, capped at {PSNR_CAP:g} dB",
        SSIM: f"{metrics}, window {SSIM_WINDOW}, sigma {SSIM_SIGMA}, RGB",
        LPIPS: f"quantarena, LPIPS v0.1 AlexNet, short side >= 64 px, torch {torch.__version__}",
        SQNR: "quantarena, on full precision's trajectory of the first images, mean of dB over "
        f"sampler calls, capped at {SQNR_CAP:g} dB",
        FRAME_CHANGES: "quantarena, mean over pairs of consecutive frames, uint8 RGB",
        LATENT: "quantarena, what the sampler returns last; for pixel models the image before "
        "clipping",
    }[name]
