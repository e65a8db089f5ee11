"""The metrics by name: what a listing prints and what every measurement carries. No torch."""

from dataclasses import dataclass

PSNR = "psnr"
SSIM = "ssim"
LPIPS = "lpips/alex-v0.1"
SQNR = "noise-sqnr"
LATENT = "latent-mse"
KID = "kid/effnet-lite0"
FRECHET = "frechet-pca32/effnet-lite0"
PRECISION = "precision-k3/effnet-lite0"
RECALL = "recall-k3/effnet-lite0"

INSIDE = "none"
SHIPPED = "in the package"
EFFNET = "in a dependency"


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """One metric.

    Attributes:
        name: with implementation and extractor.
        title: one line for people.
        unit: of the value; empty for a plain number.
        higher_is_better: direction of quality.
        board: ``fidelity`` or ``quality``.
        needs: fewest images on which it is computed.
        weights: where the weights of its network come from.
    """

    name: str
    title: str
    unit: str
    higher_is_better: bool
    board: str
    needs: int
    weights: str


_FIDELITY = (
    (PSNR, "peak signal-to-noise ratio to full precision", "dB", True, 1, INSIDE),
    (SSIM, "structural similarity to full precision", "", True, 1, INSIDE),
    (LPIPS, "perceptual distance to full precision", "", False, 1, SHIPPED),
    (SQNR, "noise prediction against full precision's, by sampler call", "dB", True, 1, INSIDE),
    (LATENT, "squared difference of the samplers' last latents", "", False, 1, INSIDE),
)
_QUALITY = (
    (KID, "kernel distance to real images", "x1e-3", False, 16, EFFNET),
    (FRECHET, "Frechet distance to real images, 32 axes", "", False, 64, EFFNET),
    (PRECISION, "share of images among the real ones", "", True, 64, EFFNET),
    (RECALL, "share of real images among the generated ones", "", True, 64, EFFNET),
)
METRICS = {
    name: MetricInfo(name, title, unit, higher, board, needs, weights)
    for board, rows in (("fidelity", _FIDELITY), ("quality", _QUALITY))
    for name, title, unit, higher, needs, weights in rows
}
FIDELITY = tuple(row[0] for row in _FIDELITY)
QUALITY = tuple(row[0] for row in _QUALITY)
IMAGE_PAIRS = (PSNR, SSIM, LPIPS)
"""Fidelity metrics of two images alone."""
