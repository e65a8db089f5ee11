"""Draws images by a pipeline, with one random generator per image.

The noise of image ``i`` depends only on the model, the seed, the purpose and ``i``; it does not
depend on batch size, worker or order. So images of different methods are pairs.
"""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from quantarena.bench.adapters.drawing import drawing_with
from quantarena.bench.errors import BrokenModel, UserError
from quantarena.bench.workloads.pipeline import LoadedPipeline
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
        images: uint8, (N, 3, H, W).
        noise_sha256: hash of the network's first input in every batch.
    """

    images: Tensor
    noise_sha256: str


def image_seed(workload: str, draw: Draw, index: int) -> int:
    """The 63-bit seed of one image's generator."""
    text = f"{workload}/{draw.seed}/{draw.purpose}/{index}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


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
    place = index if purpose == "evaluate" else -1 - index
    return info.prompts[place % len(info.prompts)]


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
    required = [
        n for n, p in parameters.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD
    ]
    if missing := [name for name in required if name not in offered]:
        raise BrokenModel(
            f"{type(pipe).__name__} needs {missing[0]!r}: a workload draws from noise and prompts "
            "or classes alone"
        )
    return {name: value for name, value in offered.items() if name in parameters}


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
            sample = (
                args[0]
                if args
                else kwargs[next(iter(inspect.signature(module.forward).parameters))]
            )
            assert isinstance(sample, Tensor)
            digest.update(sample.detach().float().cpu().contiguous().numpy().tobytes())
            first[0] = False

    handle = loaded.denoiser.register_forward_pre_hook(fingerprint, with_kwargs=True)
    images: list[Tensor] = []
    try:
        with drawing_with(loaded.pipe, info.lora if draw.purpose == "evaluate" else ""):
            for start in range(0, draw.count, draw.batch):
                indices = range(start, min(start + draw.batch, draw.count))
                first[0] = True
                images.append(_to_uint8(_run(loaded.pipe, info, draw, indices), network))
                if progress is not None:
                    progress(indices.stop, draw.count)
    finally:
        handle.remove()
    return Drawn(torch.cat(images), digest.hexdigest())


def _run(pipe: Any, info: WorkloadInfo, draw: Draw, indices: Sequence[int]) -> Any:
    """The images of one batch, floats in [0, 1], (N, H, W, channels)."""
    arguments = pipeline_arguments(info, pipe, draw, indices)
    try:
        with stepping(pipe.scheduler, info.eta, arguments["generator"]):
            output = pipe(**arguments)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        if "DefaultCPUAllocator" in str(error):  # torch's CPU allocator has no error of its own
            raise
        first = (str(error).strip().splitlines() or [""])[0]
        raise BrokenModel(
            f"{type(pipe).__name__} cannot draw {info.name} with these settings: "
            f"{type(error).__name__}: {first} (look at workload.json and the config.json of each "
            f"part in {info.path})"
        ) from error
    images = np.asarray(getattr(output, "images", ()))
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise BrokenModel(f"{type(pipe).__name__} draws no images of three channels")
    return images


def _to_uint8(images: np.ndarray[Any, Any], network: str) -> Tensor:
    """Convert floats in [0, 1], (N, H, W, 1 or 3), to uint8 images (N, 3, H, W)."""
    if not np.isfinite(images).all():
        raise BrokenModel(f"{network} produced NaN or infinity: no image to score")
    grid = np.clip(np.rint(images * 255.0), 0, 255).astype(np.uint8)
    return torch.from_numpy(grid).permute(0, 3, 1, 2).expand(-1, 3, -1, -1).contiguous()
