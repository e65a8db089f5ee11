"""A cell's network, ready to draw: a method's packed model, or what a rival brings."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from quantarena.bench.cache import Keyed, StageCache
from quantarena.bench.closure import closure
from quantarena.bench.devices.runtimes import RUNTIMES, placed
from quantarena.bench.memory import peak_growth
from quantarena.bench.schema import Observed, Parity
from quantarena.bench.spec import DEFAULT_POLICY, Cell, content_key
from quantarena.bench.stages.quantize import (
    Progress,
    context,
    effort_of,
    graph_of,
    model_key,
    quantized,
)
from quantarena.bench.stages.workspace import Workspace
from quantarena.bench.target import DEFAULT_TARGET, Target
from quantarena.methods.contestant import Contestant
from quantarena.methods.contract import Method
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.model.width_budget import FLOAT_BITS
from quantarena.methods.core.network import Network
from quantarena.methods.core.packed.footprint import footprint
from quantarena.methods.core.packed.pack import PackedModel, observe, pack
from quantarena.methods.core.packed.parity import PARITY_LIMIT, parity
from quantarena.methods.core.packed.step.recorded import step_parity
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.rival import NO_GATE, Prepared, Rival

EXAMPLE_ROWS = 2
"""Rows of the call that another runtime's converter sees."""
PARITY_POINTS = 4
_RIVAL_NOTES = "notes.json"


@dataclass(frozen=True, slots=True)
class Made:
    """A cell's network and what a row says of it.

    Attributes:
        network: ready to draw.
        key: content hash of all that it depends on.
        calibration: for the row: points, cost, notes.
        seconds: wall seconds by stage; those of the method are of when its model was made.
        warnings: lines for the row.
        observed: counts bits, bytes and operations.
        parity: holds a packed model against its simulation; None where no gate applies.
    """

    network: Network
    key: str
    calibration: dict[str, Any]
    seconds: dict[str, float]
    warnings: tuple[str, ...]
    observed: Callable[[], Observed]
    parity: Callable[[], Parity | None]


def make_network(
    workspace: Workspace,
    recorded: Trajectory,
    cell: Cell,
    contestant: Contestant,
    cache: StageCache,
    progress: Progress,
) -> Made:
    """A cell's network, from the cache or made now.

    Args:
        workspace: the cell's workload.
        recorded: the sampler's calls on the calibration images.
        cell: the request.
        contestant: a method or a rival, with the cell's options.
        cache: of stages.
        progress: called with the stage, done and total.

    Raises:
        Unsupported: the contestant cannot do what is asked.
        QuantArenaError: the contestant broke its contract.
    """
    shared = (workspace, recorded, cell)
    if isinstance(contestant, Rival):
        keyed = prepared(*shared, contestant, cache, progress)
        network, calibration, seconds = keyed.value
        count = partial(observed_rival, network, workspace, recorded)
        spent = {"quantize": seconds}
        return Made(network, keyed.key, calibration, spent, (), count, lambda: None)
    if not isinstance(contestant, Method):
        raise Unsupported(f"{cell.method} is neither a method nor a rival")
    kept = quantized(*shared, contestant, cache, progress)
    full, model, started = workspace.loaded.denoiser, kept.value.model, time.perf_counter()
    packed = placed(pack(model), workspace.target)
    spent = {"quantize": kept.value.seconds, "pack": time.perf_counter() - started}
    running = running_on(packed, workspace, recorded, kept.key, cache)
    return Made(
        running.value,
        running.key,
        kept.value.calibration,
        spent,
        kept.value.warnings,
        lambda: Observed(**_plain(observe(model, packed, full, kept.value.budget))),
        lambda: _parity(model, packed, recorded, progress, workspace.target),
    )


def running_on(
    packed: PackedModel, workspace: Workspace, recorded: Trajectory, key: str, cache: StageCache
) -> Keyed[Network]:
    """A packed network as it runs on the workspace's target, and the key of its images.

    Raises:
        Unsupported: the runtime cannot express the network.
        QuantArenaError: the runtime does not compute it in integers.
    """
    target, original = workspace.target, workspace.loaded.denoiser
    runtime = RUNTIMES[target.runtime]
    plain = (DEFAULT_TARGET.dtype, DEFAULT_TARGET.runtime)
    if not packed.layers or (target.dtype, target.runtime) == plain:
        return Keyed(packed, key)
    code = [target.runtime, runtime.version, closure(type(runtime).__module__).key]

    def build(folder: Path) -> None:
        rows = torch.arange(EXAMPLE_ROWS) % recorded.rows
        with packed.clock.at(0):
            points = recorded.pick(torch.zeros(EXAMPLE_ROWS, dtype=torch.long), rows)
            runtime.build(packed, points, folder)

    def read(folder: Path) -> Network:
        return runtime.prepare(packed, target, original, folder)

    network = cache.load("runtime", content_key([key, *code]), build, read)
    return Keyed(network, content_key([key, *code, target.dtype]))


