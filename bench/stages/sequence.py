"""The stations of one cell: quantize, pack, parity, sample, score; then, alone, time.

Every station is cached under a hash of all that it depends on, code included, so a cell that was
stopped goes on where it stopped.
"""

from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantarena.bench.cache import StageCache
from quantarena.bench.code_hash import class_sha256
from quantarena.bench.errors import one_line
from quantarena.bench.machine import fingerprint
from quantarena.bench.metrics.image_folder import save_folder
from quantarena.bench.report.compare import REPLICATES
from quantarena.bench.schema import UNITS, Observed, Parity, Row, Status
from quantarena.bench.spec import Cell
from quantarena.bench.stages import closeness, floors, ground
from quantarena.bench.stages.ground import Workspace, open_workspace
from quantarena.bench.stages.latency import measure
from quantarena.bench.stages.quantize_sample import Progress, Work, quantized, sampled
from quantarena.bench.stages.score import ScoreInputs, score
from quantarena.bench.workloads.sampling import Drawn, condition
from quantarena.methods.core import kernels
from quantarena.methods.core.errors import QuantArenaError, Unsupported
from quantarena.methods.core.packed.pack import PARITY_LIMIT, observe, pack, parity
from quantarena.methods.core.record.trajectory import CalibrationSet, Trajectory
from quantarena.methods.registry import Entry, entry

PARITY_POINTS = 4
SHOWN_PROMPTS = 64
"""Conditions that a row repeats, for captions of its gallery."""
_fp_setting: dict[str, str] = {}
"""Full precision's fastest setting, by what cells share, as found in this process."""
TIMING_THREADS = 1
"""One thread: the same on every machine, and the steadiest where other processes live."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Where things go.

    Attributes:
        results: folder of this run.
        cache: folder of cached stages, shared by all runs.
    """

    results: Path
    cache: Path


def prepare(
    cell: Cell, paths: Paths, *, plugins: tuple[str, ...] = (), progress: Progress
) -> dict[str, float]:
    """Make what all cells of ``cell.shared_key`` share; nothing to do when it is cached.

    Returns:
        Wall seconds by station.

    Raises:
        UserError: the workload is unknown or damaged.
    """
    work, cache = Work(), StageCache(paths.cache)
    torch.set_num_threads(1)
    workspace = open_workspace(cell)
    with work.station("record"):
        ground.trajectory(workspace, cache, lambda done, total: progress("record", done, total))
    with work.station("fp_images"):
        closeness.fp_latents(
            workspace, cache, lambda done, total: progress("fp images", done, total)
        )
    with work.station("fp_probe"):
        closeness.probe(workspace, cache, lambda done, total: progress("fp probe", done, total))
    with work.station("fp_floor"):
        for floor in (floors.rounded, floors.other_seed):
            floor(workspace, cache, lambda done, total: progress("fp floor", done, total))
    with work.station("reference"):
        progress("reference", 0, 1)
        ground.real_features(workspace, cache)
        progress("reference", 1, 1)
    return work.seconds


def run_cell(
    cell: Cell,
    paths: Paths,
    *,
    plugins: tuple[str, ...] = (),
    prefer_plugin: bool = False,
    progress: Progress,
) -> Row:
    """Everything of a cell but its latency. A cell that fails is a row with the reason.

    Only an interrupt or a signal of the executor comes out as an exception.
    """
    started = _now()
    row = Row(cell, Status.OK, machine=fingerprint(), started=started)
    torch.set_num_threads(1)
    try:
        found = entry(cell.method, plugins, prefer_plugin=prefer_plugin)
        row = replace(row, method=_describe(found))
        row = _stations(row, found, paths, progress)
    except Unsupported as error:
        row = replace(row, status=Status.SKIPPED, reason=str(error))
    except (MemoryError, torch.OutOfMemoryError) as error:
        row = replace(row, status=Status.OOM, reason=one_line(error))
    except QuantArenaError as error:
        row = replace(row, status=Status.FAILED, reason=str(error))
    except SystemExit:
        row = replace(row, status=Status.FAILED, reason=f"{cell.method} called sys.exit")
    except Exception as error:  # whatever a plug-in raises is this cell's own affair
        # torch's CPU allocator has no error class of its own
        status = Status.OOM if "DefaultCPUAllocator" in str(error) else Status.FAILED
        row = replace(row, status=status, reason=one_line(error))
    return replace(row, finished=_now())


