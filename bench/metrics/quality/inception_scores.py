"""The metrics of papers on Inception features: FID, sFID and IS, from 5,000 images on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from quantarena.bench.errors import UserError
from quantarena.bench.metrics.bootstrap import Array, Groups, interval
from quantarena.bench.metrics.measurement import unmeasured
from quantarena.bench.metrics.names import (
    CLEAN_FID,
    FID,
    INCEPTION,
    INCEPTION_SCORE,
    METRICS,
    SFID,
)
from quantarena.bench.metrics.quality import fid
from quantarena.bench.metrics.quality.features import images_sha256
from quantarena.bench.metrics.quality.inception import responses
from quantarena.bench.metrics.quality.inception_weights import (
    Tool,
    clean_fid_tool,
    given_folder,
    torchmetrics_tool,
)
from quantarena.bench.metrics.quality.kid import Estimate
from quantarena.bench.schema import Measurement

Real = Callable[[], Tensor]
"""A function that reads the real images, uint8 (M, 3, S, S). Raises UserError if it cannot."""


def without_images(reason: str) -> tuple[Measurement, ...]:
    """Measurements without a value, one for each metric of this module."""
    return tuple(unmeasured(METRICS[name], reason) for name in INCEPTION)


def paper_metrics(
    test: Tensor,
    real: Real,
    *,
    cache_dir: Path | None = None,
    seed: int = 0,
    groups: Groups | None = None,
) -> tuple[tuple[Measurement, ...], dict[str, Array]]:
    """FID by two tools, sFID and IS, or the reason why images or weights are missing.

    Args:
        test: generated images, uint8 (N, 3, S, S).
        real: reads the real images; called only if there are enough generated images.
        cache_dir: folder that keeps features.
        seed: seed of the resamples.
        groups: prompt of each image, if prompts repeat.

    Returns:
        The measurements, and bootstrap values by metric.
    """
    least = METRICS[FID].needs
    if len(test) < least:
        reason = f"needs at least {least:,} generated images, there are {len(test):,}"
        return without_images(reason), {}
    tools = {
        CLEAN_FID: clean_fid_tool(given_folder()),
        **dict.fromkeys((FID, SFID, INCEPTION_SCORE), torchmetrics_tool(given_folder())),
    }
    images: Tensor | str
    try:
        images = real() if any(isinstance(tool, Tool) for tool in tools.values()) else test[:0]
    except UserError as error:
        images = error.message
    measured, replicates = [], {}
    for name in INCEPTION:
        tool = tools[name]
        if isinstance(tool, str):
            measured.append(unmeasured(METRICS[name], tool))
            continue
        estimate = _estimate(name, test, images, tool, cache_dir, seed, groups)
        if isinstance(estimate, str):
            measured.append(unmeasured(METRICS[name], estimate))
            continue
        low, high = interval(estimate.replicates)
        reference = "" if isinstance(images, str) or name == INCEPTION_SCORE else _label(images)
        one = unmeasured(METRICS[name], None, reference)
        measured.append(
            replace(
                one,
                value=estimate.value,
                low=low,
                high=high,
                n=len(test),
                impl=f"{tool.version}, N = {len(test):,}, torch {torch.__version__}",
                extractor_sha256=tool.sha256,
            )
        )
        replicates[name] = estimate.replicates
    return tuple(measured), replicates


def _estimate(
    name: str,
    test: Tensor,
    real: Tensor | str,
    tool: Tool,
    cache_dir: Path | None,
    seed: int,
    groups: Groups | None,
) -> Estimate | str:
    if name == INCEPTION_SCORE:
        logits = responses(test, tool, cache_dir)["logits"]
        value = fid.inception_score(logits, seed)
        spread = fid.score_replicates(logits, seed=seed, groups=groups)
        return fid.centred(value, spread)
    if isinstance(real, str):
        return real
    least = METRICS[name].needs
    if len(real) < least:
        return f"needs at least {least:,} reference images, there are {len(real):,}"
    key = "spatial" if name == SFID else "pool"
    x, y = (responses(images, tool, cache_dir)[key] for images in (test, real))
    distance = fid.clean_fid if name == CLEAN_FID else fid.torchmetrics_fid
    spread = fid.frechet_replicates(x, y, seed=seed, groups=groups)
    return fid.centred(distance(x, y), np.asarray(spread))


def _label(images: Tensor) -> str:
    return f"sha256:{images_sha256(images)[:12]} n={len(images)}"
