"""Measures the table of phenomena of a workload, and keeps it in the cards of shipped models."""

import re
from pathlib import Path

import torch

from quantarena.bench.cache import StageCache
from quantarena.bench.metrics.phenomena.table import Phenomenon, markdown, phenomena
from quantarena.bench.process_state import process_state
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.stages.record import trajectory
from quantarena.bench.stages.workspace import open_workspace
from quantarena.methods.core.trace.network import trace

IMAGES = 8
HEADING = "## What quantization meets"
_SECTION = re.compile(rf"{re.escape(HEADING)}\n.*?(?=\n## |\nThe weights are stored|\Z)", re.DOTALL)
_BEFORE = "\nThe weights are stored"


@process_state()
def measured(workload: str, cache: Path) -> tuple[Phenomenon, ...]:
    """The phenomena of a workload on the sampler's calls of eight calibration images.

    Args:
        workload: name, with settings.
        cache: folder of cached stages.

    Raises:
        UserError: the workload is unknown or damaged.
    """
    budget = Budget(images=IMAGES, batch=IMAGES, calibration_images=IMAGES)
    workspace = open_workspace(Cell(workload, "fp", "fp", budget=budget))
    recorded = trajectory(workspace, StageCache(cache))
    network = workspace.loaded.denoiser
    first = recorded.pick(torch.zeros(2, dtype=torch.long), torch.arange(2) % recorded.rows)
    with torch.no_grad():
        graph = trace(network, first.sample, timestep=first.timestep, **first.conditions)
    return phenomena(network, graph, recorded)


def section(found: tuple[Phenomenon, ...]) -> str:
    """The section of a model's card."""
    return (
        f"{HEADING}\n"
        f"Measured on the sampler's calls of {IMAGES} calibration images; a layer's value is that "
        "of its weight or of\nits input. `quantarena phenomena` prints the table with the names of "
        f"the layers.\n\n{markdown(found)}\n"
    )


def with_section(card: str, found: tuple[Phenomenon, ...]) -> str:
    """A card's text with the section, in place of an earlier one or before the last paragraphs."""
    text = section(found)
    if HEADING in card:
        return _SECTION.sub(lambda _: text, card, count=1)
    head, mark, tail = card.partition(_BEFORE)
    return f"{head}\n{text}{mark}{tail}" if mark else f"{card.rstrip()}\n\n{text}"


def write_section(folder: Path, cache: Path) -> tuple[Phenomenon, ...]:
    """Measure a pipeline folder and write the section into its card."""
    found = measured(str(folder), cache)
    card = folder / "README.md"
    card.write_text(with_section(card.read_text(encoding="utf-8"), found), encoding="utf-8")
    return found
