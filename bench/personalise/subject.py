"""A subject: a few images of it, the token that names it, and the prompt that they go with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quantarena.bench.errors import UserError
from quantarena.bench.metrics.image_folder import load_folder


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """What a network is tuned to.

    Attributes:
        token: the word that stands for it.
        prompt: the prompt of its images; holds the token.
        images: uint8, (N, 3, S, S).
    """

    token: str
    prompt: str
    images: Tensor


def read_subject(folder: Path, token: str, prompt: str, side: int) -> Subject:
    """Read the images of a folder.

    Args:
        folder: PNG, JPEG or WebP files, square, all of one size.
        token: the word that stands for the subject.
        prompt: the prompt; "" for ``a TOKEN``.
        side: side of the images that the workload draws; larger ones are scaled down.

    Raises:
        UserError: the folder holds no such images, they are too small, or the prompt lacks the
            token.
    """
    prompt = prompt or f"a {token}"
    if not token.strip() or token not in prompt.split():
        raise UserError(f"the prompt {prompt!r} has no word {token!r}: name the subject in it")
    images = load_folder(folder, minimum=1, lossy=True).images
    if images.shape[-1] < side:
        raise UserError(
            f"{folder}: images have {images.shape[-1]} pixels a side, the workload draws {side}"
        )
    return Subject(token, prompt, scaled(images, side))


def scaled(images: Tensor, side: int) -> Tensor:
    """Square uint8 images at another side."""
    if images.shape[-1] == side:
        return images
    small = F.interpolate(images.float(), size=(side, side), mode="bicubic", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8)


def check_tokens(pipe: Any, subject: Subject) -> None:
    """Check that every tokenizer of a pipeline can tell the token from an unknown one.

    Raises:
        UserError: a part of the token is unknown, so that nothing of it would reach the network,
            or the prompt is too long.
    """
    for name, tokenizer in pipe.components.items():
        if not callable(tokenizer) or not hasattr(tokenizer, "model_max_length"):
            continue
        bare = tokenizer(subject.token, add_special_tokens=False).input_ids
        if not bare or getattr(tokenizer, "unk_token_id", None) in bare:
            raise UserError(
                f"{name} does not know {subject.token!r}: take one that its vocabulary can spell"
            )
        count, most = len(tokenizer(subject.prompt).input_ids), int(tokenizer.model_max_length)
        if count > most:
            raise UserError(f"{name} cuts {subject.prompt!r}, which has {count} tokens, at {most}")
