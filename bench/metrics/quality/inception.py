"""FID, sFID and IS on Inception features, where its weights are on this machine.

No package carries those weights and nothing is downloaded here: they are looked for where
torch-fidelity and clean-fid keep what they download, or in a folder that the environment names.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quantarena.bench.metrics.quality.features import images_sha256
from quantarena.bench.metrics.weights import sha256_of

VARIABLE = "QUANTARENA_INCEPTION"
FIDELITY_FILE = "weights-inception-2015-12-05-6726825d.pth"
FIDELITY_SHA256 = "6726825d"
"""First digits of its sha256, as its name says: the tool unpickles it, so they are compared."""
CLEAN_FILE = "inception-2015-12-05.pt"
SIDE = 299
SPATIAL = 7
_BATCH = 32


@dataclass(frozen=True, slots=True)
class Tool:
    """A library with its network.

    Attributes:
        name: ``torchmetrics`` or ``clean-fid``.
        file: of the weights.
        sha256: of that file.
        version: of the library and of what holds its network.
    """

    name: str
    file: Path
    sha256: str
    version: str


@lru_cache(maxsize=4)
def torchmetrics_tool(given: str = "") -> Tool | str:
    """Torchmetrics with torch-fidelity's network, or one line on what to put where.

    Args:
        given: folder to look in first.
    """
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    path = _find(FIDELITY_FILE, given, cache)
    if path is None:
        return f"no weights here: put {FIDELITY_FILE} in {cache}, or set {VARIABLE}=FOLDER"
    if find_spec("torch_fidelity") is None:
        return "torch-fidelity is not installed: pip install 'quantarena[metrics]'"
    found = sha256_of(path)
    if not found.startswith(FIDELITY_SHA256):
        return f"{path} is damaged: its sha256 does not start with {FIDELITY_SHA256}"
    what = f"torchmetrics {version('torchmetrics')}, torch-fidelity {version('torch-fidelity')}"
    return Tool("torchmetrics", path, found, what)


@lru_cache(maxsize=4)
def clean_fid_tool(given: str = "") -> Tool | str:
    """clean-fid with its own network, or one line on what to put where.

    Args:
        given: folder to look in first.
    """
    path = _find(CLEAN_FILE, given, Path("/tmp"))
    if path is None:
        return f"no weights here: put {CLEAN_FILE} in /tmp, or set {VARIABLE}=FOLDER"
    if find_spec("cleanfid") is None:
        return "clean-fid is not installed: pip install 'quantarena[metrics]'"
    return Tool("clean-fid", path, sha256_of(path), f"clean-fid {version('clean-fid')}")


def given_folder() -> str:
    """What the environment names, or nothing."""
    return os.environ.get(VARIABLE, "")


def _find(name: str, given: str, cache: Path) -> Path | None:
    places = ([Path(given).expanduser()] if given else []) + [cache]
    return next((folder / name for folder in places if (folder / name).is_file()), None)


def responses(images: Tensor, tool: Tool, cache_dir: Path | None = None) -> dict[str, Tensor]:
    """What a tool's network gives for images, resized as that tool resizes.

    Args:
        images: uint8 (N, 3, S, S).
        tool: which.
        cache_dir: where results are kept under the hash of images and weights.

    Returns:
        ``pool`` (N, 2048); of torchmetrics also ``spatial`` (N, 2023), seven channels of 17 x 17,
        and ``logits`` (N, 1008) without bias. float32.
    """
    path = None
    if cache_dir is not None:
        key = f"{images_sha256(images)} {tool.name} {tool.sha256} {tool.version}"
        path = cache_dir / f"inception-{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"
        if path.is_file():
            kept: dict[str, Tensor] = load_file(path)
            return kept
    run = _torchmetrics(tool) if tool.name == "torchmetrics" else _clean_fid(tool)
    parts: dict[str, list[Tensor]] = {}
    with torch.inference_mode():
        for start in range(0, images.shape[0], _BATCH):
            for name, values in run(images[start : start + _BATCH]).items():
                parts.setdefault(name, []).append(values.float().cpu())
    found = {name: torch.cat(values).contiguous() for name, values in parts.items()}
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        work = path.with_suffix(f".{os.getpid()}")
        save_file(found, work)
        os.replace(work, path)
    return found


def _torchmetrics(tool: Tool) -> Callable[[Tensor], dict[str, Tensor]]:
    from torchmetrics.image.fid import NoTrainInceptionV3

    names = ["2048", "logits_unbiased"]
    network: Any = NoTrainInceptionV3("inception-v3-compat", names, str(tool.file))
    spatial: list[Tensor] = []
    # "mixed_6/conv" of the original graph: what sFID reads
    network.Mixed_6d.branch1x1.conv.register_forward_hook(
        lambda module, args, output: spatial.append(output[:, :SPATIAL].flatten(1))
    )

    def run(images: Tensor) -> dict[str, Tensor]:
        spatial.clear()
        # its forward() keeps the first output only
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
