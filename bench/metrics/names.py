"""The names of all metrics, and the facts about each: title, unit, direction, board. No torch."""

from dataclasses import dataclass

PSNR = "psnr"
SSIM = "ssim"
LPIPS = "lpips/alex-v0.1"
SQNR = "noise-sqnr"
LATENT = "latent-mse"
FRAME_CHANGES = "frame-change-mae"
KID = "kid/effnet-lite0"
FRECHET = "frechet-pca32/effnet-lite0"
PRECISION = "precision-k3/effnet-lite0"
RECALL = "recall-k3/effnet-lite0"
ALIGNMENT = "alignment/effnet-lite0-minilm"
R_PRECISION = "r-precision-99/effnet-lite0-minilm"
FID = "fid/torchmetrics/inception"
CLEAN_FID = "fid/clean-fid/inception"
SFID = "sfid/inception"
INCEPTION_SCORE = "is/torchmetrics/inception"
CLIP_SCORE = "clipscore/clip-vit-large-patch14"

INSIDE = "none"
SHIPPED = "in the package"
EFFNET = "in a dependency"


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """The facts about one metric.

    Attributes:
        name: name with implementation and extractor.
        title: one line for readers.
        unit: unit of the value; empty for a plain number.
        higher_is_better: whether larger values are better.
        board: ``fidelity`` or ``quality``.
        needs: least number of images on which it is computed.
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
_VIDEO = (
    (FRAME_CHANGES, "changes between frames against full precision's", "levels", False, 1, INSIDE),
)
_QUALITY = (
    (KID, "kernel distance to real images", "x1e-3", False, 16, EFFNET),
    (FRECHET, "Frechet distance to real images, 32 axes", "", False, 64, EFFNET),
    (PRECISION, "share of images among the real ones", "", True, 64, EFFNET),
    (RECALL, "share of real images among the generated ones", "", True, 64, EFFNET),
)
_TEXT = (
    (ALIGNMENT, "cosine of image and caption, emoji captions only", "", True, 1, SHIPPED),
    (R_PRECISION, "own caption nearer than 99 others, emoji captions only", "", True, 1, SHIPPED),
    (CLIP_SCORE, "cosine of image and prompt by CLIP, x100", "", True, 1, "yours: QUANTARENA_CLIP"),
)
_GIVEN = "yours: QUANTARENA_INCEPTION"
_INCEPTION = (
    (FID, "Frechet distance to real images, torchmetrics", "", False, 5000, _GIVEN),
    (CLEAN_FID, "Frechet distance to real images, clean-fid", "", False, 5000, _GIVEN),
    (SFID, "the same on feature maps", "", False, 5000, _GIVEN),
    (INCEPTION_SCORE, "Inception score", "", True, 5000, _GIVEN),
)
_QUALITY_ROWS = (*_QUALITY, *_TEXT, *_INCEPTION)
METRICS = {
    name: MetricInfo(name, title, unit, higher, board, needs, weights)
    for board, rows in (("fidelity", (*_FIDELITY, *_VIDEO)), ("quality", _QUALITY_ROWS))
    for name, title, unit, higher, needs, weights in rows
}
FIDELITY = tuple(row[0] for row in _FIDELITY)
VIDEO = tuple(row[0] for row in _VIDEO)
"""The fidelity metrics that videos alone have."""
QUALITY = tuple(row[0] for row in _QUALITY)
BIASED_RESAMPLES = (FRECHET, RECALL)
"""Metrics that resampling biases, because a resample has fewer distinct images."""
TEXT = tuple(row[0] for row in _TEXT)
INCEPTION = tuple(row[0] for row in _INCEPTION)
IMAGE_PAIRS = (PSNR, SSIM, LPIPS)
"""The fidelity metrics that need two images and nothing else."""
