"""Floors: how far full precision is from itself, and real images from real images.

Differences below a floor are no differences between methods. Full precision's row carries them,
as measurements of the board ``floor``.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quantarena.bench.cache import StageCache
from quantarena.bench.closure import closure
from quantarena.bench.metrics.bootstrap import Array, Groups
from quantarena.bench.metrics.fidelity.fidelity import summarise
from quantarena.bench.metrics.fidelity.last_latents import watching
from quantarena.bench.metrics.fidelity.noise_error import predictions, sqnr
from quantarena.bench.metrics.fidelity.videos import video_fidelity
from quantarena.bench.metrics.names import LPIPS, SQNR
from quantarena.bench.metrics.quality.features import Features, halves
from quantarena.bench.metrics.quality.set_distance import quality
from quantarena.bench.schema import Measurement
from quantarena.bench.scores import FLOOR, FLOOR_SEED
from quantarena.bench.spec import content_key
from quantarena.bench.stages.closeness import latent_distance, probe
from quantarena.bench.stages.fp_images import fp_images
from quantarena.bench.stages.latents import fp_latents
from quantarena.bench.stages.workspace import Workspace, silent
from quantarena.bench.workloads.sampling import Progress, draw_images

BOARD = "floor"
ROUNDED, OTHER_SEED, HALVES = "bf16", "seed", "halves"
PREFIX = {ROUNDED: FLOOR, OTHER_SEED: FLOOR_SEED}
"""Of the per-image numbers in the scores file of full precision's row."""
REFERENCES = {
    ROUNDED: "fp, weights rounded to bfloat16",
    OTHER_SEED: "fp, same prompts and other noise",
}
HALF_OF = "half of "
"""What floors state that they compare with; the halves are of a set of real images."""
NEGLIGIBLE = 2e-3
"""Share of the distance between images of different noise below which a distance means nothing.

Arithmetic in bfloat16 rounds activations too, so it is from 2 to 24 times as far as ``rounded``. On
emoji-t2i and emoji-dit that is 2e-4 to 1.1e-3 of the distance between two seeds; rounding to
nearest at w8a8 is at 4e-3.
"""
SEED_IMAGES = 16
"""Images of another seed: they show a scale, a few are enough."""


def rounded(
    workspace: Workspace, cache: StageCache, progress: Progress = silent
) -> dict[str, Array]:
    """How far full precision is from itself with its weights in bfloat16, image by image.

    Rounding weights to bf16 is what people ship without a second thought; a method whose distance
    lies inside this one is tied with full precision.

    Returns:
        Fidelity metric to (n,) values of the first n images.
    """
    draw = workspace.draw()

    def make(folder: Path) -> None:
        reference, last = fp_latents(workspace, cache)
        seen = probe(workspace, cache)
        original = workspace.loaded.denoiser
        other = _bf16_weights(original)
        workspace.loaded.put(other)
        try:
            with watching(workspace.loaded.pipe.scheduler, draw.count, draw.batch) as latents:
                drawn = draw_images(workspace.loaded, workspace.info, draw, progress)
        finally:
            workspace.loaded.put(original)
        found = video_fidelity(
            reference.images, drawn.images, drawn.frames, device=str(workspace.device)
        )
        with workspace.evaluating(other):
            answers = predictions(other, seen.recorded)
        found[SQNR] = sqnr(seen.predictions, answers, seen.recorded.halves).mean(0)
        found |= latent_distance(last, latents.tensor)
        _save(found, folder)

    return _cached(cache, "floor", content_key([workspace.key(draw), closure(__name__).key]), make)


def other_seed(
    workspace: Workspace, cache: StageCache, progress: Progress = silent
) -> dict[str, Array]:
    """How far images of the same prompts from other noise are: as far as any image is.

    A method that is no nearer than this has kept nothing of the image.

    Returns:
        Image metric to (n,) values of the first n images.
    """
    draw = workspace.draw()
    draw = replace(draw, seed=workspace.seed + 1, count=min(SEED_IMAGES, draw.count))

    def make(folder: Path) -> None:
        drawn = draw_images(workspace.loaded, workspace.info, draw, progress)
        reference = fp_images(workspace, cache).images[: len(drawn.images)]
        found = video_fidelity(reference, drawn.images, drawn.frames, device=str(workspace.device))
        _save(found, folder)

    key = content_key([workspace.key(workspace.draw()), workspace.key(draw), closure(__name__).key])
    return _cached(cache, "seedfloor", key, make)


