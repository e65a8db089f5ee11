"""The stage ``score``: every metric of one set of images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from quantarena.bench.metrics.bootstrap import Groups
from quantarena.bench.metrics.fidelity.fidelity import summarise
from quantarena.bench.metrics.fidelity.videos import video_fidelity
from quantarena.bench.metrics.images import check_pairs
from quantarena.bench.metrics.plugins import plugin_metrics
from quantarena.bench.metrics.quality.effnet import effnet_lite0
from quantarena.bench.metrics.quality.extractor import extract
from quantarena.bench.metrics.quality.features import Features
from quantarena.bench.metrics.quality.inception_scores import Real, paper_metrics, without_images
from quantarena.bench.metrics.quality.set_distance import not_computed, quality
from quantarena.bench.metrics.text.text import text_metrics, without_prompts
from quantarena.bench.schema import Measurement

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """The numbers of one set of images.

    Attributes:
        measurements: one for each metric, also for those without a value.
        per_image: metric to (N,) float64, in the order of the images; values from
            ``ScoreInputs.beside`` may be those of the first images only.
        replicates: quality metric to (B,) bootstrap values, where it was computed. Those of two
            rows with equal N and seed are paired, so their difference has an interval too.
        warnings: lines for the reader of the row.
    """

    measurements: tuple[Measurement, ...]
    per_image: dict[str, np.ndarray]
    replicates: dict[str, np.ndarray] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class ScoreInputs:
    """One set of images, and what it is compared with.

    Attributes:
        fp: full-precision images, uint8 (N, 3, H, W).
        test: images of the same seeds, the same shape.
        reference: features of real images; without them the quality metrics have no value.
        beside: fidelity metrics that need more than the images: name to (n,) values of the first n
            images, or the reason why there are none.
        prompts: the N prompts that the images were drawn from; empty for other workloads.
        real_images: reads the real images, for the metrics on Inception features.
        cache_dir: folder that keeps Inception features.
        groups: prompt of each image. Where prompts repeat, whole prompts are resampled.
        frames: frames of each video; 0 for images. ``fp`` and ``test`` then hold the frames of all
            videos one after the other, N x F, and N is the number of videos.
        seed: seed of the bootstrap. Rows of a table must have the same seed: then they share their
            resamples.
    """

    fp: Tensor
    test: Tensor
    reference: Features | None
    beside: Mapping[str, np.ndarray | str] = field(default_factory=dict)
    prompts: Sequence[str] = ()
    real_images: Real | None = None
    cache_dir: Path | None = None
    groups: Groups | None = None
    seed: int = 0
    frames: int = 0


def score(inputs: ScoreInputs, *, progress: Progress | None = None, device: str = "cpu") -> Scores:
    """Compute every metric of one set of images.

    The full-precision row is scored by the same call, with its images as ``fp`` and ``test``. Its
    fidelity is then perfect (the PSNR cap, SSIM 1, LPIPS 0, intervals of no width) and only shows
    that the pairs are right; its quality is what other rows are compared with.

    Args:
        inputs: the images and what they are compared with.
        progress: called with (metric or stage, images done, all images).
        device: where the networks run.

    Raises:
        BadImages: the images are not pairs of uint8 images; NaN is named.
        UserError: weights are damaged or a package is missing.
        ValueError: the features are those of another extractor.
    """
    check_pairs(inputs.fp, inputs.test)
    count = len(inputs.test) // max(1, inputs.frames)

    def report(stage: str) -> Callable[[int], None] | None:
        return (lambda done: progress(stage, done, count)) if progress else None

    pairs = _pair_scores(inputs, device, report("lpips"))
    if inputs.frames:
        return _joined((pairs, _of_videos()))
    features = _square_features(inputs, device, report("features"))
    return _joined(
        (
            pairs,
            _set_scores(inputs, features, device),
            _text_scores(inputs, features),
            _plugin_scores(inputs),
            _inception_scores(inputs),
        )
    )


def _pair_scores(
    inputs: ScoreInputs, device: str, progress: Callable[[int], None] | None
) -> Scores:
    """The fidelity metrics: image by image against full precision."""
    values = video_fidelity(inputs.fp, inputs.test, inputs.frames, device=device, progress=progress)
    values |= {name: v for name, v in inputs.beside.items() if not isinstance(v, str)}
    reasons = {name: v for name, v in inputs.beside.items() if isinstance(v, str)}
    measured = summarise(values, seed=inputs.seed, groups=inputs.groups, reasons=reasons)
    equal = len(inputs.test) > 1 and bool((inputs.test == inputs.test[:1]).all())
    warnings = ("all test images are equal: the sampler collapsed",) if equal else ()
    return Scores(measured, values, warnings=warnings)


def _of_videos() -> Scores:
    """Why videos have no other metrics than those of pairs."""
    reason = "the workload draws videos, whose frames are no independent images"
    measured = (*not_computed(reason), *without_prompts(reason), *without_images(reason))
    return Scores(measured, {})


def _square_features(
    inputs: ScoreInputs, device: str, progress: Callable[[int], None] | None
) -> Tensor | None:
    """Features of the test images, (N, D); None if no metric needs them or can have them."""
    square = inputs.test.shape[2] == inputs.test.shape[3]
    if not square or (inputs.reference is None and not inputs.prompts):
        return None
    return extract(inputs.test, effnet_lite0(device), progress=progress)


def _set_scores(inputs: ScoreInputs, features: Tensor | None, device: str) -> Scores:
    """The quality metrics: the whole set against real images."""
    reference = inputs.reference
    if reference is None:
        return Scores(not_computed("the workload has no reference images"), {})
    if features is None:
        height, width = inputs.test.shape[2:]
        reason = f"images of {width}x{height}: the extractor takes square ones"
        return Scores(not_computed(reason, reference.label), {})
    warnings = tuple(_fitting(reference, inputs.test, device))
    quality_scores = quality(features, reference, seed=inputs.seed, groups=inputs.groups)
    return Scores(quality_scores.measurements, {}, quality_scores.replicates, warnings)


def _text_scores(inputs: ScoreInputs, features: Tensor | None) -> Scores:
    """The text metrics: each image against its prompt."""
    if not inputs.prompts:
        return Scores(without_prompts(), {})
    measured, values = text_metrics(
        inputs.test, features, inputs.prompts, seed=inputs.seed, groups=inputs.groups
    )
    return Scores(measured, values)


def _plugin_scores(inputs: ScoreInputs) -> Scores:
    """The metrics of plug-ins."""
    measured, values = plugin_metrics(
        inputs.test, inputs.prompts, seed=inputs.seed, groups=inputs.groups
    )
    return Scores(measured, values)


def _inception_scores(inputs: ScoreInputs) -> Scores:
    """The papers' metrics on Inception features."""
    if inputs.real_images is None:
        return Scores(without_images("the workload has no reference images"), {})
    measured, replicates = paper_metrics(
        inputs.test,
        inputs.real_images,
        cache_dir=inputs.cache_dir,
        seed=inputs.seed,
        groups=inputs.groups,
    )
    return Scores(measured, {}, replicates)


def _joined(parts: Sequence[Scores]) -> Scores:
    """All scores of one set of images as one."""
    per_image: dict[str, np.ndarray] = {}
    replicates: dict[str, np.ndarray] = {}
    for part in parts:
        per_image |= part.per_image
        replicates |= part.replicates
    return Scores(
        tuple(one for part in parts for one in part.measurements),
        per_image,
        replicates,
        tuple(line for part in parts for line in part.warnings),
    )


def _fitting(reference: Features, test: Tensor, device: str) -> list[str]:
    """Warnings for readers of the distances. Raises ValueError for another network's features."""
    extractor = effnet_lite0(device)
    if (reference.extractor, reference.extractor_sha256) != (extractor.name, extractor.sha256):
        raise ValueError(f"reference features are of {reference.extractor}, not of this network")
    if reference.size == test.shape[2]:
        return []
    return [
        f"reference images are {reference.size} px, generated ones {test.shape[2]} px: "
        "part of the distance is the resize"
    ]
