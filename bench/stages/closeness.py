"""Closeness to full precision inside the sampler: noise errors by call, and the last latents."""

from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from quantarena.bench.cache import StageCache
from quantarena.bench.closure import closure
from quantarena.bench.metrics.bootstrap import Array
from quantarena.bench.metrics.fidelity.last_latents import latent_mse
from quantarena.bench.metrics.fidelity.noise_error import PROBE_IMAGES, predictions, sqnr
from quantarena.bench.metrics.names import LATENT, SQNR
from quantarena.bench.scores import CURVE
from quantarena.bench.spec import content_key
from quantarena.bench.stages.record import record, recorded_in, trajectory_key
from quantarena.bench.stages.workspace import Workspace, silent
from quantarena.bench.workloads.sampling import Progress
from quantarena.methods.core.network import Network
from quantarena.methods.core.record.trajectory import Trajectory


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """Full precision's calls on the first evaluation images, and its answers.

    Attributes:
        recorded: the calls.
        predictions: as ``noise_error.predictions`` gives them.
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
        record(workspace, draw, folder, progress)
        with workspace.evaluating(workspace.loaded.denoiser):
            answers = predictions(workspace.loaded.denoiser, recorded_in(folder))
        save_file({"predictions": answers}, folder / "predictions.safetensors")

    def read(folder: Path) -> Probe:
        answers = load_file(folder / "predictions.safetensors")["predictions"]
        return Probe(recorded_in(folder), answers)

    key = content_key([trajectory_key(workspace, draw), closure(__name__).key])
    return cache.load("probe", key, make, read)


def closeness(
    network: Network, seen: Probe, fp_last: Tensor | None, last: Tensor | None
) -> tuple[dict[str, Array | str], dict[str, Array]]:
    """Closeness to full precision inside the sampler.

    Args:
        network: the cell's network.
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
        answers = predictions(network.module, seen.recorded, network.clock.at)
        by_call = sqnr(seen.predictions, answers, seen.recorded.halves)
        found[SQNR], curve[CURVE + SQNR] = by_call.mean(0), by_call
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
