"""Latency of one denoiser step: warm, alone, interleaved with full precision at its fastest."""

import copy
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantarena.bench.cache import StageCache
from quantarena.bench.closure import closure, closures_key, method_closure
from quantarena.bench.devices.choose import Choice, choose, ratio_interval
from quantarena.bench.devices.device import clock_of, peak_of
from quantarena.bench.devices.turns import Progress, take_turns
from quantarena.bench.errors import QuantArenaError, one_line
from quantarena.bench.machine import fingerprint
from quantarena.bench.metrics.fidelity.fidelity import summarise
from quantarena.bench.metrics.fidelity.videos import video_fidelity
from quantarena.bench.schema import Latency, Step
from quantarena.bench.spec import DEFAULT_POLICY, DEFAULT_VARIANT, Cell, content_key
from quantarena.bench.stages import floors
from quantarena.bench.stages.fp_images import fp_images
from quantarena.bench.stages.networks import Made, make_network
from quantarena.bench.stages.quantize import Progress as CellProgress
from quantarena.bench.stages.sample import sampled
from quantarena.bench.stages.workspace import Workspace, prompt_groups
from quantarena.bench.target import DEFAULT_TARGET, Target
from quantarena.methods.builtin import FP, full_precision_settings
from quantarena.methods.core.packed.pack import channels_last
from quantarena.methods.core.record.trajectory import CalibrationSet, Trajectory
from quantarena.methods.registry import entry
from quantarena.methods.rival import Rival

AGAINST, MODEL = "against", "model"
TRAVELS = (
    "latency: networks are offloaded, so a step also moves every weight from the host to the device"
)
"""What a row says of times with ``offload``."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """What speed-ups are relative to.

    Attributes:
        name: of the fastest unquantized setting, such as ``bf16 eager``.
        module: full precision in that setting.
        fp32: full precision in fp32, in its faster layout; the row of ``fp`` is timed on it.
        fp32_name: the name of that setting.
        candidates: names of all settings that it was chosen from.
        broken: for each setting that a library's error kept out of the choice, that error.
    """

    name: str
    module: nn.Module
    fp32: nn.Module
    fp32_name: str
    candidates: tuple[str, ...]
    broken: Mapping[str, str] = field(default_factory=dict)

    def missing(self, backend: str) -> list[str]:
        """Lines about settings that an error kept out, for the row of full precision itself."""
        if backend != "fp32":
            return []
        return [
            f"{name} was no candidate for the fastest unquantized setting, because it failed: "
            f"{error}; speed-ups may be too large"
            for name, error in self.broken.items()
        ]

    def doubt(self, backend: str, latency: Latency) -> str:
        """A line where the timing of a row says that another candidate is faster; else empty.

        Args:
            backend: of the row's network; ``fp32`` is full precision's own.
            latency: the row's.
        """
        setting = self.fp32_name if backend == "fp32" else backend
        if setting not in self.candidates or setting == self.name or latency.ratio_low <= 1:
            return ""
        return (
            f"{setting} is {latency.ratio:.2f} times as fast here (95 % interval "
            f"{latency.ratio_low:.2f} to {latency.ratio_high:.2f}) as {self.name}, which was the "
            "fastest when it was chosen: this workload's speed-ups may be too large by that"
        )


def baseline(
    workspace: Workspace,
    recorded: Trajectory,
    cell: Cell,
    batch: CalibrationSet,
    cache: StageCache,
    progress: CellProgress,
) -> Baseline:
    """The fastest setting of full precision whose images stay within its own tie margin.

    It is chosen once for all cells of a workload, so that their ratios can be compared: candidates
    take turns, and paired rounds decide. Candidates are fp32 and the built-in settings ``fp@...``
    of the larger presets, eager networks in both layouts.

    Args:
        workspace: of the cell.
        recorded: the sampler's calls on the calibration images.
        cell: any cell of the workload at this budget.
        batch: one batch of recorded inputs.
        cache: of stages; images of a setting that has a cell are there already.
        progress: called with the stage, done and total.
    """
    fp32 = {
        "fp32 eager": workspace.loaded.denoiser,
        "fp32 channels_last": channels_last(copy.deepcopy(workspace.loaded.denoiser)),
    }

    def network(setting: Cell) -> Made:
        contestant = entry(setting.method).method.configured(setting.options)
        contestant.check(setting.widths, setting.variant)
        return make_network(workspace, recorded, setting, contestant, cache, progress)

    def make(folder: Path) -> None:
        found: dict[str, nn.Module] = dict(fp32)
        cells: dict[str, list[Any]] = {}
        left_out: dict[str, str] = {}
        broken: dict[str, str] = {}
        for setting in _settings(cell):
            try:
                made = network(setting)
                name, module = made.network.backend, made.network.module
                reason = _outside(workspace, made, cache)
            except QuantArenaError as error:  # it is not installed, or not for this processor
                name, reason = setting.configured, error.message
            except Exception as error:  # a library's trouble must not cost all speed-ups
                broken[setting.configured] = one_line(error)
                continue
            if reason:
                left_out[name] = reason
                continue
            found[name], cells[name] = module, [setting.method, setting.options]
        chosen = choose(found, batch)
        document = {
            "name": chosen.name,
            "fp32": chosen.among(list(fp32)),
            "cell": cells.get(chosen.name),
            "candidates": {name: _told(chosen, name) for name in found},
            "left_out": left_out,
            "broken": broken,
        }
        (folder / "setting.json").write_text(json.dumps(document))

    def read(folder: Path) -> dict[str, Any]:
        said: dict[str, Any] = json.loads((folder / "setting.json").read_text())
        return said

    kinds = [entry(name).method for name in full_precision_settings()]
    libraries = [kind.versions() for kind in kinds if issubclass(kind, Rival)]
    code = closures_key([closure(__name__), *(method_closure(kind) for kind in kinds)])
    # not the seed: all rows of a workload share one baseline, whichever seed is timed first
    drawn = [workspace.budget.images, workspace.steps, len(batch)]
    content = [workspace.loaded.sha256, workspace.settings(), drawn, fingerprint(), libraries]
    target = workspace.target
    if (target.device, target.threads) != (DEFAULT_TARGET.device, DEFAULT_TARGET.threads):
        content.append([target.device, target.threads])
    if target.offload:
        content.append("offload")
    key = content_key([content, code])
    said = cache.load("setting", key, make, read)
    module = fp32.get(said["name"])
    if module is None:
        if key not in _held:  # another library compiles it, which takes as long as a cell's timing
            method, options = said["cell"]
            pairs = tuple((str(name), str(value)) for name, value in options)
            asked = replace(_settings(cell)[0], method=method, options=pairs)
            _held.clear()
            _held[key] = network(asked).network.module
        module = _held[key]
    names = said["fp32"], tuple(said["candidates"]), said["broken"]
    return Baseline(said["name"], module, fp32[said["fp32"]], *names)


def _told(chosen: Choice, name: str) -> dict[str, Any]:
    """What is kept of a candidate: its time, and how many times as fast the chosen setting is."""
    seconds = chosen.last([name])[name]
    return {
        "milliseconds": round(1e3 * statistics.median(seconds), 3),
        "rounds": len(seconds),
        "chosen_is_faster": [round(end, 4) for end in chosen.ratio(name)],
    }


_held: dict[str, nn.Module] = {}
"""The last fastest setting of another library, for the next cells of its workload."""


def _settings(cell: Cell) -> list[Cell]:
    """Cells of full precision's other settings; eager ones in both layouts."""
    asked = cell.target
    target = Target(asked.device, threads=asked.threads, offload=asked.offload)
    plain = replace(cell, bits=FP, policy=DEFAULT_POLICY, variant=DEFAULT_VARIANT, options=())
    plain = replace(plain, target=target)
    cells = [replace(plain, method=name) for name in full_precision_settings()]
    last = (("layout", "channels_last"),)
    return [
        one
        for each in cells
        for one in (each, replace(each, options=last))
        if not one.options or "layout" in entry(each.method).method.Options.__dataclass_fields__
    ]


