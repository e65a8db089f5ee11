"""The stage ``quantize``: a method's model, from the cache or made now."""

import copy
import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from quantarena.bench.cache import Keyed, StageCache
from quantarena.bench.closure import closure, closures_key, method_closure
from quantarena.bench.memory import peak_growth
from quantarena.bench.spec import Cell, content_key
from quantarena.bench.stages.record import trajectory_key
from quantarena.bench.stages.workspace import Workspace
from quantarena.methods.contestant import Contestant
from quantarena.methods.contract import Method, MethodContext
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.model.policy import UNIFORM, Policy, policy
from quantarena.methods.core.model.width_budget import WidthBudget
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.core.trace.network import Graph, trace
from quantarena.methods.info import Effort

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""
_FOLDER_FILES = ("state.safetensors", "notes.json")


@dataclass(frozen=True, slots=True)
class Quantized:
    """A method's model and what making it took.

    Attributes:
        model: frozen, every range set.
        calibration: what the row says of calibration, cost and the method's notes.
        seconds: wall seconds that the method took when the model was made.
        warnings: lines for the row.
        budget: what the observed widths may cost; None where the policy assigns them.
    """

    model: QuantizedModel
    calibration: dict[str, Any]
    seconds: float
    warnings: tuple[str, ...] = ()
    budget: WidthBudget | None = None


def quantized(
    workspace: Workspace,
    recorded: Trajectory,
    cell: Cell,
    method: Method,
    cache: StageCache,
    progress: Progress,
) -> Keyed[Quantized]:
    """The method's model: from the cache, or made now.

    Args:
        workspace: the cell's workload.
        recorded: the sampler's calls on the calibration images.
        cell: the request.
        method: the adapter.
        cache: of stages.
        progress: called with ``quantize``, done and total.

    Raises:
        Unsupported: the method cannot do what is asked.
        QuantArenaError: the method broke its contract.
    """
    effort, warnings = effort_of(cell, recorded)
    wanted = UNIFORM if cell.widths.is_fp else policy(cell.policy, cell.method, method.published)
    given = context(workspace, recorded, cell, wanted, effort, progress)
    key = model_key(workspace, cell, wanted, effort, method)
    fresh: list[QuantizedModel] = []

    def make(folder: Path) -> None:
        started = time.process_time()
        peak = peak_growth(lambda: fresh.append(method.run(given)))
        cost = {"core_seconds": round(time.process_time() - started, 2), "peak_bytes": peak}
        _save(fresh[0], given, cost, folder)

    def read(folder: Path) -> Quantized:
        state, notes = (folder / name for name in _FOLDER_FILES)
        document = json.loads(notes.read_text())
        if fresh:
            model = fresh[0]
        else:
            model = given.restore(document["splits"], document["notes"])
            model.load_state({n: t.to(workspace.home) for n, t in load_file(state).items()})
        calibration = document["calibration"] | document["cost"] | {"notes": document["notes"]}
        seconds = float(document["notes"].get("quantize_seconds", 0.0))
        return Quantized(model, calibration, seconds, warnings, given.budget)

    return Keyed(cache.load("quantize", key, make, read), key)


def effort_of(cell: Cell, recorded: Trajectory) -> tuple[Effort, tuple[str, ...]]:
    """What the method may spend; a sampler of few steps records fewer points than are asked for."""
    asked, there = cell.budget.calibration_samples, recorded.calls * recorded.rows
    lines = (f"calibrated on all {there} points recorded; {asked} were asked",)
    effort = Effort(min(asked, there), cell.budget.iterations, cell.budget.range_samples)
    return effort, lines if there < asked else ()


def graph_of(workspace: Workspace, recorded: Trajectory) -> Graph:
    """The trace of full precision on two recorded rows."""
    with torch.no_grad():
        rows = torch.arange(2) % recorded.rows
        first = recorded.pick(torch.zeros(2, dtype=torch.long), rows).on(workspace.home)
        denoiser = workspace.loaded.denoiser
        return trace(denoiser, first.sample, timestep=first.timestep, **first.conditions)


def context(
    workspace: Workspace,
    recorded: Trajectory,
    cell: Cell,
    wanted: Policy,
    effort: Effort,
    progress: Progress,
) -> MethodContext:
    """What a method or a rival is given for a cell."""
    return MethodContext(
        workspace.loaded.denoiser,
        graph_of(workspace, recorded),
        recorded,
        cell.widths,
        copy.deepcopy(wanted),  # a method that edits its policy edits no other cell's
        cell.variant,
        cell.seed,
        effort,
        lambda done, total: progress("quantize", done, total),
    )


def model_key(
    workspace: Workspace, cell: Cell, wanted: Policy, effort: Effort, method: Contestant
) -> str:
    """Content hash of the model: points, request, the policy's table, and the code of both sides.

    The request is every field of the cell but those that enter by their content: its workload, its
    budget and the name of its policy. The target's device enters with the recorded points; its
    other fields come after a model is made.
    """
    content = ("workload", "budget", "policy", "target")
    request = {
        field.name: getattr(cell, field.name)
        for field in dataclasses.fields(cell)
        if field.name not in content
    }
    recorded = trajectory_key(workspace, workspace.draw(calibration=True))
    code = closures_key([closure(__name__), method_closure(type(method))])
    return content_key([recorded, request, wanted, effort, method.info.version, code])


def _save(
    model: QuantizedModel, context: MethodContext, cost: dict[str, Any], folder: Path
) -> None:
    state, notes = (folder / name for name in _FOLDER_FILES)
    save_file({name: tensor.cpu() for name, tensor in model.state().items()}, state)
    splits = {
        name: [part.stop - part.start for part in layer.parts]
        for name, layer in model.layers.items()
        if len(layer.parts) > 1
    }
    document = {
        "notes": model.notes,
        "calibration": context.calibration,
        "cost": cost,
        "splits": splits,
    }
    notes.write_text(json.dumps(document))
