"""One call scores one set of images: what the stage code uses."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from quantarena.bench.metrics.bootstrap import Groups
from quantarena.bench.metrics.fidelity.fidelity import fidelity, summarise
from quantarena.bench.metrics.images import check_pairs
from quantarena.bench.metrics.plugins import plugin_metrics
from quantarena.bench.metrics.quality.effnet import effnet_lite0, extract
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
        measurements: every metric of the catalogue, those without a value included.
        per_image: metric to (N,) float64, in the order of the images; those that were given
            beside may hold the first images only.
        replicates: quality metric to (B,) bootstrap values, where it was computed; those of
            two rows with equal N and seed are paired, so their difference has an interval too.
        warnings: lines worth a reader's attention.
    """

    measurements: tuple[Measurement, ...]
    per_image: dict[str, np.ndarray]
    replicates: dict[str, np.ndarray] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def score(
    fp: Tensor,
    test: Tensor,
    reference: Features | None,
    *,
    beside: Mapping[str, np.ndarray | str] | None = None,
    prompts: Sequence[str] = (),
    real_images: Real | None = None,
    cache_dir: Path | None = None,
    groups: Groups | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    device: str = "cpu",
) -> Scores:
    """Every metric of one set of images.

    The full-precision row is scored by the same call with ``test`` = ``fp``. Its fidelity is
    then perfect (the PSNR cap, SSIM 1, LPIPS 0, intervals without width) and says only that the
    pairing is right; its quality is what the other rows are read against.

    Args:
        fp: full-precision images, uint8 (N, 3, H, W).
        test: images of the same seeds, the same shape.
        reference: real images as features; None leaves the quality metrics without a value.
        beside: fidelity metrics that need more than the images, name to (n,) values of the first
            n images, or the reason why there are none.
        prompts: N texts that the images were drawn from; none where they were not.
        real_images: reads the real images, for the metrics on Inception features.
        cache_dir: where Inception's features are kept.
        groups: prompt of each image. Where prompts repeat they are what is resampled.
        seed: of the bootstrap. Keep it equal over the rows of a table: they then share their
            resamples.
        progress: called with a station's name, images done, images in all.
        device: where the networks run.

    Raises:
        BadImages: not pairs of uint8 images; NaN is named.
        UserError: weights are damaged or a package is missing.
        ValueError: the features are not those of this extractor.
    """
    check_pairs(fp, test)
    n = fp.shape[0]
    warnings: list[str] = []
    if n > 1 and bool((test == test[:1]).all()):
        warnings.append("all test images are equal: the sampler collapsed")

    def report(station: str) -> Callable[[int], None] | None:
        return (lambda done: progress(station, done, n)) if progress else None

    per_image = fidelity(fp, test, device=device, progress=report("lpips"))
    more = beside or {}
    per_image |= {name: values for name, values in more.items() if not isinstance(values, str)}
    reasons = {name: values for name, values in more.items() if isinstance(values, str)}
    found = summarise(per_image, seed=seed, groups=groups, reasons=reasons)
    replicates: dict[str, np.ndarray] = {}
    features = None
    if (reference is not None or prompts) and test.shape[2] == test.shape[3]:
        features = extract(test, effnet_lite0(device), progress=report("features"))
    if reference is None:
        found += not_computed("the workload has no reference images")
    elif features is None:
        reason = f"images of {test.shape[3]}x{test.shape[2]}: the extractor takes square ones"
        found += not_computed(reason, reference.label)
    else:
        warnings += _fitting(reference, test, device)
        real = quality(features, reference, seed=seed, groups=groups)
        found += real.measurements
        replicates = real.replicates
    if prompts:
        texts, values = text_metrics(test, features, prompts, seed=seed, groups=groups)
        found += texts
        per_image |= values
    else:
        found += without_prompts()
    plugged, values = plugin_metrics(test, prompts, seed=seed, groups=groups)
    found += plugged
    per_image |= values
    if real_images is None:
        found += without_images("the workload has no reference images")
    else:
        papers, more_replicates = paper_metrics(
            test, real_images, cache_dir=cache_dir, seed=seed, groups=groups
        )
        found += papers
        replicates |= more_replicates
    return Scores(found, per_image, replicates, tuple(warnings))


def _fitting(reference: Features, test: Tensor, device: str) -> list[str]:
    """What a reader of the distances should know. Raises ValueError for another network's."""
    extractor = effnet_lite0(device)
    if (reference.extractor, reference.extractor_sha256) != (extractor.name, extractor.sha256):
        raise ValueError(f"reference features are of {reference.extractor}, not of this network")
    if reference.size == test.shape[2]:
        return []
    return [
        f"reference images are {reference.size} px, generated ones {test.shape[2]} px: "
        "part of the distance is the resize"
    ]
