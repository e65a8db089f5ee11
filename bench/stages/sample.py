"""The stage ``sample``: a cell's images, drawn by its network inside its own pipeline."""

import json
import time
from pathlib import Path

from quantarena.bench.cache import Keyed, StageCache
from quantarena.bench.closure import closure
from quantarena.bench.spec import content_key
from quantarena.bench.stages.fp_images import fp_images, fp_images_key, load_drawn, save_drawn
from quantarena.bench.stages.workspace import Workspace, silent
from quantarena.bench.workloads.sampling import Drawn, Progress, draw_images
from quantarena.methods.core.kernels.native import status
from quantarena.methods.core.network import Network
from quantarena.methods.core.record.announce import announcing


def images_key(workspace: Workspace, network: Network, model_key: str) -> str:
    """Content hash of a cell's images.

    Args:
        workspace: the cell's workload.
        network: the cell's network.
        model_key: key of the model that was packed, or of the rival's network.
    """
    if network.backend == "fp32":
        return fp_images_key(workspace)
    # units of the kernels add floats in other orders, so they draw other images
    content = [model_key, workspace.key(workspace.draw()), network.backend, status().isa]
    return content_key([*content, closure(__name__).key])


def sampled(
    workspace: Workspace,
    network: Network,
    model_key: str,
    cache: StageCache,
    progress: Progress = silent,
) -> Keyed[tuple[Drawn, float]]:
    """The cell's images, and the wall seconds that drawing them took.

    A network in which nothing is quantized has drawn them already: they are full precision's.
    """
    key = images_key(workspace, network, model_key)
    if network.backend == "fp32":
        return Keyed((fp_images(workspace, cache), 0.0), key)

    def make(folder: Path) -> None:
        original = workspace.loaded.denoiser
        workspace.loaded.put(network.module)
        started = time.perf_counter()
        try:
            with announcing(workspace.loaded.pipe.scheduler, network.clock):
                drawn = draw_images(workspace.loaded, workspace.info, workspace.draw(), progress)
        finally:
            workspace.loaded.put(original)
        save_drawn(drawn, folder)
        (folder / "seconds.json").write_text(json.dumps(time.perf_counter() - started))

    def read(folder: Path) -> tuple[Drawn, float]:
        return load_drawn(folder), float(json.loads((folder / "seconds.json").read_text()))

    return Keyed(cache.load("images", key, make, read), key)
