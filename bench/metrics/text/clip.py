"""CLIPScore, computed by torchmetrics if CLIP's weights are on this machine (no downloads)."""

import os
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from quantarena.bench.errors import UserError, first_line
from quantarena.bench.metrics.bootstrap import Array
from quantarena.bench.metrics.weights import sha256_of

MODEL = "openai/clip-vit-large-patch14"
VARIABLE = "QUANTARENA_CLIP"
_FILES = ("model.safetensors", "pytorch_model.bin")


def find_clip() -> Path | str:
    """The folder of CLIP ViT-L/14, or one line on what is missing."""
    given = os.environ.get(VARIABLE)
    if given:
        folder = Path(given).expanduser()
        held = folder.is_dir() and any((folder / name).is_file() for name in _FILES)
        return folder if held else f"{VARIABLE}={given} is no folder with CLIP's weights"
    from huggingface_hub import try_to_load_from_cache

    for name in _FILES:
        found = try_to_load_from_cache(MODEL, name)
        if isinstance(found, str):
            return Path(found).parent
    return f"no weights here: download {MODEL} to the Hub's cache, or set {VARIABLE}=FOLDER"


def clip_score(images: Tensor, prompts: Sequence[str], folder: Path) -> tuple[Array, str, str]:
    """The CLIPScore ``max(100 cos, 0)`` of each image and its prompt; higher is better.

    Torchmetrics truncates prompts of more than 77 tokens.

    Args:
        images: uint8 (N, 3, H, W).
        prompts: N texts.
        folder: folder of the model.

    Returns:
        The scores, (N,) float64; the name of the model; the sha256 of its weights.

    Raises:
        UserError: the folder does not load as CLIP.
    """
    from torchmetrics.functional.multimodal import clip_score as score

    model, processor, sha256 = _load(folder)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # truncated prompts are reported with the workload
        values = [
            float(score(image, text, lambda: (model, processor)).clamp(min=0))
            for image, text in zip(images.cpu(), prompts, strict=True)
        ]
    return np.array(values, np.float64), MODEL.rpartition("/")[2], sha256


class _Plain:
    """The model with features as tensors, as torchmetrics expects them (transformers < 5)."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def to(self, device: Any) -> "_Plain":
        """The model on another device."""
        return _Plain(self._model.to(device))

    def get_image_features(self, *args: Any, **kwargs: Any) -> Tensor:
        """Features of images, (N, D)."""
        return _tensor(self._model.get_image_features(*args, **kwargs))

    def get_text_features(self, *args: Any, **kwargs: Any) -> Tensor:
        """Features of texts, (N, D)."""
        return _tensor(self._model.get_text_features(*args, **kwargs))


def _tensor(output: Any) -> Tensor:
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features


@lru_cache(maxsize=1)
def _load(folder: Path) -> tuple[Any, Any, str]:
    from transformers import CLIPModel, CLIPProcessor

    try:
        model = CLIPModel.from_pretrained(str(folder), local_files_only=True).eval()
        processor = CLIPProcessor.from_pretrained(str(folder), local_files_only=True)
        weights = next(folder / name for name in _FILES if (folder / name).is_file())
        return _Plain(model.requires_grad_(False)), processor, sha256_of(weights)
    except Exception as error:  # transformers passes on the errors of its file readers
        raise UserError(f"{folder} does not load as CLIP: {first_line(error)}") from None