def _stations(row: Row, found: Entry, paths: Paths, progress: Progress) -> Row:
    cell, work, cache = row.cell, Work(), StageCache(paths.cache)
    method = found.method()
    method.check(cell.widths, cell.variant)  # before anything expensive
    workspace = open_workspace(cell)
    recorded = ground.trajectory(workspace, cache)
    model, calibration = quantized(workspace, recorded, cell, method, cache, work, progress)
    with work.station("pack"):
        packed = pack(model)
    probe = recorded.pick(*_probe(recorded))
    checked = None
    if model.layers:
        progress("parity", 0, 1)
        with work.station("parity"):
            report = parity(model, packed, probe)
        checked = Parity(report.max_rel, report.worst_layer, report.layers, PARITY_LIMIT)
    observed = Observed(**_fields(observe(model, packed, workspace.loaded.denoiser)))
    reference, fp_last = closeness.fp_latents(workspace, cache)
    drawn, last = reference, fp_last
    if packed.backend != "fp32":
        drawn, last = closeness.last_latents(
            workspace,
            cache,
            lambda: work.stage_keys["images"],
            lambda: sampled(workspace, packed, cell, cache, work, progress),
        )
    if drawn.noise_sha256 != reference.noise_sha256:
        raise QuantArenaError("initial noise differs from full precision's: images are no pairs")
    with work.station("probe"):
        seen = closeness.probe(workspace, cache)
        beside, curve = closeness.closeness(packed, seen, fp_last, last)
    groups = ground.prompt_groups(workspace.info, len(drawn.images))
    with work.station("score"):
        real = ground.real_features(workspace, cache)
        inputs = ScoreInputs(
            reference.images,
            drawn.images,
            real,
            beside=beside,
            prompts=ground.evaluation_prompts(workspace.info, len(drawn.images)),
            real_images=partial(ground.real_images, workspace)
            if workspace.info.reference
            else None,
            cache_dir=paths.cache,
            groups=groups,
            seed=cell.seed,
        )
        scores = score(inputs, progress=progress)
    arrays, found_scores = dict(scores.per_image) | curve, scores.measurements
    arrays |= {REPLICATES + name: values for name, values in scores.replicates.items()}
    if groups is not None:
        arrays[UNITS] = np.array(groups, np.float64)
    own = floors.rounded(workspace, cache)
    if cell.method == "fp":
        known = {floors.ROUNDED: own, floors.OTHER_SEED: floors.other_seed(workspace, cache)}
        arrays |= floors.arrays(known)
        found_scores += floors.measurements(
            known, real, len(drawn.images), seed=cell.seed, groups=groups
        )
    elif line := floors.tied(scores.measurements, own):
        work.warnings.append(line)
    return replace(
        row,
        backend=packed.backend,
        measurements=found_scores,
        observed=observed,
        parity=checked,
        calibration=calibration,
        workload=_describe_workload(workspace, drawn),
        seconds={name: round(value, 3) for name, value in work.seconds.items()},
        peak_bytes=_peak_bytes(),
        stage_keys=work.stage_keys,
        artefacts=_keep(cell, drawn, arrays, paths),
        warnings=(*workspace.loaded.notes, *work.warnings, *scores.warnings),
    )


def time_cell(row: Row, paths: Paths, *, plugins: tuple[str, ...] = (), progress: Progress) -> Row:
    """The row with its latency. Call it when nothing else runs on the machine."""
    if row.status is not Status.OK:
        return row
    torch.set_num_threads(TIMING_THREADS)
    cache, cell = StageCache(paths.cache), row.cell
    workspace = open_workspace(cell)
    recorded = ground.trajectory(workspace, cache)
    prefer = not str(row.method.get("origin", "builtin")).startswith("builtin")
    method = entry(cell.method, plugins, prefer_plugin=prefer).method()
    model, _ = quantized(workspace, recorded, cell, method, cache, Work(), progress)
    packed = pack(model)
    batch = _batch(recorded, cell.budget.batch)
    with packed.clock.at(int(batch.step[0])):  # one number for all rows, as a sampler says it
        latency = measure(
            packed.module,
            workspace.loaded.denoiser,
            batch,
            backend=packed.backend,
            images=cell.budget.batch,
            steps=recorded.calls,
            rounds=cell.budget.latency_rounds,
            setting=_fp_setting.get(cell.shared_key, ""),
            progress=lambda done, total: progress("time", done, total),
        )
    _fp_setting[cell.shared_key] = latency.fp_setting
    return replace(row, latency=latency)


def _batch(recorded: Trajectory, images: int) -> CalibrationSet:
    """One denoiser call as the sampler makes it for ``images`` images, guidance halves included."""
    image = torch.arange(images) % recorded.images
    halves = torch.arange(recorded.halves) * recorded.images
    rows = (halves[:, None] + image).flatten()
    return recorded.pick(torch.full_like(rows, recorded.calls // 2), rows)


def _probe(recorded: Trajectory) -> tuple[torch.Tensor, torch.Tensor]:
    calls = torch.linspace(0, recorded.calls - 1, PARITY_POINTS).round().long()
    return calls, torch.arange(PARITY_POINTS) % recorded.rows


def _keep(
    cell: Cell, drawn: Drawn, arrays: dict[str, np.ndarray[Any, Any]], paths: Paths
) -> dict[str, str]:
    images, scores = f"images/{cell.key}", f"scores/{cell.key}.npz"
    save_folder(drawn.images, paths.results / images)
    (paths.results / "scores").mkdir(parents=True, exist_ok=True)
    work = paths.results / "scores" / f".{cell.key}.npz"
    plain: dict[str, Any] = {k: np.asarray(v, np.float64) for k, v in arrays.items()}
    np.savez_compressed(work, **plain)
    work.replace(paths.results / scores)
    return {"images": images, "scores": scores}


def _describe(found: Entry) -> dict[str, Any]:
    info = found.method.info
    return {
        "title": info.title,
        "venue": info.venue,
        "paper": info.paper,
        "summary": info.summary,
        "version": info.version,
        "deviations": list(info.deviations),
        "origin": found.origin,
        "code_sha256": class_sha256(found.method),
        "kernels": str(kernels.status()),
    }


def _describe_workload(workspace: Workspace, drawn: Drawn) -> dict[str, Any]:
    info, pipe = workspace.info, workspace.loaded.pipe
    return {
        "title": info.title,
        "model_sha256": workspace.loaded.sha256,
        "pipeline": type(pipe).__name__,
        "scheduler": type(pipe.scheduler).__name__,
        "steps": workspace.steps,
        "guidance": info.guidance,
        "eta": info.eta,
        "resolution": int(drawn.images.shape[-1]),
        "images": int(drawn.images.shape[0]),
        "batch": workspace.budget.batch,
        "conditions": info.conditions,
        "prompts": [condition(info, "evaluate", i) for i in range(SHOWN_PROMPTS)]
        if info.prompts
        else [],
        "reference": info.reference,
        "licence": info.licence,
        "noise_sha256": drawn.noise_sha256,
    }


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _peak_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