def _outside(workspace: Workspace, made: Made, cache: StageCache) -> str:
    """Why a setting's images are not full precision's; empty where nobody could tell them apart."""
    reference = fp_images(workspace, cache)
    drawn, _ = sampled(workspace, made.network, made.key, cache).value
    groups = prompt_groups(workspace.info, drawn.count)
    near = video_fidelity(
        reference.images, drawn.images, drawn.frames, device=str(workspace.device)
    )
    scored = summarise(near, seed=workspace.seed, groups=groups)
    kinds = floors.rounded(workspace, cache), floors.other_seed(workspace, cache)
    return floors.beyond_own_margin(scored, *kinds) or ""


@torch.no_grad()
def measure(
    model: nn.Module,
    against: nn.Module,
    points: CalibrationSet,
    *,
    backend: str,
    setting: str,
    images: int,
    steps: int,
    rounds: int,
    progress: Progress | None = None,
    device: torch.device | None = None,
    step: Step | None = None,
) -> tuple[Latency, str]:
    """Time one denoiser call; also a warning, empty where no other process disturbed it.

    Args:
        model: the network under test.
        against: full precision in the setting that the speed-up is relative to.
        points: one batch of recorded inputs (both guidance halves where guidance is on).
        backend: of ``model``.
        setting: name of the setting of ``against``.
        images: images that this batch makes.
        steps: sampler steps of an image.
        rounds: timed rounds, at least 20; the two networks take turns within each.
        progress: called with (rounds done, rounds).
        device: where the networks compute, if not where the inputs are.
        step: the form of the step of ``model``.
    """
    turns = take_turns({AGAINST: against, MODEL: model}, points, rounds, progress)
    fp_times, test_times = turns.seconds(AGAINST), turns.seconds(MODEL)
    ratio, low, high = ratio_interval(fp_times, test_times)
    quarters = statistics.quantiles(test_times, n=4)
    median = statistics.median(test_times)
    latency = Latency(
        step_ms=1e3 * median,
        step_iqr_ms=1e3 * (quarters[2] - quarters[0]),
        fp_step_ms=1e3 * statistics.median(fp_times),
        fp_setting=setting,
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        image_ms=1e3 * median * steps / images,
        batch=images,
        rounds=rounds,
        threads=torch.get_num_threads(),
        backend=backend,
        clock=clock_of(points),
        peak_bytes=peak_of(lambda: points.call(model), device or points.sample.device),
        step=step,
    )
    return latency, turns.warning
