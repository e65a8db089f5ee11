"""A synthetic results folder: numbers and pictures made up here, no model behind them."""

import dataclasses
import json
import os
import shutil
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from quantarena.bench.schema import Latency, Measurement, Observed, Parity, Row, Status
from quantarena.bench.spec import Budget, Grid

LPIPS = "lpips/alex-v0.1"
METHODS = {"rtn": 1.0, "q_diffusion": 0.45, "steady": 0.7}
TITLES = {"rtn": "RTN", "q_diffusion": "Q-Diffusion", "steady": "Steady (made up)"}
BITS = {"w8a8": (0.012, 1.32, 0.26), "w4a8": (0.085, 1.48, 0.14), "w4a4": (0.34, 1.63, 0.135)}
WORKLOADS = {"synthetic-shapes": 64, "synthetic-blobs": 32}
FP_BYTES = 26_800_000
PROMPTS = [
    "red dot",
    "green tile",
    "blue moon",
    "yellow sun",
    "pink drop",
    "teal gem",
    "coral button",
    "mint key",
]


def grid(images=24, workloads=tuple(WORKLOADS), methods=tuple(METHODS), bits=tuple(BITS)):
    budget = Budget(images=images, batch=4, latency_rounds=20)
    return Grid("synthetic", "Synthetic grid", workloads, ("fp", *methods), bits, budget=budget)


