"""What all cells of a workload share: the recorded trajectory and the full-precision images."""

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from quantarena.bench.cache import StageCache
from quantarena.bench.code_hash import package_sha256
from quantarena.bench.errors import UserError
from quantarena.bench.metrics.bootstrap import Groups
from quantarena.bench.metrics.image_folder import load_folder
from quantarena.bench.metrics.quality.features import Features
from quantarena.bench.metrics.quality.features_file import reference_features
from quantarena.bench.spec import Budget, Cell, content_key
from quantarena.bench.workloads import pipeline, registry
from quantarena.bench.workloads.emoji64 import heldout_images
from quantarena.bench.workloads.pipeline import LoadedPipeline
from quantarena.bench.workloads.registry import WorkloadInfo
from quantarena.bench.workloads.sampling import Draw, Drawn, Progress, condition, draw_images
from quantarena.methods.core.record.recorder import recording
from quantarena.methods.core.record.trajectory import Trajectory

_EMOJI = "emoji64/heldout"
_RECORDING = (
    "record",
    "nested",
)
"""Modules of the core that decide what is in a recorded trajectory."""


def silent(done: int, total: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """A loaded workload and the settings at which a cell uses it.

    Attributes:
        info: the workload.
        loaded: its pipeline.
        seed: of the cell.
        budget: of the cell.
    """

    info: WorkloadInfo
    loaded: LoadedPipeline
    seed: int
    budget: Budget

    @property
    def steps(self) -> int:
        """Sampler steps: the budget's, or the workload's own."""
        return self.budget.steps or self.info.steps

    def draw(self, *, calibration: bool = False) -> Draw:
        """Which images the cell draws."""
        count = self.budget.calibration_images if calibration else self.budget.images
        purpose = "calibrate" if calibration else "evaluate"
        return Draw(purpose, count, self.seed, self.steps, self.budget.batch)  # type: ignore[arg-type]

    def key(self, draw: Draw) -> str:
        """Content hash of a full-precision run."""
        info = self.info
        conditions = content_key(list(info.prompts)) if info.prompts else ""
        settings = [info.noise_name, info.guidance, info.eta, conditions]
        code = package_sha256("quantarena.bench.workloads")
        libraries = [version(name) for name in ("torch", "diffusers", "transformers")]
        return content_key([self.loaded.sha256, settings, draw, code, libraries])


def open_workspace(cell: Cell) -> Workspace:
    """Load the cell's workload.

    Raises:
        UnknownName, BrokenModel: one line each.
    """
    info = registry.resolve(cell.workload)
    return Workspace(info, pipeline.load(info), cell.seed, cell.budget)


def trajectory(workspace: Workspace, cache: StageCache, progress: Progress = silent) -> Trajectory:
    """The full-precision sampler's network calls on the calibration images."""
    draw = workspace.draw(calibration=True)

    def make(folder: Path) -> None:
        record(workspace, draw, folder, progress)

    return cache.load("trajectory", trajectory_key(workspace), make, recorded_in)


def record(workspace: Workspace, draw: Draw, folder: Path, progress: Progress) -> None:
    """Draw images by full precision and keep its calls in ``folder``, for ``recorded_in``."""
    loaded = workspace.loaded
    with recording(loaded.denoiser, loaded.pipe.scheduler, folder=folder) as done:
        draw_images(loaded, workspace.info, draw, progress)
    # whether guidance doubles the batch is the pipeline's affair, so it is counted
    done.save(folder / "trajectory.safetensors", halves=max(1, done.rows // draw.count))


def recorded_in(folder: Path) -> Trajectory:
    """The calls that ``record`` kept."""
    return Trajectory.load(folder / "trajectory.safetensors")


def trajectory_key(workspace: Workspace, *, draw: Draw | None = None) -> str:
    """Content hash of the calls recorded for calibration, or for another draw."""
    code = [package_sha256(f"quantarena.methods.core.{name}") for name in _RECORDING]
    return content_key([workspace.key(draw or workspace.draw(calibration=True)), code])


def fp_images(workspace: Workspace, cache: StageCache, progress: Progress = silent) -> Drawn:
    """The full-precision images of the evaluation seeds."""
    draw = workspace.draw()

    def make(folder: Path) -> None:
        save_drawn(draw_images(workspace.loaded, workspace.info, draw, progress), folder)

    return cache.load("images", workspace.key(draw), make, load_drawn)


def evaluation_prompts(info: WorkloadInfo, images: int) -> tuple[str, ...]:
    """The prompt of each image; empty for workloads that draw from classes or from noise alone."""
    if info.conditions != "prompt":
        return ()
    return tuple(condition(info, "evaluate", index) for index in range(images))


def prompt_groups(info: WorkloadInfo, images: int) -> Groups | None:
    """The prompt or class of each image as a number; None for workloads without."""
    if not info.prompts:
        return None
    known = {text: number for number, text in enumerate(dict.fromkeys(info.prompts))}
    return tuple(known[condition(info, "evaluate", index)] for index in range(images))


def real_features(workspace: Workspace, cache: StageCache) -> Features | None:
    """Features of the workload's real images, or None where it has none.

    Raises:
        UserError: the reference names nothing that can be read.
    """
    name = workspace.info.reference
    if not name:
        return None
    if name == _EMOJI:
        return reference_features(real_images(workspace), cache.root, name="emoji64-heldout")
    path = _reference_path(workspace)
    source = real_images(workspace) if path.is_dir() else path
    return reference_features(source, cache.root, name=path.name)


def real_images(workspace: Workspace) -> Tensor:
    """The workload's real images, uint8 (N, 3, S, S).

    Raises:
        UserError: there are none, or the pictures cannot be read, or only their features are here.
    """
    if workspace.info.reference == _EMOJI:
        return heldout_images(workspace.info.resolution)
    path = _reference_path(workspace)
    if not path.is_dir():
        raise UserError(
            f"{path.name} holds features, not images: give a folder with --set reference=FOLDER"
        )
    return load_folder(path).images


def _reference_path(workspace: Workspace) -> Path:
    local = workspace.info.path / workspace.info.reference
    return local if local.exists() else Path(workspace.info.reference).expanduser()


def save_drawn(drawn: Drawn, folder: Path) -> None:
    """Keep images and noise fingerprint."""
    save_file({"images": drawn.images}, folder / "images.safetensors")
    (folder / "noise.json").write_text(json.dumps({"sha256": drawn.noise_sha256}))


def load_drawn(folder: Path) -> Drawn:
    """Read what ``save_drawn`` kept."""
    images = load_file(folder / "images.safetensors")["images"]
    return Drawn(images, json.loads((folder / "noise.json").read_text())["sha256"])
