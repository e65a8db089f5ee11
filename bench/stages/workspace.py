"""A loaded workload and the settings at which one cell uses it."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from quantarena.bench.adapters.drawing import drawing_with, lora_content
from quantarena.bench.devices.device import on_device
from quantarena.bench.spec import Budget, Cell, content_key
from quantarena.bench.target import DEFAULT_TARGET, Target
from quantarena.bench.workloads import pipeline, registry
from quantarena.bench.workloads.inputs.condition_images import content
from quantarena.bench.workloads.outliers.plant import with_outliers
from quantarena.bench.workloads.pipeline import LoadedPipeline
from quantarena.bench.workloads.registry import WorkloadInfo
from quantarena.bench.workloads.sampling import Draw, batch_of, condition

_NOT_IN_IMAGES = (
    *("name", "title", "path", "reference", "licence", "megabytes", "hub", "steps"),
    *("outliers", "lora", "inputs"),
)
"""Fields of a workload that do not change what it draws; its steps are part of each draw, outliers
are part of the network's hash, condition images enter by their bytes, and a LoRA enters the keys of
evaluation images by its content."""


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
        target: of the cell.
    """

    info: WorkloadInfo
    loaded: LoadedPipeline
    seed: int
    budget: Budget
    target: Target = DEFAULT_TARGET

    @property
    def device(self) -> torch.device:
        """Where its networks compute."""
        return torch.device(self.target.device)

    @property
    def home(self) -> torch.device:
        """Where its networks are, and what they are given: the host if they are offloaded."""
        return torch.device("cpu") if self.target.offload else self.device

    @property
    def steps(self) -> int:
        """Sampler steps: the budget's, or the workload's own."""
        return self.budget.steps or self.info.steps

    def draw(self, *, calibration: bool = False) -> Draw:
        """Which images the cell draws."""
        count = self.budget.calibration_images if calibration else self.budget.images
        purpose = "calibrate" if calibration else "evaluate"
        batch = batch_of(self.loaded.pipe, self.info, self.budget.batch)
        return Draw(purpose, count, self.seed, self.steps, batch)  # type: ignore[arg-type]

    def settings(self) -> dict[str, Any]:
        """Every setting of the workload that its images depend on, beside its weights."""
        fields = (field.name for field in dataclasses.fields(self.info))
        chosen = {name: getattr(self.info, name) for name in fields if name not in _NOT_IN_IMAGES}
        return chosen | {"noise": self.info.noise_name, "inputs": content(self.info.inputs)}

    def key(self, draw: Draw) -> str:
        """Content hash of a draw at full precision: weights, settings and draw.

        The code that draws is not part of it: every stage adds the closure of its own module.
        """
        content: list[Any] = [self.loaded.sha256, self.settings(), draw]
        if self.target.kind != DEFAULT_TARGET.kind:  # another device rounds otherwise
            content.append(self.target.kind)
        if self.target.offload:  # sums between blocks, and searches on weights, are the host's
            content.append("offload")
        if self.info.lora and draw.purpose == "evaluate":
            content += lora_content(self.info.lora)
        return content_key(content)

    @contextmanager
    def evaluating(self, network: nn.Module) -> Iterator[None]:
        """Inside the block, a network has the LoRA that evaluation images are drawn with."""
        with self.holding(network), drawing_with(self.loaded.pipe, self.info.lora):
            yield

    @contextmanager
    def holding(self, network: nn.Module) -> Iterator[None]:
        """Inside the block, a network is in the place of the pipeline's own."""
        original = self.loaded.denoiser
        self.loaded.put(network)
        try:
            yield
        finally:
            self.loaded.put(original)


def open_workspace(cell: Cell) -> Workspace:
    """Load the cell's workload onto its target's device.

    Raises:
        UnknownName, BrokenModel, UserError: one line each.
    """
    info = registry.resolve(cell.workload)
    loaded = on_device(with_outliers(pipeline.load(info), info), cell.target)
    return Workspace(info, loaded, cell.seed, cell.budget, cell.target)


def evaluation_prompts(info: WorkloadInfo, images: int) -> tuple[str, ...]:
    """The prompt of each image; empty for workloads that draw from classes or from noise alone."""
    if info.conditions != "prompt":
        return ()
    return tuple(condition(info, "evaluate", index) for index in range(images))


def prompt_groups(info: WorkloadInfo, images: int) -> tuple[int, ...] | None:
    """The prompt or class of each image as a number; None for workloads without."""
    if not info.prompts:
        return None
    known = {text: number for number, text in enumerate(dict.fromkeys(info.prompts))}
    return tuple(known[condition(info, "evaluate", index)] for index in range(images))
