"""The images of full precision, which every other cell of a workload is compared with."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from quantarena.bench.cache import StageCache
from quantarena.bench.closure import closure
from quantarena.bench.spec import content_key
from quantarena.bench.stages.workspace import Workspace, silent
from quantarena.bench.workloads.sampling import FULL_PRECISION, Drawn, Progress, draw_images


def fp_images(workspace: Workspace, cache: StageCache, progress: Progress = silent) -> Drawn:
    """The full-precision images of the evaluation seeds."""
    draw = workspace.draw()

    def make(folder: Path) -> None:
        drawn = draw_images(
            workspace.loaded, workspace.info, draw, progress, network=FULL_PRECISION
        )
        save_drawn(drawn, folder)

    return cache.load("images", fp_images_key(workspace), make, load_drawn)


def fp_images_key(workspace: Workspace) -> str:
    """Content hash of the full-precision images."""
    return content_key([workspace.key(workspace.draw()), closure(__name__).key])


def save_drawn(drawn: Drawn, folder: Path) -> None:
    """Keep images and the fingerprint of their noise."""
    save_file({"images": drawn.images}, folder / "images.safetensors")
    (folder / "noise.json").write_text(
        json.dumps({"sha256": drawn.noise_sha256, "frames": drawn.frames})
    )


def load_drawn(folder: Path) -> Drawn:
    """Read what ``save_drawn`` kept."""
    images = load_file(folder / "images.safetensors")["images"]
    noted = json.loads((folder / "noise.json").read_text())
    return Drawn(images, noted["sha256"], noted["frames"])
