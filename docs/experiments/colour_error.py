"""Prints how much of each method's image error is colour, and LPIPS without its mean colour error.

The tables of docs/methods/eda_dm.md come from ``python docs/experiments/colour_error.py
results/quick cifar10-uncond w4a8``.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from quantarena.bench.metrics.fidelity.lpips import lpips
from quantarena.bench.schema import Row, Status
from quantarena.bench.store import Store


def images(folder: Path, row: Row) -> np.ndarray:
    """A row's images, (N, H, W, 3) float64 from 0 to 255."""
    files = sorted((folder / row.artefacts["images"]).glob("*.png"))
    return np.stack([np.asarray(Image.open(file).convert("RGB"), np.float64) for file in files])


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Mean LPIPS of two sets of images."""
    pair = (np.clip(np.rint(each), 0, 255).astype(np.uint8) for each in (one, other))
    first, second = (torch.from_numpy(each).permute(0, 3, 1, 2).contiguous() for each in pair)
    return float(lpips(first, second).mean())


def main() -> None:
    """Print one line for each method."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path, help="results folder")
    parser.add_argument("workload")
    parser.add_argument("bits")
    given = parser.parse_args()
    rows = [r for r in Store(given.run).rows() if r.status is Status.OK]
    rows = [r for r in rows if r.cell.workload == given.workload and r.cell.seed == 0]
    full = images(given.run, next(row for row in rows if row.cell.method == "fp"))
    print("| method | LPIPS | without mean colour error | colour's share | mean of R, G, B |")
    print("|---|---|---|---|---|")
    for row in rows:
        if row.cell.bits != given.bits:
            continue
        found = images(given.run, row)
        error = found - full
        grey = error.mean(-1, keepdims=True)
        share = np.square(error - grey).mean() / np.square(error).mean()
        mean = error.mean((0, 1, 2))
        shown = ", ".join(f"{value / 255:.3f}" for value in mean)
        apart = distance(full, found), distance(full, found - mean)
        print(f"| {row.cell.method} | {apart[0]:.3f} | {apart[1]:.3f} | {share:.2f} | {shown} |")


if __name__ == "__main__":
    main()
