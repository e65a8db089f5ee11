"""Writes docs/results/gpu-CARD.md from a run on a GPU and the times of its kernels.

``make gpu`` calls it: ``python docs/experiments/gpu_page.py results/smoke-cuda results/cuda.json``.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantarena.bench.schema import Device, Row, Status
from quantarena.bench.store import Store

LPIPS = "lpips/alex-v0.1"
OUTPUT = Path("docs/results")


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body))


def described(device: Device) -> str:
    """The card with what decides its speed; unknown facts are left out."""
    facts = [
        (device.driver, "driver {}"),
        (device.memory_bytes and round(device.memory_bytes / 2**30), "{} GiB"),
        (device.clock_mhz, "multiprocessors at most {:.0f} MHz"),
        (device.memory_clock_mhz, "memory {:.0f} MHz"),
        (device.power_cap_w, "power cap {:.0f} W"),
    ]
    return ", ".join([device.name, *(text.format(value) for value, text in facts if value)])


def cells(rows: Sequence[Row]) -> str:
    """One line for each cell."""
    body = []
    for row in rows:
        found, time = row.measurement(LPIPS), row.latency
        body.append(
            (
                row.cell.configured,
                row.cell.bits,
                row.backend if row.status is Status.OK else f"{row.status}: {row.reason}",
                "-" if found is None or found.value is None else f"{found.value:.3g}",
                "-" if time is None else f"{time.step_ms:.3g} ms",
                "-" if time is None else f"{time.ratio:.2f} of {time.fp_setting}",
                "-" if time is None else f"{time.peak_bytes / 2**20:.0f} MiB",
            )
        )
    return table(("method", "bits", "backend", "LPIPS", "step", "speed", "peak"), body)


def kernels(document: dict[str, Any]) -> str:
    """One line for each shape and width."""
    body = [
        (
            str(row["name"]),
            str(row["bits"]),
            f"{1e6 * row['bf16_seconds']:.1f}",
            f"{1e6 * row['seconds']:.1f}",
            f"{row['ratio']:.2f}",
        )
        for row in document["rows"]
    ]
    return table(("layer", "bits", "bf16 (us)", "packed (us)", "ratio"), body)


def page(rows: Sequence[Row], document: dict[str, Any]) -> str:
    """The page.

    Raises:
        SystemExit: no row was measured on a GPU, or rows are of several.
    """
    devices = {row.device for row in rows if row.device and row.device.kind == "cuda"}
    if len(devices) != 1:
        raise SystemExit(f"rows of one GPU are needed, these are of {len(devices)}")
    (device,) = devices
    versions = next(row.machine.get("versions", {}) for row in rows)
    return "\n".join(
        [
            f"# {device.name}",
            "",
            f"Measured on {described(device)}; torch {versions.get('torch', '?')}. Written by "
            "`make gpu`: do not edit.",
            "",
            "## Preset `smoke`",
            "Speed is against the fastest unquantized setting, in paired rounds timed by CUDA "
            "events; peak is the",
            "memory that a step allocates.",
            "",
            cells(rows),
            "",
            "## Kernels",
            "Layers with bfloat16 inputs against cuBLAS or cuDNN in bfloat16, as "
            "[kernels.md](../kernels.md) describes.",
            "",
            kernels(document),
            "",
        ]
    )


def main() -> None:
    """Write the page and print its place."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path, help="results folder of the run")
    parser.add_argument("kernels", type=Path, help="file of methods.timing.cuda")
    given = parser.parse_args()
    rows = Store(given.run).rows()
    text = page(rows, json.loads(given.kernels.read_text()))
    name = re.sub(r"[^a-z0-9]+", "-", next(r.device.name for r in rows if r.device).lower())
    path = OUTPUT / f"gpu-{name.strip('-')}.md"
    path.write_text(text)
    print(path)


if __name__ == "__main__":
    main()
