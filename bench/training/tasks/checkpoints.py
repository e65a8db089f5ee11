"""The files of a training run: its checkpoint, and the smaller file of its weights alone."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from quantarena.bench.files import make_shareable

__all__ = ["load_checkpoint", "load_weights", "save_checkpoint", "save_weights"]

FILE = "checkpoint.pt"


def save_checkpoint(state: Mapping[str, Any], folder: Path) -> None:
    """Writes the checkpoint of a training folder; a kill never leaves half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = (folder / FILE).with_suffix(".partial")
    torch.save(dict(state), partial)
    os.replace(partial, folder / FILE)


def load_checkpoint(folder: Path, task: str = "") -> Mapping[str, Any]:
    """Reads the checkpoint of a training folder on the CPU.

    Args:
        folder: The training folder.
        task: Name of the model that the checkpoint must be of; any model if empty.

    Raises:
        FileNotFoundError: There is no checkpoint.
        ValueError: The checkpoint is of another model.
    """
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: train first")
    state: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if task:
        _check_task(path, state["task"], task)
    return state


def save_weights(folder: Path, path: Path) -> None:
    """Writes the averaged weights of a training folder in fp16, and how far its training got.

    The optimizer's state and the latest weights are left out: a run that starts from the file takes
    the averaged weights for both. That is an eighth of the checkpoint.

    Args:
        folder: The training folder.
        path: The safetensors file to write.

    Raises:
        FileNotFoundError: There is no checkpoint.
        ValueError: A weight is too large for fp16.
    """
    checkpoint = load_checkpoint(folder)
    state = {}
    for key, value in checkpoint["ema"].items():
        small = value.half() if value.is_floating_point() else value
        if not torch.isfinite(small).all():
            raise ValueError(f"{key} does not fit fp16")
        state[key] = small.contiguous()
    about = {"task": checkpoint["task"], "progress": json.dumps(checkpoint["progress"])}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(state, partial, about)
    make_shareable(partial)
    os.replace(partial, path)


def load_weights(path: Path, task: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a file that `save_weights` wrote.

    Args:
        path: The file.
        task: Name of the model that it must be of.

    Returns:
        The averaged weights by name, and the fields of the run's progress.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is of another model, or no weights file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no weights file: {error}") from error
    _check_task(path, about.get("task"), task)
    return tensors, json.loads(about["progress"])


def _check_task(path: Path, stated: str | None, task: str) -> None:
    if stated != task:
        raise ValueError(f"{path} is of {stated}, not {task}")
