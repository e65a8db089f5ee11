"""The stages of one cell in their order: quantize, pack, parity, sample, score; then, alone, time.

Every stage that takes long is cached under a hash of all that it depends on, code included, so an
interrupted cell resumes at the stage that was running.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from quantarena.bench.adapters.timed import fuse_for_timing
from quantarena.bench.cache import StageCache
from quantarena.bench.devices.device import describe_device
from quantarena.bench.devices.steps import timed_step
from quantarena.bench.errors import one_line, out_of_memory
from quantarena.bench.machine import fingerprint, same_machine
from quantarena.bench.memory import peak_bytes
from quantarena.bench.process_state import process_state
from quantarena.bench.schema import DRAWN_ELSEWHERE, Row, Status
from quantarena.bench.spec import Cell
from quantarena.bench.stages import floors
from quantarena.bench.stages.closeness import probe
from quantarena.bench.stages.describe import describe_method, describe_workload
from quantarena.bench.stages.latency import TRAVELS, baseline, measure
from quantarena.bench.stages.latents import fp_latents, last_latents
from quantarena.bench.stages.networks import make_network
from quantarena.bench.stages.quantize import Progress
from quantarena.bench.stages.real_images import real_features
from quantarena.bench.stages.record import trajectory
from quantarena.bench.stages.sample import images_key, sampled
from quantarena.bench.stages.score_cell import Drawings, keep, score_cell
from quantarena.bench.stages.workspace import open_workspace
from quantarena.bench.workloads.sampling import Drawn
from quantarena.methods.core.errors import QuantArenaError, Unsupported
from quantarena.methods.core.record.trajectory import CalibrationSet, Trajectory
from quantarena.methods.registry import RegisteredMethod, entry

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


@dataclass(slots=True)
class Stopwatch:
    """Wall seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Book the block's wall seconds under ``name``."""
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started


@process_state()
def prepare(
    cell: Cell, paths: Paths, *, plugins: tuple[str, ...] = (), progress: Progress
) -> dict[str, float]:
    """Make what all cells of ``cell.shared_key`` share; nothing to do when it is cached.

    Returns:
        Wall seconds by stage.

    Raises:
        UserError: the workload is unknown or damaged.
    """
    watch, cache = Stopwatch(), StageCache(paths.cache)
    workspace = open_workspace(cell)
    with watch.stage("record"):
        trajectory(workspace, cache, lambda done, total: progress("record", done, total))
    with watch.stage("fp_images"):
        fp_latents(workspace, cache, lambda done, total: progress("fp images", done, total))
    with watch.stage("fp_probe"):
        probe(workspace, cache, lambda done, total: progress("fp probe", done, total))
    with watch.stage("fp_floor"):
        for floor in (floors.rounded, floors.other_seed):
            floor(workspace, cache, lambda done, total: progress("fp floor", done, total))
    with watch.stage("reference"):
        progress("reference", 0, 1)
        real_features(workspace, cache)
        progress("reference", 1, 1)
    return watch.seconds


@process_state()
def run_cell(
    cell: Cell,
    paths: Paths,
    *,
    plugins: tuple[str, ...] = (),
    prefer_plugin: bool = False,
    batch: int = 0,
    progress: Progress,
) -> Row:
    """Everything of a cell but its latency. A cell that fails is a row with the reason.

    Only an interrupt or a signal of the executor comes out as an exception.

    Args:
        cell: the cell, whose key the row has.
        paths: where things go.
        plugins: absolute paths of plug-in files.
        prefer_plugin: whether a plug-in wins over a built-in of the same name.
        batch: images drawn together instead of the cell's own number, if that took too much
            memory; full precision is drawn likewise, so that images stay pairs. 0 is the cell's.
        progress: called with the stage, done and total.
    """
    started = _now()
    row = Row(cell, Status.OK, machine=fingerprint(), started=started)
    try:
        row = replace(row, device=describe_device(cell.target))
        found = _imported(cell.method, plugins, prefer_plugin=prefer_plugin)
        row = replace(row, method=describe_method(found))
        row = _stages(row, found, paths, cell.batched(batch), progress)
    except Unsupported as error:
        row = replace(row, status=Status.SKIPPED, reason=str(error))
    except QuantArenaError as error:
        row = replace(row, status=Status.FAILED, reason=str(error))
    except SystemExit:
        row = replace(row, status=Status.FAILED, reason=f"{cell.method} called sys.exit")
    except Exception as error:  # whatever a plug-in raises is this cell's own affair
        status = Status.OOM if out_of_memory(error) else Status.FAILED
        row = replace(row, status=status, reason=one_line(error) + _advice(error, cell))
    return replace(row, finished=_now())


def _advice(error: BaseException, cell: Cell) -> str:
    """What may help where a device has no memory left; weights alone did fit."""
    if not isinstance(error, torch.OutOfMemoryError) or cell.target.offload:
        return ""
    return "; --offload has one block at a time on the device, --batch makes activations smaller"


