"""Closeness to full precision inside the sampler: what cells share, and a cell's own part."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from quantarena.bench.cache import StageCache
from quantarena.bench.code_hash import package_sha256
from quantarena.bench.metrics.bootstrap import Array
from quantarena.bench.metrics.fidelity.last_latents import latent_mse, watching
from quantarena.bench.metrics.fidelity.noise_error import PROBE_IMAGES, predictions, sqnr
from quantarena.bench.metrics.names import LATENT, SQNR
from quantarena.bench.spec import content_key
from quantarena.bench.stages import ground
from quantarena.bench.stages.ground import Workspace, silent
from quantarena.bench.workloads.sampling import Drawn, Progress
from quantarena.methods.core.packed.pack import PackedModel
from quantarena.methods.core.record.trajectory import Trajectory


def last_latents(
    workspace: Workspace, cache: StageCache, key: Callable[[], str], draw: Callable[[], Drawn]
) -> tuple[Drawn, Tensor | None]:
    """Images, and what the sampler returned last for the first of them.

    Args:
        workspace: its sampler is watched.
        cache: where ``draw`` keeps its images, and this function the latents.
        key: of the images, once they are drawn.
        draw: gives the images, from the cache where they are there.

    Returns:
        The images; latents float32 (n, C, ...), None where the sampler cannot be watched.
    """
    asked = workspace.draw()
    scheduler = workspace.loaded.pipe.scheduler
    with watching(scheduler, asked.count, asked.batch) as seen:
        drawn = draw()
    found = seen.tensor

    def make(folder: Path) -> None:
        latents = found
        if latents is None:  # images of a run that was stopped before it kept these
            cache.drop("images", key())
            with watching(scheduler, asked.count, asked.batch) as again:
                draw()
            latents = again.tensor
        kept = {} if latents is None else {"latents": latents.contiguous()}
        save_file(kept, folder / "latents.safetensors")

    def read(folder: Path) -> Tensor | None:
        kept: dict[str, Tensor] = load_file(folder / "latents.safetensors")
        return kept.get("latents")

    return drawn, cache.load("latents", key(), make, read)


def fp_latents(
    workspace: Workspace, cache: StageCache, progress: Progress = silent
) -> tuple[Drawn, Tensor | None]:
    """``fp_images``, and the last latents of the first of them."""
    return last_latents(
        workspace,
        cache,
        lambda: workspace.key(workspace.draw()),
        lambda: ground.fp_images(workspace, cache, progress),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """Full precision's calls on the first evaluation images, and its answers.

    Attributes:
        recorded: the calls.
        predictions: as ``metrics.steps.predictions`` gives them.
    """

    recorded: Trajectory
    predictions: Tensor


def probe(workspace: Workspace, cache: StageCache, progress: Progress = silent) -> Probe:
    """What the noise predictions of all cells are compared with.

    Evaluation noise: no method has seen it. The noise of an image does not depend on how many are
    drawn, so these are the first calls of the images that are scored.
    """
    draw = workspace.draw()
    draw = replace(draw, count=min(PROBE_IMAGES, draw.count))

    def make(folder: Path) -> None:
        ground.record(workspace, draw, folder, progress)
        answers = predictions(workspace.loaded.denoiser, ground.recorded_in(folder))
        save_file({"predictions": answers}, folder / "predictions.safetensors")

    def read(folder: Path) -> Probe:
        answers = load_file(folder / "predictions.safetensors")["predictions"]
        return Probe(ground.recorded_in(folder), answers)

    code = package_sha256("quantarena.bench.metrics.fidelity.noise_error")
    key = content_key([ground.trajectory_key(workspace, draw=draw), code])
    return cache.load("probe", key, make, read)


def closeness(
    packed: PackedModel, seen: Probe, fp_last: Tensor | None, last: Tensor | None
) -> tuple[dict[str, Array | str], dict[str, Array]]:
    """Closeness to full precision inside the sampler.

    Args:
        packed: the cell's network.
        seen: full precision's calls and answers.
        fp_last: full precision's last latents.
        last: the cell's.

    Returns:
        By metric, values of the first images or why there are none; and the curve by sampler
        call, (S, images) in dB, under ``curve:noise-sqnr``.
    """
    found: dict[str, Array | str] = {}
    curve: dict[str, Array] = {}
    try:
        answers = predictions(packed.module, seen.recorded, packed.clock.at)
        by_call = sqnr(seen.predictions, answers, seen.recorded.halves)
        found[SQNR], curve[f"curve:{SQNR}"] = by_call.mean(0), by_call
    except ValueError as error:
        found[SQNR] = str(error)
    found[LATENT] = "the sampler does not say what its steps return"
    found |= latent_distance(fp_last, last)
    return found, curve


def latent_distance(fp_last: Tensor | None, last: Tensor | None) -> dict[str, Array]:
    """``latent_mse`` by its name; nothing where a sampler could not be watched."""
    if fp_last is None or last is None:
        return {}
    return {LATENT: latent_mse(fp_last, last)}
