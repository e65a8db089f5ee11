"""The stage ``score``: a cell's images against full precision's and against real ones."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from quantarena.bench.cache import StageCache
from quantarena.bench.content import bytes_sha256, listing_sha256
from quantarena.bench.metrics.image_folder import save_folder, save_videos
from quantarena.bench.metrics.wrecked import damage
from quantarena.bench.schema import Measurement
from quantarena.bench.scores import REPLICATES, UNITS
from quantarena.bench.spec import Cell
from quantarena.bench.stages import floors
from quantarena.bench.stages.closeness import closeness, probe
from quantarena.bench.stages.quantize import Progress
from quantarena.bench.stages.real_images import read_reference, real_images
from quantarena.bench.stages.score import ScoreInputs, score
from quantarena.bench.stages.workspace import Workspace, evaluation_prompts, prompt_groups
from quantarena.bench.workloads.sampling import Drawn
from quantarena.methods.core.network import Network

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Drawings:
    """A cell's network and images beside full precision's.

    Attributes:
        network: the cell's.
        reference: full precision's images.
        reference_latents: what its sampler returned last; None where it cannot be watched.
        drawn: the cell's images.
        latents: what the cell's sampler returned last, likewise.
    """

    network: Network
    reference: Drawn
    reference_latents: Tensor | None
    drawn: Drawn
    latents: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class CellScores:
    """All numbers of a cell's images.

    Attributes:
        measurements: one for each metric.
        arrays: what the scores file holds, by name.
        warnings: lines for the row.
    """

    measurements: tuple[Measurement, ...]
    arrays: dict[str, Array]
    warnings: tuple[str, ...]


def score_cell(
    cell: Cell, workspace: Workspace, drawings: Drawings, cache: StageCache, progress: Progress
) -> CellScores:
    """Score a cell's images; full precision's row carries the floors as well."""
    drawn = drawings.drawn
    seen = probe(workspace, cache)
    with workspace.evaluating(drawings.network.module):
        beside, curve = closeness(
            drawings.network, seen, drawings.reference_latents, drawings.latents
        )
    groups = prompt_groups(workspace.info, drawn.count)
    real, changed = read_reference(workspace, cache)
    inputs = ScoreInputs(
        drawings.reference.images,
        drawn.images,
        real,
        beside=beside,
        prompts=evaluation_prompts(workspace.info, drawn.count),
        real_images=partial(real_images, workspace) if workspace.info.reference else None,
        cache_dir=cache.root,
        groups=groups,
        seed=cell.seed,
        frames=drawn.frames,
    )
    scores = score(inputs, progress=progress, device=str(workspace.device))
    arrays: dict[str, Array] = dict(scores.per_image) | curve
    arrays |= {REPLICATES + name: values for name, values in scores.replicates.items()}
    if groups is not None:
        arrays[UNITS] = np.array(groups, np.float64)
    measurements, warnings = scores.measurements, (*scores.warnings, *changed)
    if wrong := damage(_one_each(drawings.reference), drawings.reference_latents):
        warnings = (
            f"full precision looks damaged: {wrong}; no score of this workload means anything",
            *warnings,
        )
    rounded = floors.rounded(workspace, cache)
    if cell.method == "fp":
        known = {floors.ROUNDED: rounded, floors.OTHER_SEED: floors.other_seed(workspace, cache)}
        arrays |= floors.arrays(known)
        measurements += floors.measurements(
            known, None if drawn.frames else real, drawn.count, seed=cell.seed, groups=groups
        )
    elif line := floors.tied(scores.measurements, rounded):
        warnings = (line, *warnings)
    return CellScores(measurements, arrays, warnings)


def _one_each(drawn: Drawn) -> Tensor:
    """Images, or the first frame of each video: later ones may well be alike."""
    return drawn.images[:: max(1, drawn.frames)]


def keep(cell: Cell, drawn: Drawn, arrays: dict[str, Array], results: Path) -> dict[str, str]:
    """Write pictures and scores of a cell; returns their places below ``results``, and hashes.

    The hashes tie the row to these files, wherever it travels: ``bench/share`` checks them.
    """
    images, scores = f"images/{cell.key}", f"scores/{cell.key}.npz"
    if drawn.frames:
        save_videos(drawn.images, drawn.frames, results / images)
    else:
        save_folder(drawn.images, results / images)
    names = (f"{number:04d}.png" for number in range(drawn.count))
    pictures = {name: bytes_sha256(results / images / name) for name in names}
    (results / "scores").mkdir(parents=True, exist_ok=True)
    draft = results / "scores" / f".{cell.key}.npz"
    plain: dict[str, Any] = {k: np.asarray(v, np.float64) for k, v in arrays.items()}
    np.savez_compressed(draft, **plain)
    draft.replace(results / scores)
    return {
        "images": images,
        "images_sha256": listing_sha256(pictures),
        "scores": scores,
        "scores_sha256": bytes_sha256(results / scores),
    }
