"""Latency of one denoiser step: warm, alone, interleaved with full precision."""

import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from quantarena.bench.cache import StageCache
from quantarena.bench.closure import closure
from quantarena.bench.machine import fingerprint
from quantarena.bench.memory import peak_growth
from quantarena.bench.schema import Latency
from quantarena.bench.spec import content_key
from quantarena.bench.stages.workspace import Workspace
from quantarena.methods.core.packed.pack import channels_last
from quantarena.methods.core.record.trajectory import CalibrationSet

WARMUP = 3
Progress = Callable[[int, int], None]


def full_precision_settings(model: nn.Module) -> dict[str, nn.Module]:
    """Full precision in the settings that are tried here: fp32, eager and channels_last.

    bfloat16 and torch.compile are not tried on the CPU. The row names the setting that won.
    """
    return {"fp32 eager": model, "fp32 channels_last": channels_last(copy.deepcopy(model))}


def _timed(model: nn.Module, points: CalibrationSet) -> float:
    started = time.perf_counter()
    points.call(model)
    return time.perf_counter() - started


@torch.no_grad()
def fastest_full_precision(model: nn.Module, points: CalibrationSet, rounds: int = 5) -> str:
    """Which setting of full precision is fastest, by the median of interleaved rounds."""
    settings = full_precision_settings(model)
    times: dict[str, list[float]] = {name: [] for name in settings}
    for index in range(WARMUP + rounds):
        for name, setting in settings.items():
            seconds = _timed(setting, points)
            if index >= WARMUP:
                times[name].append(seconds)
    return min(times, key=lambda name: statistics.median(times[name]))


def fastest_setting(workspace: Workspace, batch: CalibrationSet, cache: StageCache) -> str:
    """The name of the fastest setting, from the cache or measured now.

    All cells of a workload are timed against one baseline, so that their ratios can be compared.

    Args:
        workspace: the workload; its denoiser is timed.
        batch: one batch of recorded inputs.
        cache: of stages.
    """

    def make(folder: Path) -> None:
        found = fastest_full_precision(workspace.loaded.denoiser, batch)
        (folder / "setting.json").write_text(json.dumps(found))

    def read(folder: Path) -> str:
        return str(json.loads((folder / "setting.json").read_text()))

    inputs = [workspace.loaded.sha256, workspace.settings(), len(batch), fingerprint()]
    key = content_key([inputs, closure(__name__).key])
    return cache.load("setting", key, make, read)


def ratio_interval(fp: list[float], test: list[float], seed: int = 0) -> tuple[float, float, float]:
    """Median of paired ratios ``fp / test`` and its 95 % bootstrap interval."""
    ratios = np.asarray(fp) / np.asarray(test)
    generator = np.random.default_rng(seed)
    draws = generator.integers(0, len(ratios), (2000, len(ratios)))
    medians = np.median(ratios[draws], axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


@torch.no_grad()
def measure(
    model: nn.Module,
    original: nn.Module,
    points: CalibrationSet,
    *,
    backend: str,
    images: int,
    steps: int,
    rounds: int,
    setting: str = "",
    progress: Progress | None = None,
) -> Latency:
    """Time one denoiser call.

    Args:
        model: the network under test.
        original: full precision; its fastest setting is the baseline.
        points: one batch of recorded inputs (both guidance halves where guidance is on).
        backend: of ``model``.
        images: images that this batch makes.
        steps: sampler steps of an image.
        rounds: timed rounds, at least 20; the two networks take turns within each.
        setting: full precision's, where it is known to be its fastest; else found first.
        progress: called with (rounds done, rounds).
    """
    setting = setting or fastest_full_precision(original, points)
    baseline = full_precision_settings(original)[setting]
    test = baseline if backend == "fp32" else model
    fp_times: list[float] = []
    test_times: list[float] = []
    for index in range(WARMUP + rounds):
        first_fp, first_test = (baseline, test) if index % 2 == 0 else (test, baseline)
        pair = (_timed(first_fp, points), _timed(first_test, points))
        fp_seconds, test_seconds = pair if index % 2 == 0 else pair[::-1]
        if index >= WARMUP:
            fp_times.append(fp_seconds)
            test_times.append(test_seconds)
        if progress is not None:
            progress(index + 1, WARMUP + rounds)
    ratio, low, high = ratio_interval(fp_times, test_times)
    quarters = statistics.quantiles(test_times, n=4)
    step = statistics.median(test_times)
    return Latency(
        step_ms=1e3 * step,
        step_iqr_ms=1e3 * (quarters[2] - quarters[0]),
        fp_step_ms=1e3 * statistics.median(fp_times),
        fp_setting=setting,
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        image_ms=1e3 * step * steps / images,
        batch=images,
        rounds=rounds,
        threads=torch.get_num_threads(),
        backend=backend,
        clock="perf_counter",
        peak_bytes=peak_growth(lambda: points.call(test)),
    )
