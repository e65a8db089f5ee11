"""Features of images by the Inception networks of torch-fidelity and of clean-fid."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quantarena.bench.metrics.quality.features import images_sha256
from quantarena.bench.metrics.quality.inception_weights import Tool

SIDE = 299
SPATIAL = 7
_BATCH = 32


def responses(images: Tensor, tool: Tool, cache_dir: Path | None = None) -> dict[str, Tensor]:
    """The outputs of a tool's network for images, resized as that tool resizes them.

    Args:
        images: uint8 (N, 3, S, S).
        tool: the library with its weights.
        cache_dir: folder that keeps outputs under the hash of images and weights.

    Returns:
        ``pool`` (N, 2048), float32. Torchmetrics also gives ``spatial`` (N, 2023), seven channels
        of 17 x 17, and ``logits`` (N, 1008) without bias.
    """
    path = None
    if cache_dir is not None:
        key = f"{images_sha256(images)} {tool.name} {tool.sha256} {tool.version}"
        path = cache_dir / f"inception-{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"
        if path.is_file():
            cached: dict[str, Tensor] = load_file(path)
            return cached
    run = _torchmetrics(tool) if tool.name == "torchmetrics" else _clean_fid(tool)
    parts: dict[str, list[Tensor]] = {}
    with torch.inference_mode():
        for start in range(0, images.shape[0], _BATCH):
            for name, values in run(images[start : start + _BATCH]).items():
                parts.setdefault(name, []).append(values.float().cpu())
    outputs = {name: torch.cat(values).contiguous() for name, values in parts.items()}
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        work = path.with_suffix(f".{os.getpid()}")
        save_file(outputs, work)
        os.replace(work, path)
    return outputs


def _torchmetrics(tool: Tool) -> Callable[[Tensor], dict[str, Tensor]]:
    from torchmetrics.image.fid import NoTrainInceptionV3

    names = ["2048", "logits_unbiased"]
    network: Any = NoTrainInceptionV3("inception-v3-compat", names, str(tool.file))
    spatial: list[Tensor] = []
    # "mixed_6/conv" of the original graph, the features of sFID
    network.Mixed_6d.branch1x1.conv.register_forward_hook(
        lambda module, args, output: spatial.append(output[:, :SPATIAL].flatten(1))
    )

    def run(images: Tensor) -> dict[str, Tensor]:
        spatial.clear()
        # forward() returns the first output only
        pool, logits = network._torch_fidelity_forward(images)
        return {"pool": pool.flatten(1), "spatial": spatial[0], "logits": logits}

    return run


def _clean_fid(tool: Tool) -> Callable[[Tensor], dict[str, Tensor]]:
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    network: nn.Module = InceptionV3W(str(tool.file.parent), download=False).eval()
    resize = build_resizer("clean")

    def run(images: Tensor) -> dict[str, Tensor]:
        pictures = images.permute(0, 2, 3, 1).cpu().numpy()
        grid = torch.from_numpy(np.stack([resize(picture) for picture in pictures]))
        return {"pool": network(grid.permute(0, 3, 1, 2).float())}

    return run
