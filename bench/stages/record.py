"""The stage ``record``: the network calls of the full-precision sampler, for calibration."""

from pathlib import Path

from quantarena.bench.cache import StageCache
from quantarena.bench.closure import closure
from quantarena.bench.spec import content_key
from quantarena.bench.stages.workspace import Workspace, silent
from quantarena.bench.workloads.sampling import FULL_PRECISION, Draw, Progress, draw_images
from quantarena.methods.core.record.recorder import recording
from quantarena.methods.core.record.trajectory import Trajectory


def trajectory(workspace: Workspace, cache: StageCache, progress: Progress = silent) -> Trajectory:
    """The full-precision sampler's network calls on the calibration images."""
    draw = workspace.draw(calibration=True)

    def make(folder: Path) -> None:
        record(workspace, draw, folder, progress)

    return cache.load("trajectory", trajectory_key(workspace, draw), make, recorded_in)


def trajectory_key(workspace: Workspace, draw: Draw) -> str:
    """Content hash of the calls that are recorded while ``draw`` is drawn."""
    return content_key([workspace.key(draw), closure(__name__).key])


def record(workspace: Workspace, draw: Draw, folder: Path, progress: Progress) -> None:
    """Draw images at full precision and keep the network's calls in ``folder``."""
    loaded = workspace.loaded
    with recording(loaded.denoiser, loaded.pipe.scheduler, folder=folder) as done:
        draw_images(loaded, workspace.info, draw, progress, network=FULL_PRECISION)
    # whether guidance doubles the batch is the pipeline's affair, so it is counted
    done.save(folder / "trajectory.safetensors", halves=max(1, done.rows // draw.count))


def recorded_in(folder: Path) -> Trajectory:
    """The calls that ``record`` kept in ``folder``."""
    return Trajectory.load(folder / "trajectory.safetensors")