def prepared(
    workspace: Workspace,
    recorded: Trajectory,
    cell: Cell,
    rival: Rival,
    cache: StageCache,
    progress: Progress,
) -> Keyed[tuple[Prepared, dict[str, Any], float]]:
    """The rival's network, what the row says of making it, and the wall seconds that it took.

    Raises:
        Unsupported: the rival cannot do what is asked, or it is asked under a policy.
        QuantArenaError: the rival broke its contract.
    """
    if cell.policy != DEFAULT_POLICY:
        raise Unsupported(f"{cell.method} chooses its layers by itself: no policy applies")
    effort, _ = effort_of(cell, recorded)
    given = context(workspace, recorded, cell, UNIFORM, effort, progress)
    request = model_key(workspace, cell, UNIFORM, effort, rival)
    key = content_key([request, rival.libraries(), rival.content(), closure(__name__).key])
    fresh: list[Prepared] = []

    def make(folder: Path) -> None:
        started, spent = time.perf_counter(), time.process_time()
        peak = peak_growth(lambda: fresh.append(rival.run(given, folder, build=True)))
        document = {
            "calibration": given.calibration,
            "notes": dict(fresh[0].notes),
            "seconds": time.perf_counter() - started,
            "core_seconds": round(time.process_time() - spent, 2),
            "peak_bytes": peak,
        }
        (folder / _RIVAL_NOTES).write_text(json.dumps(document))

    def read(folder: Path) -> tuple[Prepared, dict[str, Any], float]:
        said = json.loads((folder / _RIVAL_NOTES).read_text())
        made = fresh[0] if fresh else rival.run(given, folder, build=False)
        calibration = said["calibration"] | {
            "core_seconds": said["core_seconds"],
            "peak_bytes": said["peak_bytes"],
            "libraries": rival.libraries(),
            "parity": NO_GATE,
            "notes": said["notes"],
        }
        return made, calibration, float(said["seconds"])

    return Keyed(cache.load("rival", key, make, read), key)


def observed_rival(network: Prepared, workspace: Workspace, recorded: Trajectory) -> Observed:
    """What a rival's network holds, by the rules for packed ones.

    Numbers in a shorter floating-point format are counted at its width where nothing is quantized.
    """
    graph = graph_of(workspace, recorded)
    size, original = network.packed_bytes, workspace.loaded.denoiser
    held = footprint(graph, network.widths, original, size, means=network.mean_bits)
    found = Observed(**_plain(held))
    bits = network.float_bits
    if bits == FLOAT_BITS or network.widths:
        return found
    return replace(
        found, act_bits=float(bits), code_bits=float(bits), bops=graph.total_macs * bits**2
    )


def _parity(
    model: QuantizedModel,
    packed: PackedModel,
    recorded: Trajectory,
    progress: Progress,
    target: Target,
) -> Parity | None:
    """Packed against fake quantization on a few points; None where nothing was quantized.

    The step as it is recorded for timing is held against the packed network, too.
    """
    if not model.layers:
        return None
    progress("parity", 0, 1)
    calls = torch.linspace(0, recorded.calls - 1, PARITY_POINTS).round().long()
    rows = torch.arange(PARITY_POINTS) % recorded.rows
    report = parity(model, packed, recorded.pick(calls, rows))
    worst, where = report.max_rel, report.worst_layer
    step = None
    if (target.kind, target.dtype, target.offload) == ("cpu", DEFAULT_TARGET.dtype, False):
        middle = torch.full((PARITY_POINTS,), recorded.calls // 2)
        step = step_parity(packed, recorded.pick(middle, rows))
    if step is not None and step.max_rel > worst:
        worst, where = step.max_rel, f"recorded step, {step.worst}"
    return Parity(worst, where, report.layers, PARITY_LIMIT)


def _plain(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}
