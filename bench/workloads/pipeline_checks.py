"""Checks of a loaded pipeline against its workload: lengths of prompts, class numbers."""

import inspect
import math
from typing import Any

from torch import nn

from quantarena.bench.errors import UserError
from quantarena.bench.workloads.registry import WorkloadInfo

_CLASS_COUNTS = ("num_embeds_ada_norm", "num_class_embeds", "num_classes")
"""The entries of a network's configuration that may hold its number of classes."""


def too_long(pipe: Any, info: WorkloadInfo) -> tuple[str, ...]:
    """One line for each tokenizer that truncates prompts of the workload."""
    if info.conditions != "prompt":
        return ()
    parameter = inspect.signature(pipe.__call__).parameters.get("max_sequence_length")
    most = parameter.default if parameter and isinstance(parameter.default, int) else math.inf
    notes = []
    for name, tokenizer in pipe.components.items():
        limit = min(getattr(tokenizer, "model_max_length", 0), most)
        if not callable(tokenizer) or limit < 1:
            continue
        # A token has at least one character, so short prompts need no counting.
        counts = [len(tokenizer(p).input_ids) for p in info.prompts if len(p) >= limit - 2]
        cut = [count for count in counts if count > limit]
        if cut:
            notes.append(
                f"{len(cut)} of {len(info.prompts)} prompts are longer than the {limit} tokens of "
                f"{name} (up to {max(cut)}): what follows is cut off"
            )
    return tuple(notes)


def require_classes(denoiser: nn.Module, info: WorkloadInfo) -> None:
    """Check that the network knows every class of the workload.

    Raises:
        UserError: a class is out of range, or no number.
    """
    if info.conditions != "class":
        return
    config = getattr(denoiser, "config", {})
    known = next((config[n] for n in _CLASS_COUNTS if config.get(n)), None)
    for text in info.prompts:
        if not text.strip().isdecimal():
            raise UserError(f"{info.name}: {text!r} is no class number")
        if known is not None and int(text) >= known:
            raise UserError(
                f"{info.name}: class {text} is out of range, the model has 0 to {known - 1}"
            )
