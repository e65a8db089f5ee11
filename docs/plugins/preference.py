"""Two preference models as metrics: ImageReward v1.0 and HPS v2.1.

``QUANTARENA_METRICS=docs/plugins/preference.py quantarena run quick`` puts them on the quality
board. They need ``pip install image-reward`` and ``pip install hpsv2``, whose weights come from the
Hub on first use; load them once before a run, then set ``HF_HUB_OFFLINE=1``. One that is not
installed is "not computed", with what to install.
"""

import functools
import importlib
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from quantarena.bench.metrics.plugins import metric


def package(module: str, name: str) -> Any:
    """Imports an optional package.

    Raises:
        ImportError: the package is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f"{error.name} is not installed: pip install {name}") from None


@functools.cache
def image_reward_model() -> Any:
    """Loads the model, once for each process."""
    return package("ImageReward", "image-reward").load("ImageReward-v1.0")


def pictures(images: Tensor) -> list[Image.Image]:
    """Converts uint8 images (N, 3, H, W) to pictures."""
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


@metric("imagereward/v1.0", title="ImageReward, preference of people", version="image-reward")
@torch.no_grad()
def image_reward(images: Tensor, prompts: tuple[str, ...]) -> list[float]:
    """Scores by Xu et al., NeurIPS 2023: about a standard normal deviate, higher is better."""
    model = image_reward_model()
    pairs = zip(prompts, pictures(images), strict=True)
    return [float(model.score(prompt, picture)) for prompt, picture in pairs]


@metric("hps/v2.1", title="Human preference score v2.1", version="hpsv2")
def human_preference(images: Tensor, prompts: tuple[str, ...]) -> list[float]:
    """Scores by Wu et al., arXiv:2306.09341: cosine of image and prompt, higher is better."""
    score = package("hpsv2", "hpsv2").score
    pairs = zip(prompts, pictures(images), strict=True)
    return [float(score(picture, prompt, hps_version="v2.1")[0]) for prompt, picture in pairs]
