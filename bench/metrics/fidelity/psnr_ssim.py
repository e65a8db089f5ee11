"""PSNR and SSIM of each pair of images."""

import numpy as np
from torch import Tensor

from quantarena.bench.metrics.images import check_pairs, chunks, to_unit

PSNR_CAP = 100.0
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
_NO_SSIM = f"a side is shorter than SSIM's window of {SSIM_WINDOW} px"


def psnr(fp: Tensor, test: Tensor) -> np.ndarray:
    """The peak signal-to-noise ratio of each pair over all channels, in dB; higher is better.

    It is capped at 100 dB, so that equal images (infinite PSNR) can be averaged. An error of one
    level in one value of a 64 px image gives 89 dB: the cap is out of reach below 256 px.

    Args:
        fp: full-precision images, uint8 (N, 3, H, W).
        test: images of the same seeds, the same shape.

    Returns:
        (N,) float64. Their mean is a mean of dB values, not the dB of a mean error.

    Raises:
        BadImages: the images are not pairs of uint8 images.
    """
    # Imported here because it takes seconds, which listings of metrics need not wait.
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
    """The structural similarity of each pair: Gaussian window 11, sigma 1.5, mean over RGB.

    Args:
        fp: full-precision images, uint8 (N, 3, H, W), sides of at least 11 px.
        test: images of the same seeds, the same shape.

    Returns:
        (N,) float64, at most 1; higher is better. Wang et al., 2004.

    Raises:
        BadImages: the images are not pairs of uint8 images.
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
