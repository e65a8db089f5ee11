"""Whether the CUDA kernels can run here, and why not. Imports neither Triton nor a kernel."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from quantarena.methods.core.cuda.tuning import HOPPER


@dataclass(frozen=True, slots=True)
class CudaStatus:
    """The GPU that the CUDA backend would use in this process."""

    device: str | None
    """Name of the GPU, or None."""
    capability: tuple[int, int] | None
    """Compute capability, or None."""
    reason: str
    """Why layers cannot run on a GPU; empty where they can."""


def status() -> CudaStatus:
    """Find the GPU, and the reason where the kernels cannot run.

    Triton has int8 matrix products for compute capability 8.0 (Ampere) and above.
    """
    if not torch.cuda.is_available():
        return CudaStatus(None, None, "no CUDA device")
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    reason = ""
    if importlib.util.find_spec("triton") is None:
        reason = "triton is not installed; torch's CUDA wheels bring it"
    elif capability < (8, 0):
        reason = (
            f"{name} is older than compute capability 8.0, which Triton needs for int8 products"
        )
    return CudaStatus(name, capability, reason)


@cache
def arch(device: torch.device) -> int:
    """Compute capability of a GPU times ten; that of Hopper on the CPU, in the interpreter."""
    if device.type != "cuda":
        return HOPPER
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def timing_event() -> Any:
    """A CUDA event that can be timed."""
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


@contextmanager
def interpreted_without_gpu() -> Iterator[None]:
    """Let kernels that are first imported inside run on Triton's interpreter if there is no GPU.

    Nothing may have imported ``layer`` before: Triton decides once, when it sees a kernel. This is
    for tests; a process that only checks kernels sets ``TRITON_INTERPRET=1`` instead.
    """
    before = os.environ.get("TRITON_INTERPRET")
    if status().reason:
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("TRITON_INTERPRET", None)
        else:
            os.environ["TRITON_INTERPRET"] = before
