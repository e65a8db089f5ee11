"""Measures a folder against full precision: images of the same noise, steps timed in turns."""

import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from quantarena.bench.cache import StageCache
from quantarena.bench.devices.choose import choose
from quantarena.bench.devices.turns import take_turns
from quantarena.bench.errors import UserError
from quantarena.bench.gate.limits import (
    SPEEDUP,
    Check,
    Limit,
    mean_check,
    median_check,
    passes,
)
from quantarena.bench.gate.tested import Tested, open_gguf, open_tested
from quantarena.bench.machine import fingerprint
from quantarena.bench.metrics.fidelity.videos import video_fidelity
from quantarena.bench.process_state import process_state
from quantarena.bench.spec import Cell, content_key
from quantarena.bench.stages.fp_images import fp_images
from quantarena.bench.stages.quantize import Progress
from quantarena.bench.stages.record import trajectory
from quantarena.bench.stages.sample import sampled
from quantarena.bench.stages.sequence import TIMING_THREADS, sampler_batch
from quantarena.bench.stages.workspace import Workspace, open_workspace, prompt_groups
from quantarena.bench.workloads import registry
from quantarena.methods.builtin import is_gguf
from quantarena.methods.core.network import tensor_bytes
from quantarena.methods.core.packed.pack import channels_last


@dataclass(frozen=True, slots=True)
class Order:
    """What the gate is asked.

    Attributes:
        folder: the folder under test, or a GGUF file.
        cell: full precision: workload, seed, and a budget of images, batch and steps.
        limits: at least one.
        rounds: timed rounds, where a limit is on speed.
        cache: folder of cached stages.
        strict: whether an open check fails too.
    """

    folder: Path
    cell: Cell
    limits: tuple[Limit, ...]
    rounds: int
    cache: Path
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """The gate's answer.

    Attributes:
        checks: one for each limit.
        passed: whether the folder may ship.
        backend: what ran the folder's network.
        held_bytes: bytes of its denoiser, and of full precision's.
        warnings: lines for the reader.
        machine: what it ran on.
    """

    checks: tuple[Check, ...]
    passed: bool
    backend: str
    held_bytes: tuple[int, int]
    warnings: tuple[str, ...]
    machine: dict[str, Any]


@process_state(TIMING_THREADS)
def gate(order: Order, progress: Progress) -> Outcome:
    """Measure what the limits need, on one thread, and judge.

    Steps are the folder's own where the cell's budget names none; a file has none. Only the
    denoiser is what is tested: text encoder, autoencoder and noise are full precision's.

    Raises:
        UserError: the folder does not fit the model, or an image was not finite.
        BrokenModel: a folder is damaged.
    """
    tested, workspace = _opened(order)
    cache = StageCache(order.cache)
    values: dict[str, np.ndarray] = {}
    if any(limit.name != SPEEDUP for limit in order.limits):
        values |= _image_scores(workspace, tested, cache, progress)
    checks, shares = [], len(order.limits)
    warnings = _warnings(order, workspace, tested)
    groups = prompt_groups(workspace.info, order.cell.budget.images)
    for limit in order.limits:
        if limit.name == SPEEDUP:
            ratios, warning = _ratios(workspace, tested, cache, order.rounds, progress)
            warnings += (warning,) if warning else ()
            checks.append(median_check(limit, ratios, checks=shares))
            continue
        if limit.name not in values:
            raise UserError(f"{limit.name} cannot be measured: images are too small for it")
        if not np.isfinite(values[limit.name]).all():
            raise UserError(f"{order.folder} draws images that are not finite")
        checks.append(mean_check(limit, values[limit.name], checks=shares, groups=groups))
    return Outcome(
        tuple(checks),
        passes(tuple(checks), strict=order.strict),
        tested.network.backend,
        (tested.held_bytes, tensor_bytes(workspace.loaded.denoiser)),
        warnings,
        dict(fingerprint()),
    )


def _opened(order: Order) -> tuple[Tested, Workspace]:
    """What is under test, and full precision beside it.

    Raises:
        UserError: one does not fit the other.
    """
    if is_gguf(order.folder):
        workspace = open_workspace(order.cell)
        return open_gguf(order.folder, workspace.loaded), workspace
    tested = open_tested(order.folder)
    budget = order.cell.budget
    steps = budget.steps or registry.resolve(str(order.folder.resolve())).steps
    workspace = open_workspace(replace(order.cell, budget=replace(budget, steps=steps)))
    if workspace.loaded.slot != tested.slot:
        raise UserError(
            f"{order.folder} quantizes its {tested.slot}, and {order.cell.workload} has a "
            f"{workspace.loaded.slot} to compare it with: give the model that it was made from"
        )
    return tested, workspace


def _image_scores(
    workspace: Workspace, tested: Tested, cache: StageCache, progress: Progress
) -> dict[str, np.ndarray]:
    """Name of a fidelity metric to its value of each image."""
    reference = fp_images(workspace, cache, partial(progress, "full precision"))
    key = content_key(["gate", tested.sha256])
    drawn, _ = sampled(workspace, tested.network, key, cache, partial(progress, "sample")).value
    return video_fidelity(
        reference.images,
        drawn.images,
        drawn.frames,
        progress=lambda done: progress("score", done, drawn.count),
    )


def _ratios(
    workspace: Workspace, tested: Tested, cache: StageCache, rounds: int, progress: Progress
) -> tuple[np.ndarray, str]:
    """Speed-ups of one denoiser step by round, against fp32 in its faster layout; a warning."""
    images = workspace.budget.batch
    few = replace(workspace, budget=replace(workspace.budget, calibration_images=images))
    recorded = trajectory(few, cache, partial(progress, "record"))
    batch = sampler_batch(recorded, images)
    plain = workspace.loaded.denoiser
    candidates: dict[str, nn.Module] = {
        "contiguous": plain,
        "channels_last": channels_last(copy.deepcopy(plain)),
    }
    fastest = candidates[choose(candidates, batch).name]
    with tested.network.clock.at(int(batch.step[0])):
        networks = {"full": fastest, "test": tested.network.module}
        turns = take_turns(networks, batch, rounds, partial(progress, "time"))
    return np.asarray(turns.seconds("full")) / np.asarray(turns.seconds("test")), turns.warning


def _warnings(order: Order, workspace: Workspace, tested: Tested) -> tuple[str, ...]:
    if tested.base_sha256 in ("", workspace.loaded.sha256):
        return ()
    return (
        f"{order.folder} was made from other weights or another sampler than {order.cell.workload}",
    )
