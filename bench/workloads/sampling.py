"""Draws images or videos by a pipeline, with one random generator for each.

The noise of image ``i`` depends only on the model, the seed, the purpose and ``i``; it does not
depend on batch size, worker or order. So images of different methods are pairs.
"""

import contextlib
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from quantarena.bench.adapters.drawing import drawing_with
from quantarena.bench.errors import BrokenModel, UserError, out_of_memory
from quantarena.bench.workloads.inputs.arguments import for_images
from quantarena.bench.workloads.inputs.condition_images import read_image
from quantarena.bench.workloads.inputs.kinds import image_needs, most_in_batch
from quantarena.bench.workloads.pipeline import LoadedPipeline
from quantarena.bench.workloads.pipeline_checks import signature_of
from quantarena.bench.workloads.registry import WorkloadInfo
from quantarena.bench.workloads.samplers import stepping

Purpose = Literal["evaluate", "calibrate"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Draw:
    """A set of images to draw.

    Attributes:
        purpose: evaluation or calibration, which never share noise.
        count: number of images.
        seed: seed of the cell.
        steps: sampler steps.
        batch: images per run of the pipeline.
    """

    purpose: Purpose
    count: int
    seed: int
    steps: int
    batch: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """Images, and a hash of the noise that they started from.

    Attributes:
        images: uint8, (N, 3, H, W); the frames of videos one after the other, (N x F, 3, H, W).
        noise_sha256: hash of the network's first input in every batch.
        frames: frames of each video; 0 for images.
    """

    images: Tensor
    noise_sha256: str
    frames: int = 0

    @property
    def count(self) -> int:
        """Number of images, or of videos."""
        return len(self.images) // max(1, self.frames)


def image_seed(workload: str, draw: Draw, index: int) -> int:
    """The 63-bit seed of one image's generator."""
    text = f"{workload}/{draw.seed}/{draw.purpose}/{index}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def batch_of(pipe: Any, info: WorkloadInfo, batch: int) -> int:
    """How many images one call of the pipeline may draw, where ``batch`` are asked for."""
    return most_in_batch(type(pipe).__name__, info.inputs, batch)


def place_of(purpose: Purpose, index: int) -> int:
    """The place of an image in lists of conditions; calibration takes them from the end."""
    return index if purpose == "evaluate" else -1 - index


def condition(info: WorkloadInfo, purpose: Purpose, index: int) -> str:
    """The prompt or class of one image. Calibration takes them from the end of the list.

    Raises:
        BrokenModel: the pipeline needs conditions, and the workload has none.
    """
    if not info.prompts:
        raise BrokenModel(
            f"{info.name} draws from prompts or classes and names none: list them in its "
            'workload.json under "conditions": {"kind": "prompt", "values": [...]}, or give their '
            "file with --set prompts=FILE or --set classes=FILE"
        )
    return info.prompts[place_of(purpose, index) % len(info.prompts)]


def pipeline_arguments(
    info: WorkloadInfo, pipe: Any, draw: Draw, indices: Sequence[int]
) -> dict[str, Any]:
    """The keyword arguments of one pipeline call, chosen by the pipeline's signature."""
    parameters = inspect.signature(pipe.__call__).parameters
    size = {"height": info.resolution, "width": info.resolution} if info.resolution else {}
    offered: dict[str, Any] = {
        "generator": generators_of(info, draw, indices),
        "num_inference_steps": draw.steps,
        "output_type": "np",
        "eta": info.eta,
        "guidance_scale": info.guidance,
        **size,
        "use_resolution_binning": False,  # keep the size of the workload
        "clean_caption": False,  # it needs packages that may be missing
    }
    if "prompt" in parameters:
        offered["prompt"] = [condition(info, draw.purpose, i) for i in indices]
    else:
        offered["batch_size"] = len(indices)
        if "class_labels" in parameters and (
            parameters["class_labels"].default is inspect.Parameter.empty or _has_classes(pipe)
        ):
            offered["class_labels"] = [_class(info, draw.purpose, i) for i in indices]
    signature = signature_of(pipe)
    offered |= for_images(info.call, len(indices))
    offered |= _condition_images(info, image_needs(signature.names).arguments, draw, indices)
    if missing := [name for name in signature.required if name not in offered]:
        raise BrokenModel(
            f"{type(pipe).__name__} needs {missing[0]!r}: a workload draws from noise, prompts, "
            "classes and images of a folder, and nothing else"
        )
    return {name: value for name, value in offered.items() if name in parameters}


def _condition_images(
    info: WorkloadInfo, arguments: Mapping[str, str], draw: Draw, indices: Sequence[int]
) -> dict[str, Any]:
    """The condition images of one call, by the names that the pipeline has for them."""
    found: dict[str, Any] = {}
    for each in info.inputs:
        images = [read_image(each, place_of(draw.purpose, i), info.size) for i in indices]
        # A list of one may mean one reference of many to a pipeline.
        found[arguments[each.setting]] = images if len(images) > 1 else images[0]
    return found


def generators_of(info: WorkloadInfo, draw: Draw, indices: Sequence[int]) -> list[torch.Generator]:
    """One generator per image, on the CPU."""
    return [
        torch.Generator("cpu").manual_seed(image_seed(info.noise_name, draw, i)) for i in indices
    ]


def _has_classes(pipe: Any) -> bool:
    """Whether a network of the pipeline is made for class numbers.

    Without them, a pipeline whose labels are optional would draw classes by chance.
    """
    configs = (getattr(part, "config", {}) for part in pipe.components.values())
    return any(config.get("num_class_embeds") for config in configs if hasattr(config, "get"))


def _class(info: WorkloadInfo, purpose: Purpose, index: int) -> int:
    text = condition(info, purpose, index)
    if not text.strip().isdecimal():
        raise UserError(f"{info.name} draws from class numbers, {text!r} is none")
    return int(text)


FULL_PRECISION = "the full-precision network, before any quantization,"
"""What errors call the network that a workload comes with."""


@torch.no_grad()
def draw_images(
    loaded: LoadedPipeline,
    info: WorkloadInfo,
    draw: Draw,
    progress: Progress | None = None,
    *,
    network: str = "the network",
) -> Drawn:
    """Draw the images by the pipeline; those of an evaluation with the workload's LoRA.

    Args:
        loaded: the pipeline, with the network to draw with in its slot.
        info: the workload.
        draw: which images.
        progress: called with the images done and their number.
        network: what errors call the network.

    Raises:
        BrokenModel: the network produced NaN or infinity, or the pipeline refuses its arguments.
        UserError: the sampler does not take the settings, or the LoRA does not fit.
        Unsupported: the network takes no LoRA.
    """
    digest = hashlib.sha256()
    first = [True]

    def fingerprint(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if first[0]:
            digest.update(_input_bytes(module, args, kwargs))
            first[0] = False

    handle = loaded.denoiser.register_forward_pre_hook(fingerprint, with_kwargs=True)
    made: _Made | None = None
    batch = batch_of(loaded.pipe, info, draw.batch)
    try:
        with drawing_with(loaded.pipe, info.lora if draw.purpose == "evaluate" else ""):
            for start in range(0, draw.count, batch):
                indices = range(start, min(start + batch, draw.count))
                first[0] = True
                part = _to_uint8(_run(loaded.pipe, info, draw, indices), network)
                made = made or _Made.like(part, draw.count)
                made.put(part, start, type(loaded.pipe).__name__)
                if progress is not None:
                    progress(indices.stop, draw.count)
    finally:
        handle.remove()
    if made is None:
        raise ValueError("no images were asked for")
    return Drawn(made.images.flatten(0, -4), digest.hexdigest(), made.frames)


class _Seen(Exception):
    """The network was called, and its first input is known."""


@torch.no_grad()
def noise_sha256(loaded: LoadedPipeline, info: WorkloadInfo, draw: Draw) -> str:
    """``Drawn.noise_sha256`` of a draw, without drawing: each batch ends where the network begins.

    Raises:
        BrokenModel: the pipeline refuses its arguments.
        UserError: the sampler does not take the settings.
    """
    digest = hashlib.sha256()

    def seen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        digest.update(_input_bytes(module, args, kwargs))
        raise _Seen

    handle = loaded.denoiser.register_forward_pre_hook(seen, with_kwargs=True)
    batch = batch_of(loaded.pipe, info, draw.batch)
    try:
        for start in range(0, draw.count, batch):
            with contextlib.suppress(_Seen):
                _run(loaded.pipe, info, draw, range(start, min(start + batch, draw.count)))
    finally:
        handle.remove()
    return digest.hexdigest()


def _input_bytes(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """The bytes of a network's noisy sample, in float32."""
    name = next(iter(inspect.signature(module.forward).parameters))
    sample = args[0] if args else kwargs[name]
    assert isinstance(sample, Tensor)
    return sample.detach().float().cpu().contiguous().numpy().tobytes()


@dataclass(frozen=True, slots=True)
class _Made:
    """Memory for all images, which exist once: videos are large.

    Attributes:
        images: uint8, (N, 3, H, W) or, of videos, (N, F, 3, H, W).
    """

    images: Tensor

    @classmethod
    def like(cls, part: Tensor, count: int) -> "_Made":
        """Memory for ``count`` images or videos like those of one call."""
        return cls(torch.empty((count, *part.shape[1:]), dtype=torch.uint8))

    @property
    def frames(self) -> int:
        """Frames of a video; 0 for images."""
        return self.images.shape[1] if self.images.dim() == 5 else 0

    def put(self, part: Tensor, start: int, kind: str) -> None:
        """Keep the images of one call."""
        if part.shape[1:] != self.images.shape[1:]:
            sizes = " and ".join("x".join(map(str, x.shape[1:])) for x in (self.images, part))
            raise BrokenModel(f"{kind} draws images of several sizes ({sizes}): give one size")
        self.images[start : start + len(part)] = part


def _run(pipe: Any, info: WorkloadInfo, draw: Draw, indices: Sequence[int]) -> Any:
    """The images of one batch, floats in [0, 1], (N, H, W, channels) or (N, F, H, W, channels)."""
    arguments = pipeline_arguments(info, pipe, draw, indices)
    kind = type(pipe).__name__
    try:
        with stepping(pipe.scheduler, info.eta, arguments["generator"]):
            output = pipe(**arguments)
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError, NameError) as error:
        if out_of_memory(error):
            raise
        first = (str(error).strip().splitlines() or [""])[0]
        raise BrokenModel(
            f"{kind} cannot draw {info.name} with these settings: "
            f"{type(error).__name__}: {first} (look at workload.json and the config.json of each "
            f"part in {info.path})"
        ) from error
    found = getattr(output, "images", None)
    found = getattr(output, "frames", ()) if found is None else found
    try:
        images = np.asarray(found)
    except ValueError:  # lists of several lengths
        images = np.empty(0)
    if images.ndim not in (4, 5) or images.shape[-1] not in (1, 3):
        raise BrokenModel(f"{kind} draws no images and no videos of three channels")
    if len(images) != len(indices):
        raise BrokenModel(f"{kind} draws {len(images)} images where {len(indices)} were asked for")
    return images


def _to_uint8(images: np.ndarray[Any, Any], network: str) -> Tensor:
    """Convert floats in [0, 1], (..., H, W, 1 or 3), to uint8 images (..., 3, H, W)."""
    if not np.isfinite(images).all():
        raise BrokenModel(f"{network} produced NaN or infinity: no image to score")
    grid = np.clip(np.rint(images * 255.0), 0, 255).astype(np.uint8)
    tensor = torch.from_numpy(grid).movedim(-1, -3)
    return tensor.expand(*tensor.shape[:-3], 3, *tensor.shape[-2:]).contiguous()
