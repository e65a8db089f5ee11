"""Closeness to the full-precision image of the same seed: PSNR, SSIM, LPIPS, image by image."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

from quantarena.bench.metrics.bootstrap import RESAMPLES, Groups
from quantarena.bench.metrics.fidelity.lpips import lpips, weights_sha256
from quantarena.bench.metrics.fidelity.noise_error import SQNR_CAP
from quantarena.bench.metrics.images import check_pairs, chunks, to_unit
from quantarena.bench.metrics.measurement import mean_of, unmeasured
from quantarena.bench.metrics.names import FIDELITY, LATENT, LPIPS, METRICS, PSNR, SQNR, SSIM
from quantarena.bench.schema import Measurement

PSNR_CAP = 100.0
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
_NO_SSIM = f"a side is shorter than SSIM's window of {SSIM_WINDOW} px"
_ABSENT = {
    SSIM: _NO_SSIM,
    SQNR: "the network was not at hand, images alone were scored",
    LATENT: "latents were not at hand, images alone were scored",
}


def psnr(fp: Tensor, test: Tensor) -> np.ndarray:
    """Peak signal-to-noise ratio of each pair over all channels, in dB; higher is better.

    Capped at 100 dB, so that equal images (infinite) can be averaged. One level off in one
    value of a 64 px image is 89 dB: the cap is out of reach below 256 px.

    Args:
        fp: full-precision images, uint8 (N, 3, H, W).
        test: images of the same seeds, the same shape.

    Returns:
        (N,) float64. Their mean is a mean of dB, not the dB of a mean error.

    Raises:
        BadImages: not pairs of uint8 images.
    """
    # Seconds to import: paid by those who score, not by those who list or read.
    from torchmetrics.functional.image import peak_signal_noise_ratio

    check_pairs(fp, test)
    out = np.empty(fp.shape[0])
    for part in chunks(fp):
        values = peak_signal_noise_ratio(
            test[part].double(),
            fp[part].double(),
            data_range=255.0,
            dim=(1, 2, 3),
            reduction="none",
        )
        out[part] = values.clamp(max=PSNR_CAP).cpu().numpy()
    return out


def ssim(fp: Tensor, test: Tensor) -> np.ndarray:
    """Structural similarity of each pair: Gaussian window 11, sigma 1.5, mean over RGB.

    Args:
        fp: full-precision images, uint8 (N, 3, H, W), sides of at least 11 px.
        test: images of the same seeds, the same shape.

    Returns:
        (N,) float64, at most 1; higher is better. Wang et al., 2004.

    Raises:
        BadImages: not pairs of uint8 images.
        ValueError: a side is shorter than the window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    check_pairs(fp, test)
    if min(fp.shape[2:]) < SSIM_WINDOW:
        raise ValueError(_NO_SSIM)
    out = np.empty(fp.shape[0])
    for part in chunks(fp):
        values = structural_similarity_index_measure(
            to_unit(test[part]),
            to_unit(fp[part]),
            sigma=SSIM_SIGMA,
            kernel_size=SSIM_WINDOW,
            data_range=1.0,
            reduction="none",
        )
        out[part] = values.double().reshape(-1).cpu().numpy()
    return out


def fidelity(
    fp: Tensor,
    test: Tensor,
    *,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
    """Every fidelity metric that two images have.

    Args:
        fp: full-precision images, uint8 (N, 3, H, W).
        test: images of the same seeds, the same shape.
        device: where LPIPS runs.
        progress: called with the number of pairs done.

    Returns:
        Name to (N,) float64. SSIM is left out where its window does not fit.

    Raises:
        BadImages: not pairs of uint8 images.
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
    """Means with 95 % bootstrap intervals over images, in the catalogue's order.

    Args:
        per_image: name to (n,) values of the first n images.
        seed: of the resamples.
        resamples: how many.
        groups: prompt of each image, where prompts repeat.
        reasons: why a metric has no values.
    """
    found = []
    for name in FIDELITY:
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
        LATENT: "quantarena, what the sampler returns last; for pixel models the image before "
        "clipping",
    }[name]
