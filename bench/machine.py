"""The machine that a number was measured on: processor, memory, versions, commit. No torch."""

import functools
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "torchmetrics", "numpy", "ray")
_ISA = (
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
)


@functools.cache
def _fingerprint() -> dict[str, Any]:
    fields = _cpuinfo()
    return {
        "cpu": _cpu_name(fields),
        "cores": cores(),
        "isa": sorted(set(fields.get("flags", fields.get("Features", "")).split()) & set(_ISA)),
        "arch": platform.machine(),
        "ram_bytes": memory_limit(),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions(),
        "git": git_state(),
        "gpu": gpu(),
    }


def fingerprint() -> dict[str, Any]:
    """The facts about this machine in plain JSON types, collected once; each call gives a copy."""
    facts = dict(_fingerprint())
    facts["versions"] = dict(facts["versions"])
    return facts


def has_dot_products() -> bool:
    """Whether the processor sums products of bytes in int32 in one instruction.

    Without it, libraries sum pairs of uint8 by int8 products in int16, which saturates.
    """
    known = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}
    return bool(known & set(_fingerprint()["isa"]))


COMPARED = ("cpu", "cores", "gpu")
"""Facts in which two machines are equal if their times are comparable."""


def same_machine(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether times measured on two machines are comparable."""
    return all(one.get(name) == other.get(name) for name in COMPARED)


def cores() -> int:
    """The number of cores that this process may use, by affinity and the container's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _cgroup("cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit() and quota[1].isdigit():
        return max(1, min(allowed or 1, round(int(quota[0]) / int(quota[1]))))
    return max(1, allowed or 1)


def memory_limit() -> int:
    """The bytes of memory that this process may use, by the machine and the container's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _cgroup("memory.max").strip()
    return min(total, int(limit)) if limit.isdigit() else total


def oom_kills() -> int:
    """How many processes the kernel has killed for lack of memory, on the machine or container."""
    texts = (_cgroup("memory.events"), _read(Path("/proc/vmstat")))
    pairs = (line.split() for text in texts for line in text.splitlines())
    return sum(int(p[1]) for p in pairs if len(p) == 2 and p[0] == "oom_kill" and p[1].isdigit())


def versions() -> dict[str, str]:
    """The installed versions of the libraries that numbers depend on."""
    installed: dict[str, str] = {}
    for name in ("quantarena", *PACKAGES):
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def git_state() -> dict[str, Any] | None:
    """The commit of the source tree and whether files differ from it; None if there is no tree."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    commit = _output("git", "-C", str(root), "rev-parse", "HEAD")
    if not commit:
        return None
    changed = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changed)}


def gpu() -> dict[str, Any] | None:
    """The name, memory and driver of the first NVIDIA GPU, or None."""
    found = nvidia_smi(("name", "memory.total", "driver_version"), "csv,noheader")
    return dict(zip(("name", "memory", "driver"), found, strict=True)) if found else None


def nvidia_smi(
    fields: tuple[str, ...], form: str = "csv,noheader,nounits", gpu: str | None = None
) -> tuple[str, ...] | None:
    """What the driver says about one GPU.

    Args:
        fields: names of ``nvidia-smi --help-query-gpu``.
        form: of the answer.
        gpu: its UUID; None for the first.

    Returns:
        A text for each field; None where there is no driver or no such GPU.
    """
    chosen = () if gpu is None else ("-i", gpu)
    query = (f"--query-gpu={','.join(fields)}", f"--format={form}")
    line = _output("nvidia-smi", *chosen, *query).partition("\n")[0]
    parts = tuple(part.strip() for part in line.split(","))
    return parts if len(parts) == len(fields) else None


def highest_clock() -> float | None:
    """The highest clock of the first processor in MHz; None where the system does not say."""
    text = _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")).strip()
    return int(text) / 1000 if text.isdigit() else None


def _output(*command: str) -> str:
    """The standard output of a command; empty if it is missing, fails or hangs."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpuinfo() -> dict[str, str]:
    """The fields of the first processor in ``/proc/cpuinfo``."""
    fields: dict[str, str] = {}
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields


def _cpu_name(fields: dict[str, str]) -> str:
    named = fields.get("model name") or _output("sysctl", "-n", "machdep.cpu.brand_string")
    return named or platform.processor() or platform.machine()


def _cgroup(name: str) -> str:
    return _read(Path("/sys/fs/cgroup") / name)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
