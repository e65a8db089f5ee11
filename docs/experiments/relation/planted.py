"""Measures where MPQ-DM's relation distillation (TRD) lowers the error, on planted networks.

The networks are those of ``tests/methods/test_mpq_dm_relation.py``, on seeds that the test does not
use. Every line compares MPQ-DM with a term to MPQ-DM without, at equal updates unless it says
otherwise: the errors' ratio, its geometric mean over the seeds with Student's 95 % interval, and on
how many seeds it is below 1. Errors are of one call, on images that did not calibrate.

    python docs/experiments/relation/planted.py
"""

import argparse
import importlib.util
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from quantarena.methods import mpq_dm
from quantarena.methods.mpq_dm import MpqDm, relation_loss

ROOT = Path(__file__).parents[3]
RELATION = relation_loss
"""The product's own, which some lines replace."""


def planted() -> ModuleType:
    """The test's module."""
    path = ROOT / "tests/methods/test_mpq_dm_relation.py"
    spec = importlib.util.spec_from_file_location("planted", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TEST = planted()


def none() -> Tensor:
    """No offset at any call."""
    return torch.zeros(TEST.CALLS, TEST.WIDTH)


def unrelated() -> Tensor:
    """Offsets as large as the alternating one, each at right angles to all others."""
    turn = torch.linalg.qr(torch.randn(TEST.WIDTH, TEST.WIDTH))[0][: TEST.CALLS]
    return float(TEST.alternating().norm(dim=1)[0]) * turn


def everything() -> Tensor:
    """Each label reads all channels."""
    return torch.ones(TEST.LABELS, TEST.WIDTH)


def of_other_images(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Relations to be learned from the wrong images."""
    return RELATION(ours, [features.roll(1, 0) for features in theirs])


def themselves(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Squared error of the averaged features instead of their relations."""
    means = [torch.stack(list(features)).mean(0) for features in (ours, theirs)]
    return (means[0] - means[1]).square().sum()


class Lines:
    """Prints the lines of one structure, compared with its own error without TRD."""

    def __init__(self, title: str, seeds: Sequence[int], **network: Any) -> None:
        self.seeds, self.network = seeds, network
        self.without = self.errors({"relation": 0.0})
        mean = statistics.mean(self.without)
        print(f"\n{title}; without TRD the error is {mean:.4f}")
        print("| setting | error over that without TRD | below 1 |\n|---|---|---|", flush=True)

    def errors(self, options: dict[str, Any], **network: Any) -> list[float]:
        """By seed, on this structure."""
        method = MpqDm(MpqDm.Options(**options))
        return [TEST.error(seed, method, **{**self.network, **network}) for seed in self.seeds]

    def line(
        self,
        name: str,
        options: dict[str, Any],
        loss: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor] = RELATION,
        **network: Any,
    ) -> None:
        """Measures and prints one."""
        mpq_dm.relation_loss = loss
        try:
            found = self.errors(options, **network)
        finally:
            mpq_dm.relation_loss = RELATION
        logs = [math.log(a / b) for a, b in zip(found, self.without, strict=True)]
        mean = statistics.mean(logs)
        half = statistics.stdev(logs) / math.sqrt(len(logs)) * stats.t.ppf(0.975, len(logs) - 1)
        low, high = math.exp(mean - half), math.exp(mean + half)
        fewer = sum(value < 0 for value in logs)
        print(
            f"| {name} | {math.exp(mean):.2f} [{low:.2f}, {high:.2f}] | {fewer} of {len(logs)} |",
            flush=True,
        )


def main() -> None:
    """Parses the command line and prints one table for each structure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=max(TEST.SEEDS) + 1, help="first seed")
    parser.add_argument("--seeds", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(given.first, given.first + given.seeds)
    both = Lines("One label calibrates, offsets alternate (the test's case)", seeds)
    settings = [(100.0, 1), (1000.0, 1), (10_000.0, 1), (100.0, 2), (1000.0, 2), (10_000.0, 2)]
    for weight, window in [*settings, (100.0, 4)]:
        both.line(f"weight {weight:g}, window {window}", {"relation": weight, "window": window})
    both.line("without fine-tuning", {"finetune": False})
    both.line("without TRD, 4 times the updates", {"relation": 0.0}, updates=4 * TEST.UPDATES)
    both.line("relations of other images", {}, of_other_images)
    both.line("features themselves, weight 1", {"relation": 1.0}, themselves)
    for title, network in {
        "One label calibrates, no offsets": {"offsets": none},
        "One label calibrates, unrelated offsets": {"offsets": unrelated},
        "All labels calibrate, offsets alternate": {"seen": TEST.LABELS},
        "All labels calibrate, no offsets": {"seen": TEST.LABELS, "offsets": none},
        "Every label reads all channels, no offsets": {"mask": everything, "offsets": none},
    }.items():
        lines = Lines(title, seeds, **network)
        for window in (1, 2):
            lines.line(f"weight 100, window {window}", {"window": window})


if __name__ == "__main__":
    main()