def _stages(row: Row, found: RegisteredMethod, paths: Paths, cell: Cell, progress: Progress) -> Row:
    """The row with the results of ``cell``, which is the row's own but for its batch."""
    watch, cache = Stopwatch(), StageCache(paths.cache)
    method = found.method.configured(cell.options)
    method.check(cell.widths, cell.variant, cell.policy)  # before anything expensive
    if cell.target.offload:
        method.check_offload()
    workspace = open_workspace(cell)
    recorded = trajectory(workspace, cache)
    made = make_network(workspace, recorded, cell, method, cache, progress)
    network = made.network
    watch.seconds |= made.seconds
    with watch.stage("parity"):
        checked = made.parity()
    observed = made.observed()
    reference, fp_last = fp_latents(workspace, cache)
    drawn, last = reference, fp_last
    drawn_key = images_key(workspace, network, made.key)
    if network.backend != "fp32":

        def draw() -> Drawn:
            images = sampled(
                workspace, network, made.key, cache, lambda *count: progress("sample", *count)
            )
            drawing, watch.seconds["sample"] = images.value
            return drawing

        drawn, last = last_latents(workspace, cache, drawn_key, draw)
    if drawn.noise_sha256 != reference.noise_sha256:
        raise QuantArenaError("initial noise differs from full precision's: images are no pairs")
    drawings = Drawings(network, reference, fp_last, drawn, last)
    with watch.stage("score"):
        scores = score_cell(cell, workspace, drawings, cache, progress)
    keys = {"quantize": made.key} | ({} if network.backend == "fp32" else {"images": drawn_key})
    return replace(
        row,
        backend=network.backend,
        measurements=scores.measurements,
        observed=observed,
        parity=checked,
        calibration=made.calibration,
        workload=describe_workload(workspace, drawn),
        seconds={name: round(value, 3) for name, value in watch.seconds.items()},
        peak_bytes=peak_bytes(),
        stage_keys=keys,
        artefacts=keep(row.cell, drawn, scores.arrays, paths.results),
        warnings=(
            *workspace.loaded.notes,
            *made.warnings,
            *network.remarks(),
            *scores.warnings,
        ),
    )


def time_cell(row: Row, paths: Paths, *, plugins: tuple[str, ...] = (), progress: Progress) -> Row:
    """The row with its latency. Call it when nothing else runs on the machine."""
    if row.status is not Status.OK:
        return row
    with process_state(row.cell.target.threads):
        return _timed(row, paths, plugins, progress)


def _timed(row: Row, paths: Paths, plugins: tuple[str, ...], progress: Progress) -> Row:
    cache = StageCache(paths.cache)
    cell = row.cell.batched(int(row.workload.get("batch", 0)))  # as its images were drawn
    workspace = open_workspace(cell)
    recorded = trajectory(workspace, cache)
    prefer = not str(row.method.get("origin", "builtin")).startswith("builtin")
    found = _imported(cell.method, plugins, prefer_plugin=prefer)
    method = found.method.configured(cell.options)
    network = make_network(workspace, recorded, cell, method, cache, progress).network
    # full precision takes a LoRA up in its weights, so its times are those without one
    plain = replace(workspace, info=replace(workspace.info, lora=""))
    if workspace.info.lora and network.backend != "fp32":
        with workspace.holding(network.module):
            fuse_for_timing(workspace.loaded.pipe, workspace.loaded.slot, workspace.info.lora)
    times, warnings = [], []
    for images in (cell.budget.batch, *cell.budget.latency_batches):
        batch = sampler_batch(recorded, images).on(workspace.home)
        fastest = baseline(plain, recorded, cell, batch, cache, progress)
        with network.clock.at(int(batch.step[0])):  # one number for all rows, as a sampler says it
            timed = timed_step(network, workspace.target, batch)
            latency, warning = measure(
                fastest.fp32 if network.backend == "fp32" else timed.module,
                fastest.module,
                batch,
                backend=network.backend,
                setting=fastest.name,
                images=images,
                steps=recorded.calls,
                rounds=cell.budget.latency_rounds,
                progress=lambda done, total: progress("time", done, total),
                device=workspace.device,
                step=timed.step,
            )
        times.append(latency)
        doubt = fastest.doubt(network.backend, latency)
        said = (warning, doubt, *fastest.missing(network.backend))
        warnings += [f"latency: {line}" for line in said if line]
        warnings += [timed.warning] if timed.warning else []
    if workspace.target.offload:
        warnings.append(TRAVELS)
    here = fingerprint()
    if not same_machine(row.machine, here):
        # Readers compare times within a machine, so the row names the one that was timed.
        warnings.append(f"{DRAWN_ELSEWHERE}, {_named(row.machine)}")
        row = replace(row, machine=here)
    with_times = replace(row, latency=times[0], latency_by_batch=tuple(times[1:]))
    # each batch may say the same
    return replace(with_times, warnings=(*row.warnings, *dict.fromkeys(warnings)))


@process_state()
def _imported(name: str, plugins: tuple[str, ...], *, prefer_plugin: bool) -> RegisteredMethod:
    """A method's entry. What a plug-in changes when it is imported is undone at once.

    A plug-in is imported once in a process. Were its changes kept for its first cell, later cells
    would run without them.
    """
    return entry(name, plugins, prefer_plugin=prefer_plugin)


def sampler_batch(recorded: Trajectory, images: int) -> CalibrationSet:
    """One denoiser call as the sampler makes it for ``images`` images, guidance halves included."""
    image = torch.arange(images) % recorded.images
    halves = torch.arange(recorded.halves) * recorded.images
    rows = (halves[:, None] + image).flatten()
    return recorded.pick(torch.full_like(rows, recorded.calls // 2), rows)


def _named(machine: dict[str, object]) -> str:
    return f"{machine.get('cpu')} with {machine.get('cores')} cores"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
