"""Where and how a cell's networks run: device, number format, threads, runtime. No torch."""

import importlib.util
import re
from dataclasses import dataclass, fields
from typing import Any

from quantarena.bench.errors import UserError, did_you_mean

DTYPES = ("fp32", "bf16", "fp16")
LIBRARIES: dict[str, tuple[str, ...]] = {
    "torch": (),
    "openvino": ("openvino",),
    "onnx": ("onnx", "onnxruntime"),
}
"""The modules that each runtime needs."""
RUNTIMES = tuple(LIBRARIES)
MOST_THREADS = 1024
_DEVICE = re.compile(r"cpu|mps|cuda(:\d{1,3})?")


@dataclass(frozen=True, slots=True)
class Target:
    """Where and how a cell's networks run; part of the cell, so part of its key.

    Attributes:
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``. Everything runs there: recording,
            calibration, learning, drawing, scoring. Noise always comes from CPU generators.
        dtype: number format of all that a method leaves unquantized, while images are drawn and
            steps are timed: ``fp32``, ``bf16`` or ``fp16``. Methods calibrate in fp32, and images
            of full precision, which all others are compared with, are drawn in fp32.
        threads: torch's CPU threads while steps are timed. All else runs on one, which sums in
            one order.
        runtime: what runs the packed network: ``torch`` with our own kernels,
            ``openvino`` or ``onnx``.
        offload: keep all networks on the host; their blocks visit the device, one at a time. For
            networks that do not fit it.
    """

    device: str = "cpu"
    dtype: str = "fp32"
    threads: int = 1
    runtime: str = "torch"
    offload: bool = False

    @property
    def kind(self) -> str:
        """The device without its number."""
        return self.device.partition(":")[0]

    @property
    def label(self) -> str:
        """What differs from the default, such as ``cuda, bf16``; empty where nothing does."""
        usual = Target()
        threads = f"{self.threads} threads" if self.threads != usual.threads else ""
        plain = (
            getattr(self, name) if getattr(self, name) != getattr(usual, name) else ""
            for name in ("device", "dtype", "runtime")
        )
        offload = "offload" if self.offload else ""
        return ", ".join(text for text in (*plain, threads, offload) if text)


DEFAULT_TARGET = Target()


def target_content(target: Target) -> dict[str, Any]:
    """The fields of a target that enter keys: one that joined later only where it is used."""
    plain = {field.name: getattr(target, field.name) for field in fields(target)}
    if not target.offload:
        del plain["offload"]
    return plain


def absent_library(runtime: str) -> str:
    """The first module of a runtime that is not installed; empty where all are."""
    absent = (name for name in LIBRARIES[runtime] if importlib.util.find_spec(name) is None)
    return next(absent, "")


def checked_target(
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    runtime: str | None = None,
    offload: bool | None = None,
) -> Target:
    """The target of these options; None stands for the default.

    Raises:
        UserError: a name that does not exist, a number out of range, or a pair that cannot be.
    """
    usual = DEFAULT_TARGET
    target = Target(
        usual.device if device is None else device.lower(),
        usual.dtype if dtype is None else dtype.lower(),
        usual.threads if threads is None else threads,
        usual.runtime if runtime is None else runtime.lower(),
        usual.offload if offload is None else offload,
    )
    if not _DEVICE.fullmatch(target.device):
        raise UserError(f"--device {device}: it must be cpu, mps, cuda or cuda:NUMBER")
    for option, value, known in (
        ("--dtype", target.dtype, DTYPES),
        ("--runtime", target.runtime, RUNTIMES),
    ):
        if value not in known:
            raise UserError(f"{option} {value}: {did_you_mean(value, known)}")
    if not 1 <= target.threads <= MOST_THREADS:
        raise UserError(f"--threads {target.threads}: it must be from 1 to {MOST_THREADS}")
    if target.dtype == "fp16" and target.kind == "cpu":
        raise UserError("--dtype fp16 needs a GPU: CPUs compute in fp32 or bf16")
    if target.runtime == "onnx" and target.dtype != usual.dtype:
        raise UserError(f"--dtype {target.dtype}: ONNX Runtime computes in fp32 on CPUs")
    if target.offload and target.kind == "cpu":
        raise UserError(
            "--offload keeps networks on the host and computes on a device: name it, as in "
            "--device cuda --offload"
        )
    if target.runtime != usual.runtime and target.kind != "cpu":
        raise UserError(f"--runtime {target.runtime} runs on the CPU, not on {target.device}")
    return target
