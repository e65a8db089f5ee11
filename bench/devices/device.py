"""The device of a target: whether it is here, what it is, and timing and memory on it."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from quantarena.bench import machine
from quantarena.bench.devices import fit
from quantarena.bench.errors import UserError
from quantarena.bench.memory import peak_growth
from quantarena.bench.schema import Device
from quantarena.bench.target import Target
from quantarena.bench.workloads.pipeline import LoadedPipeline
from quantarena.methods.core.cuda.device import timing_event
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.visits import visiting

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def require(target: Target) -> torch.device:
    """The target's device.

    Raises:
        UserError: this machine has none such.
    """
    device = torch.device(target.device)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise UserError(f"--device {target.device}: torch finds no CUDA device here")
        if (device.index or 0) >= count:
            last = f"the last one is cuda:{count - 1}"
            raise UserError(f"--device {target.device}: there is none of that number, {last}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: torch finds no Metal device here")
    return device


def on_device(loaded: LoadedPipeline, target: Target) -> LoadedPipeline:
    """The pipeline with all its networks on the target's device, in place.

    With ``offload`` they stay on the host, and their blocks visit the device.

    Raises:
        UserError: this machine has no such device, or they do not fit it.
    """
    device = require(target)
    if device.type == "cpu":
        return loaded
    parts = loaded.pipe.components.items()
    networks = {name: part for name, part in parts if isinstance(part, nn.Module)}
    fit.require_fit(networks, target, fit.free_bytes(device))
    for network in networks.values():
        if target.offload:
            visiting(network, device)
        else:
            network.to(device)
    return loaded


def describe_device(target: Target) -> Device:
    """What a row says of its device."""
    facts = machine.fingerprint()
    if target.kind == "cpu":
        clock = machine.highest_clock()
        return Device("cpu", facts["cpu"], memory_bytes=facts["ram_bytes"], clock_mhz=clock)
    if target.kind == "mps":
        return Device("mps", facts["cpu"], memory_bytes=facts["ram_bytes"])
    found = torch.cuda.get_device_properties(torch.device(target.device))
    names = ("driver_version", "clocks.max.sm", "clocks.max.memory", "power.limit")
    said = machine.nvidia_smi(names, gpu=f"GPU-{found.uuid}") or ("",) * len(names)
    return Device("cuda", found.name, said[0] or None, found.total_memory, *map(_number, said[1:]))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # such as [N/A]
        return None


def clock_of(points: CalibrationSet) -> str:
    """The name of the clock that times a call on these points."""
    return "cuda_event" if points.sample.is_cuda else "perf_counter"


def timed(model: nn.Module, points: CalibrationSet) -> float:
    """Seconds of one call; those that the GPU works, where the points are on one."""
    if not points.sample.is_cuda:
        started = time.perf_counter()
        points.call(model)
        if points.sample.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter() - started
    first, last = timing_event(), timing_event()
    torch.cuda.synchronize(points.sample.device)
    first.record()
    points.call(model)
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3


def peak_of(call: Callable[[], Any], device: torch.device) -> int:
    """Bytes that a call adds: allocated memory of a GPU, else resident memory of the process."""
    if device.type != "cuda":
        return peak_growth(call)
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return max(0, torch.cuda.max_memory_allocated(device) - before)