def picture(side, index, noise, rng):
    colours = ["#d64545", "#4b9e5f", "#3f6fc4", "#e2b13c", "#c667a8", "#3a9c9c"]
    image = Image.new("RGB", (side, side), "#fbfaf7")
    draw = ImageDraw.Draw(image)
    inset = side * (0.14 + 0.03 * (index % 3))
    box = (inset, inset, side - inset, side - inset)
    colour = colours[index % len(colours)]
    shape = index % 3
    if shape == 0:
        draw.ellipse(box, fill=colour)
    elif shape == 1:
        draw.rounded_rectangle(box, radius=side / 7, fill=colour)
    else:
        draw.pieslice(box, 30 + 20 * index, 320 + 20 * index, fill=colour)
    pixels = np.asarray(image, dtype=np.float64)
    wave = np.sin(np.arange(side) / side * 9 + index) * 60 * noise
    pixels = pixels + rng.normal(0, 70 * noise, pixels.shape) + wave[:, None, None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def bootstrapped(values, name, rng, **extra):
    draws = rng.choice(values, size=(200, len(values))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Measurement(name, float(values.mean()), float(low), float(high), n=len(values), **extra)


def sample_row(cell, ratio, share):
    """An ok row without measurements and files."""
    fp = cell.method == "fp"
    step = 41.5 / ratio
    return Row(
        cell,
        Status.OK,
        backend="fp32" if fp else "packed",
        observed=Observed(
            32.0 if fp else cell.widths.weight + 0.31,
            32.0 if fp else cell.widths.act + 0.12,
            {"fp": 1.0} if fp else {"w8a8": 0.021, "fp": 0.008, cell.bits: 0.971},
            int(FP_BYTES * share),
            FP_BYTES,
            0 if fp else 83,
            32.0 if fp else float(cell.widths.weight),
            1_000_000_000 if fp else 1_000_000 * cell.widths.weight * cell.widths.act,
            1_000_000_000,
            0,
            0,
        ),
        parity=None if fp else Parity(3.1e-7, "mid_block.resnets.0.conv1", 83, 1e-5),
        latency=Latency(
            step,
            step * 0.04,
            41.5,
            "fp32 channels_last",
            ratio,
            ratio * 0.97,
            ratio * 1.03,
            step * 20,
            4,
            20,
            2,
            "fp32" if fp else "packed",
            "perf_counter",
            int(9.1e7 * (0.5 + share / 2)),
        ),
        calibration={} if fp else {"images": 32, "samples": 256, "steps": {"0": 12, "10": 13}},
        method={
            "title": TITLES.get(cell.method, cell.method),
            "venue": "synthetic",
            "paper": "none",
            "version": 1,
            "origin": "builtin",
        },
        workload={
            "scheduler": "DDIM",
            "steps": 20,
            "guidance": 3.0,
            "resolution": 64,
            "model_sha256": "0" * 64,
            "reference": "synthetic set",
            "prompts": PROMPTS,
        },
        machine={
            "cpu": "Synthetic CPU @ 2.0 GHz",
            "cores": 2,
            "ram_bytes": 8_000_000_000,
            "versions": {"torch": "0.0"},
            "git": None,
        },
        seconds={
            "record": 3.2,
            "quantize": 12.4,
            "pack": 0.6,
            "sample": 20.1,
            "score": 2.2,
            "time": 4.0,
        },
        peak_bytes=912_000_000,
        started="2026-01-01T00:00:00+00:00",
        finished="2026-01-01T00:01:00+00:00",
    )


def measured(folder, cell, rng, shared, pictures):
    """An ok row with its files."""
    fp = cell.method == "fp"
    level, ratio, share = (0.004, 1.0, 1.0) if fp else BITS.get(cell.bits, (0.1, 1.2, 0.2))
    level *= 1.0 if fp else METHODS.get(cell.method, 0.8)
    ratio *= 1.0 if fp else rng.uniform(0.97, 1.03)
    count = cell.budget.images
    scores = {}
    measurements = []
    if fp:
        scores[f"floor:{LPIPS}"] = level * np.exp(rng.normal(0, 0.4, count))
    else:
        lpips = np.clip(level * shared * np.exp(rng.normal(0, 0.25, count)), 0, 1)
        scores = {LPIPS: lpips, "psnr": 10 - 12 * np.log10(lpips), "ssim": 1 - 0.8 * lpips}
        for name, unit, up in ((LPIPS, "", False), ("psnr", "dB", True), ("ssim", "", True)):
            measurements.append(
                bootstrapped(
                    scores[name], name, rng, unit=unit, higher_is_better=up, reference="fp"
                )
            )
    kid = 0.021 + (0 if fp else 0.09 * level)
    measurements.append(
        Measurement(
            "kid/effnet-lite0",
            kid,
            kid - 0.006,
            kid + 0.006,
            n=count,
            board="quality",
            impl="synthetic",
            reference="synthetic set",
        )
    )
    (folder / "scores").mkdir(parents=True, exist_ok=True)
    np.savez(folder / "scores" / f"{cell.key}.npz", **scores)
    if pictures:
        place = folder / "images" / cell.key
        place.mkdir(parents=True, exist_ok=True)
        for index in range(min(count, 8)):
            noise = 0 if fp else min(level * 1.6, 0.9)
            picture(WORKLOADS[cell.workload], index, noise, rng).save(place / f"{index:04d}.png")
    return dataclasses.replace(
        sample_row(cell, ratio, share),
        measurements=tuple(measurements),
        artefacts={"scores": f"scores/{cell.key}.npz"}
        | ({"images": f"images/{cell.key}"} if pictures else {}),
    )


def write_row(folder, row):
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    (folder / "rows" / f"{row.key}.json").write_text(json.dumps(row.to_dict()))


def build(folder: Path, *, plan=None, pictures=True, broken=True, seed=0):
    """Write the folder; returns the planned cells, of which the last has no row."""
    plan = plan or grid()
    rng = np.random.default_rng(seed)
    shared = {w: np.exp(rng.normal(0, 0.35, plan.budget.images)) for w in plan.workloads}
    cells = plan.cells()
    spoilt = {}
    if broken:
        spoilt = {
            ("synthetic-blobs", "steady", "w4a8"): (
                Status.FAILED,
                "NaN in mid_block.attn at step 7",
            ),
            ("synthetic-blobs", "q_diffusion", "w4a4"): (Status.TIMEOUT, "no result after 600 s"),
            ("synthetic-shapes", "steady", "w4a8"): (Status.SKIPPED, "steady supports w8a8, w4a4"),
        }
    for cell in cells:
        end = spoilt.get((cell.workload, cell.method, cell.bits))
        if end:
            row = Row(cell, end[0], end[1], seconds={"quantize": 4.0})
        elif broken and cell == cells[-1]:
            continue
        else:
            row = measured(folder, cell, rng, shared[cell.workload], pictures)
            if broken and cell.workload == "synthetic-blobs" and cell.method == "rtn":
                row = dataclasses.replace(
                    row,
                    backend="reference",
                    latency=dataclasses.replace(
                        row.latency,
                        backend="reference",
                        ratio=0.11,
                        ratio_low=0.10,
                        ratio_high=0.12,
                        step_ms=377.0,
                    ),
                    warnings=("no compiler found: the torch reference made these images",),
                )
        write_row(folder, row)
    return cells


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """Two workloads, three methods, three bits; failed, skipped, timed-out and missing cells."""
    folder = tmp_path_factory.mktemp("results") / "synthetic"
    return folder, build(folder)


@pytest.fixture
def make_results():
    return build


@pytest.fixture
def make_grid():
    return grid


@pytest.fixture(scope="session")
def axe():
    """What axe-core finds on a page, as ``(rule, impact, elements)``."""
    package = "axe_playwright_python"
    pytest.importorskip(package, reason="axe-core is not installed: pip install " + package)
    code = (resources.files(package) / "axe.min.js").read_text(encoding="utf-8")

    def faults(page):
        page.evaluate(code)
        found = page.evaluate("axe.run({ resultTypes: ['violations'] })")["violations"]
        return [
            (fault["id"], fault["impact"], [node["html"] for node in fault["nodes"]])
            for fault in found
        ]

    return faults


FLAGS = [
    f"--{flag}"
    for flag in (
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-sync",
        "disable-background-networking",
        "disable-component-update",
    )
]


@pytest.fixture(scope="module")
def browser():
    """Chromium; tests that ask for it skip where it or Playwright is absent."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not path:
        pytest.skip("no Chromium found: install one or set CHROMIUM to its path")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()
