"""What this installation draws from and measures with, against what a row says. Imports torch.

A difference contradicts a row of the same code. Of other code nobody here can know.
"""

from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

from quantarena.bench.errors import QuantArenaError
from quantarena.bench.machine import fingerprint
from quantarena.bench.metrics.fidelity import lpips
from quantarena.bench.metrics.names import (
    CLIP_SCORE,
    EFFNET,
    INSIDE,
    LPIPS,
    METRICS,
    QUALITY,
    SHIPPED,
    TEXT,
)
from quantarena.bench.metrics.quality import effnet
from quantarena.bench.metrics.text.alignment import scorer
from quantarena.bench.process_state import process_state
from quantarena.bench.schema import DRAWN_ELSEWHERE, Measurement, Row
from quantarena.bench.share.bounds import floor_of
from quantarena.bench.share.tables import brief, shipped
from quantarena.bench.stages.floors import HALF_OF, HALVES, REFERENCES
from quantarena.bench.stages.real_images import shipped_label
from quantarena.bench.workloads import pipeline
from quantarena.bench.workloads.pipeline import LoadedPipeline
from quantarena.bench.workloads.registry import WorkloadInfo
from quantarena.bench.workloads.sampling import Draw, noise_sha256

NOISE = "noise_sha256"
_CODE, _LIBRARIES = ("quantarena",), ("quantarena", "torch", "diffusers")


def strange_networks(row: Row) -> tuple[list[str], str]:
    """Networks and references of measurements that are not this package's, as lines.

    Returns:
        The lines, and why they may be right where the row is of other code; else "".
    """
    lines = [line for m in row.measurements if m.value is not None for line in _of_figure(row, m)]
    return lines, _other_versions(row, _CODE) if lines else ""


def strange_noise(row: Row) -> tuple[list[str], str]:
    """Whether the images of a shipped workload started from other noise than they do here.

    Returns:
        A line if they did, and why that may be right on the row's machine; else "".
    """
    info = shipped(row.cell.workload)
    if info is None:
        return [], ""
    budget, batch = row.cell.budget, row.workload.get("batch")
    size = batch if isinstance(batch, int) and batch > 0 else budget.batch
    draw = Draw("evaluate", budget.images, row.cell.seed, budget.steps or info.steps, size)
    try:
        here = _noise(info, draw)
    except QuantArenaError as error:
        return [f"its {NOISE} could not be made again"], str(error)
    stated = row.workload.get(NOISE)
    if stated == here:
        return [], ""
    return [f"its {NOISE} is {brief(stated)}, here it is {brief(here)}"], _other_noise(row, info)


@cache
def _noise(info: WorkloadInfo, draw: Draw) -> str:
    with process_state():
        return noise_sha256(_loaded(info), info, draw)


@lru_cache(maxsize=1)
def _loaded(info: WorkloadInfo) -> LoadedPipeline:
    return pipeline.load(info)


def _other_noise(row: Row, info: WorkloadInfo) -> str:
    """Why the same seed may give other noise there; torch's normal numbers depend on it."""
    if any(line.startswith(DRAWN_ELSEWHERE) for line in row.warnings):
        return "it was drawn on a machine that it does not describe"
    if (info.sampler or info.sampler_options) and row.cell.target.kind != "cpu":
        return "its sampler scaled the noise on a GPU"
    here, there = fingerprint(), row.machine
    isas = [set(m["isa"]) if isinstance(m.get("isa"), list) else set() for m in (here, there)]
    if here["arch"] != there.get("arch") or len({"avx2" in isa for isa in isas}) > 1:
        return "it is of another kind of processor, where torch may draw other noise"
    return _other_versions(row, _LIBRARIES)


def _other_versions(row: Row, names: tuple[str, ...]) -> str:
    if "scores_sha256" not in row.artefacts:
        return "an earlier version wrote it"
    here: dict[str, Any] = fingerprint()["versions"]
    stated = row.machine.get("versions")
    there = stated if isinstance(stated, dict) else {}
    for name in names:
        if there.get(name) != here.get(name):
            return f"it is of {name} {brief(there.get(name))}, here is {here.get(name)}"
    return ""


def _of_figure(row: Row, figure: Measurement) -> Iterator[str]:
    kind, metric = floor_of(figure.name)
    metric = metric or figure.name
    if metric not in METRICS:
        return
    if METRICS[metric].weights in (INSIDE, SHIPPED, EFFNET):
        network = _network(metric)
        if figure.extractor_sha256 != network:
            stated = brief(figure.extractor_sha256)
            yield f"the network of {figure.name} is {stated}, here it is {brief(network)}"
    against = _reference(row, metric, kind)
    if against is not None and figure.reference != against:
        stated = brief(figure.reference)
        yield f"{figure.name} is against {stated!r}, here it is against {against!r}"


def _network(metric: str) -> str | None:
    """Hash of a metric's network that comes with the package or with what it needs."""
    if metric == LPIPS:
        return lpips.weights_sha256()
    if METRICS[metric].weights == EFFNET:
        return effnet.SHA256
    return scorer().sha256 if METRICS[metric].weights == SHIPPED else None


def _reference(row: Row, metric: str, kind: str) -> str | None:
    """What a measurement is against; None where the package does not know."""
    if kind in REFERENCES:
        return REFERENCES[kind]
    if metric == CLIP_SCORE:
        return "prompts"
    if metric in TEXT:
        return scorer().label
    if metric in QUALITY:
        info = shipped(row.cell.workload)
        label = _label(info) if info is not None and info.reference else None
        return label if label is None or kind != HALVES else HALF_OF + label
    return "fp" if METRICS[metric].board == "fidelity" else None


@cache
def _label(info: WorkloadInfo) -> str:
    return shipped_label(info)
