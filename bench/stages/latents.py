"""The latents that a sampler returned last, kept beside the images that were made of them."""

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from quantarena.bench.cache import StageCache
from quantarena.bench.closure import closure
from quantarena.bench.metrics.fidelity.last_latents import watching
from quantarena.bench.spec import content_key
from quantarena.bench.stages.fp_images import fp_images, fp_images_key
from quantarena.bench.stages.workspace import Workspace, silent
from quantarena.bench.workloads.sampling import Drawn, Progress


def last_latents(
    workspace: Workspace, cache: StageCache, images_key: str, draw: Callable[[], Drawn]
) -> tuple[Drawn, Tensor | None]:
    """Images, and what the sampler returned last for the first of them.

    Args:
        workspace: its sampler is watched.
        cache: where ``draw`` keeps its images, and this function the latents.
        images_key: key of the images.
        draw: gives the images, from the cache where they are there.

    Returns:
        The images; latents float32 (n, C, ...), None where the sampler cannot be watched.
    """
    asked = workspace.draw()
    scheduler = workspace.loaded.pipe.scheduler
    with watching(scheduler, asked.count, asked.batch) as watched:
        drawn = draw()
    first = watched.tensor

    def make(folder: Path) -> None:
        latents = first
        if latents is None:  # images of a run that was stopped before it kept these
            cache.drop("images", images_key)
            with watching(scheduler, asked.count, asked.batch) as again:
                draw()
            latents = again.tensor
        tensors = {} if latents is None else {"latents": latents.contiguous()}
        save_file(tensors, folder / "latents.safetensors")

    def read(folder: Path) -> Tensor | None:
        tensors: dict[str, Tensor] = load_file(folder / "latents.safetensors")
        return tensors.get("latents")

    key = content_key([images_key, closure(__name__).key])
    return drawn, cache.load("latents", key, make, read)


def fp_latents(
    workspace: Workspace, cache: StageCache, progress: Progress = silent
) -> tuple[Drawn, Tensor | None]:
    """``fp_images``, and the last latents of the first of them."""
    return last_latents(
        workspace,
        cache,
        fp_images_key(workspace),
        lambda: fp_images(workspace, cache, progress),
    )