def arrays(found: Mapping[str, Mapping[str, Array]]) -> dict[str, Array]:
    """Per-image numbers by the names that a scores file gives them."""
    return {
        PREFIX[kind] + name: values
        for kind, metrics in found.items()
        for name, values in metrics.items()
    }


def measurements(
    found: Mapping[str, Mapping[str, Array]],
    real: Features | None,
    images: int,
    *,
    seed: int = 0,
    groups: Groups | None = None,
) -> tuple[Measurement, ...]:
    """All floors as measurements, named ``floor/KIND/METRIC``.

    Args:
        found: by kind, fidelity metric to values by image.
        real: the real images; a half of them, ``images`` of it at most, is scored against the
            other half.
        images: generated images of a cell.
        seed: of the resamples and of the split.
        groups: prompt of each image, where prompts repeat.
    """
    floors = [
        _renamed(m, kind, REFERENCES[kind])
        for kind, metrics in found.items()
        for m in summarise(metrics, seed=seed, groups=groups)
    ]
    if real is not None and len(real.tensor) >= 4:
        test, other = halves(real, images, seed)
        scored = quality(test, other, seed=seed).measurements
        floors += [_renamed(m, HALVES, HALF_OF + real.label) for m in scored]
    return tuple(m for m in floors if m.value is not None)


def tied(scored: Sequence[Measurement], own: Mapping[str, Array]) -> str | None:
    """A line where a cell is as near to full precision as full precision's rounded self.

    Args:
        scored: the cell's measurements.
        own: ``rounded`` of its workload.
    """
    found = next((m for m in scored if m.name == LPIPS and m.value is not None), None)
    if found is None or LPIPS not in own:
        return None
    limit = float(own[LPIPS].mean())
    low = found.value if found.low is None else found.low
    if low is None or low > limit:
        return None
    return (
        f"tied with full precision: its {LPIPS} of {found.value:.3g}, from {low:.3g} on, reaches "
        f"into the {limit:.3g} that rounding full precision's weights to bfloat16 makes"
    )


def beyond_own_margin(
    scored: Sequence[Measurement], own: Mapping[str, Array], other: Mapping[str, Array]
) -> str | None:
    """Why images of an unquantized setting may not stand for full precision's; None if they may.

    They may where they are tied with full precision's rounded self, and where their distance is
    negligible beside that of other noise.

    Args:
        scored: the setting's measurements.
        own: ``rounded`` of its workload.
        other: ``other_seed`` of its workload.
    """
    if tied(scored, own):
        return None
    value = next((m.value for m in scored if m.name == LPIPS), None)
    if value is None or LPIPS not in other:
        return f"its {LPIPS} to full precision is not known"
    limit = NEGLIGIBLE * float(other[LPIPS].mean())
    if value <= limit:
        return None
    return f"its {LPIPS} to full precision is {value:.2g}, beyond full precision's own {limit:.2g}"


def _renamed(found: Measurement, kind: str, reference: str) -> Measurement:
    name = f"floor/{kind}/{found.name}"
    return replace(found, name=name, board=BOARD, reference=reference)


def _bf16_weights(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).float()
    return other


def _save(found: Mapping[str, Array], folder: Path) -> None:
    tensors = {name: torch.from_numpy(values) for name, values in found.items()}
    save_file(tensors, folder / "floor.safetensors")


def _cached(
    cache: StageCache, stage: str, key: str, make: Callable[[Path], None]
) -> dict[str, Array]:
    def read(folder: Path) -> dict[str, Array]:
        kept: dict[str, Tensor] = load_file(folder / "floor.safetensors")
        return {name: values.numpy() for name, values in kept.items()}

    return cache.load(stage, key, make, read)
