"""Full precision's own answers on the first evaluation images, for noise errors by sampler call."""

from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from quantarena.bench.cache import StageCache
from quantarena.bench.closure import closure
from quantarena.bench.metrics.fidelity.noise_error import PROBE_IMAGES, predictions
from quantarena.bench.spec import content_key
from quantarena.bench.stages.record import record, recorded_in, trajectory_key
from quantarena.bench.stages.workspace import Workspace, silent
from quantarena.bench.workloads.sampling import Progress
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
        answers = predictions(workspace.loaded.denoiser, recorded_in(folder))
        save_file({"predictions": answers}, folder / "predictions.safetensors")

    def read(folder: Path) -> Probe:
        answers = load_file(folder / "predictions.safetensors")["predictions"]
        return Probe(recorded_in(folder), answers)

    key = content_key([trajectory_key(workspace, draw), closure(__name__).key])
    return cache.load("probe", key, make, read)
