"""Drawing images: one generator an image, CPU noise, the pipeline's own sampler.

The noise of image ``i`` depends on the workload, the seed, what it is for and ``i``, and on nothing
else: not on batch size, worker or order. So images of different methods are pairs.
"""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from quantarena.bench.workloads.pipeline import LoadedPipeline
from quantarena.bench.workloads.registry import WorkloadInfo
from quantarena.methods.core.errors import BrokenModel

Purpose = Literal["evaluate", "calibrate"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Draw:
    """Which images to draw.

    Attributes:
        purpose: evaluation and calibration never share noise.
        count: images.
        seed: of the cell.
        steps: sampler steps.
        batch: images together.
    """

    purpose: Purpose
    count: int
    seed: int
    steps: int
    batch: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """Images and the fingerprint of the noise they started from.

    Attributes:
        images: uint8, (N, 3, H, W).
        noise_sha256: over the network's first input of every batch.
    """

    images: Tensor
    noise_sha256: str


def image_seed(workload: str, draw: Draw, index: int) -> int:
    """63-bit seed of one image's generator."""
    text = f"{workload}/{draw.seed}/{draw.purpose}/{index}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def condition(info: WorkloadInfo, purpose: Purpose, index: int) -> str:
    """Prompt or class of one image; calibration walks the list from its end.

    Raises:
        BrokenModel: the pipeline asks for conditions and the workload names none.
    """
    if not info.prompts:
        raise BrokenModel(
            f"{info.name} draws from prompts or classes and names none: list them in its "
            'workload.json under "conditions": {"kind": "prompt", "values": [...]}'
        )
    place = index if purpose == "evaluate" else -1 - index
    return info.prompts[place % len(info.prompts)]


def pipeline_arguments(
    info: WorkloadInfo, pipe: Any, draw: Draw, indices: Sequence[int]
) -> dict[str, Any]:
    """Keyword arguments of one pipeline call, from what its signature takes."""
    accepted = set(inspect.signature(pipe.__call__).parameters)
    generators = [
        torch.Generator("cpu").manual_seed(image_seed(info.noise_name, draw, i)) for i in indices
    ]
    arguments: dict[str, Any] = {
        "generator": generators,
        "num_inference_steps": draw.steps,
        "output_type": "np",
    }
    if "eta" in accepted:
        arguments["eta"] = info.eta
    if "guidance_scale" in accepted:
        arguments["guidance_scale"] = info.guidance
    if "prompt" in accepted:
        arguments["prompt"] = [condition(info, draw.purpose, i) for i in indices]
    elif "class_labels" in accepted:
        arguments["class_labels"] = [int(condition(info, draw.purpose, i)) for i in indices]
    else:
        arguments["batch_size"] = len(indices)
    return arguments


@torch.no_grad()
def draw_images(
    loaded: LoadedPipeline, info: WorkloadInfo, draw: Draw, progress: Progress | None = None
) -> Drawn:
    """Sample the images.

    Raises:
        BrokenModel: the network produced NaN or infinity.
    """
    digest = hashlib.sha256()
    first = [True]

    def fingerprint(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if first[0]:
            sample = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
            assert isinstance(sample, Tensor)
            digest.update(sample.detach().float().cpu().contiguous().numpy().tobytes())
            first[0] = False

    handle = loaded.denoiser.register_forward_pre_hook(fingerprint, with_kwargs=True)
    images: list[Tensor] = []
    try:
        for start in range(0, draw.count, draw.batch):
            indices = range(start, min(start + draw.batch, draw.count))
            first[0] = True
            output = loaded.pipe(**pipeline_arguments(info, loaded.pipe, draw, indices))
            images.append(_to_uint8(np.asarray(output.images)))
            if progress is not None:
                progress(indices.stop, draw.count)
    finally:
        handle.remove()
    return Drawn(torch.cat(images), digest.hexdigest())


def _to_uint8(images: np.ndarray[Any, Any]) -> Tensor:
    """(N, H, W, 3) floats in [0, 1] to uint8 (N, 3, H, W)."""
    if not np.isfinite(images).all():
        raise BrokenModel("the network produced NaN or infinity: no image to score")
    grid = np.clip(np.rint(images * 255.0), 0, 255).astype(np.uint8)
    return torch.from_numpy(grid).permute(0, 3, 1, 2).contiguous()
