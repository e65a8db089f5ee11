"""The metrics by name: what a listing prints and what every measurement carries. No torch."""

from dataclasses import dataclass

PSNR = "psnr"
SSIM = "ssim"
LPIPS = "lpips/alex-v0.1"
KID = "kid/effnet-lite0"
FRECHET = "frechet-pca32/effnet-lite0"


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
    """

    name: str
    title: str
    unit: str
    higher_is_better: bool
    board: str
    needs: int


_ALL = (
    MetricInfo(PSNR, "peak signal-to-noise ratio to full precision", "dB", True, "fidelity", 1),
    MetricInfo(SSIM, "structural similarity to full precision", "", True, "fidelity", 1),
    MetricInfo(LPIPS, "perceptual distance to full precision", "", False, "fidelity", 1),
    MetricInfo(KID, "kernel distance to real images", "x1e-3", False, "quality", 16),
    MetricInfo(FRECHET, "Frechet distance to real images, 32 axes", "", False, "quality", 64),
)
METRICS = {info.name: info for info in _ALL}
FIDELITY = tuple(info.name for info in _ALL if info.board == "fidelity")
QUALITY = tuple(info.name for info in _ALL if info.board == "quality")
