"""What one measurement is: a cell, its budget, its key. Plain data, no torch."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from quantarena.bench.target import DEFAULT_TARGET, Target, target_content
from quantarena.methods.core.bits import Bits, parse_bits

DEFAULT_POLICY = "uniform"
# core.policy knows what they mean; it needs torch
BUDGET_POLICY = "budget"
POLICY_NAMES = (DEFAULT_POLICY, BUDGET_POLICY, "published")
DEFAULT_VARIANT = "paper"
VARIANT_NAMES = (DEFAULT_VARIANT, "release")
MOST_SEED = 2**63 - 1

OptionPairs = tuple[tuple[str, str], ...]
"""Options of a method as text, (name, value) sorted by name, without those at their default."""


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, dataclasses as objects."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)


def content_key(value: Any, length: int = 16) -> str:
    """First ``length`` hex digits of the sha256 of the canonical JSON of ``value``."""
    return content_hash(canonical_json(value), length)


def content_hash(canonical: str, length: int = 16) -> str:
    """The same of a value whose canonical JSON is known."""
    return hashlib.sha256(canonical.encode()).hexdigest()[:length]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} has no canonical JSON form")


@dataclass(frozen=True, slots=True)
class Budget:
    """What a preset spends on one cell; part of the cell, so part of its key.

    Attributes:
        images: number of images sampled and scored.
        batch: number of images sampled together (with guidance the network gets twice as many).
        steps: sampler steps; 0 takes the workload's own number.
        calibration_images: number of full-precision trajectories recorded for calibration.
        calibration_samples: number of points of those trajectories that a method may learn from.
        range_samples: largest number of points that ranges are found on, of all images; 0 takes
            those that the method learns from.
        iterations: reconstruction iterations per block.
        latency_rounds: number of timed rounds of one denoiser step.
        latency_batches: further batches that a step is timed with, beside ``batch``.
    """

    images: int = 128
    batch: int = 16
    steps: int = 0
    calibration_images: int = 128
    calibration_samples: int = 128
    range_samples: int = 1280
    iterations: int = 100
    latency_rounds: int = 20
    latency_batches: tuple[int, ...] = ()


def budget_content(budget: Budget) -> dict[str, Any]:
    """The fields of a budget that enter keys: those that joined later only where they are used."""
    later = ("range_samples", "latency_batches")
    plain: dict[str, Any] = _plain(budget)
    return {name: value for name, value in plain.items() if value or name not in later}


@dataclass(frozen=True, slots=True)
class Cell:
    """What one row measures: workload x method x variant x bits x policy x seed, at one budget.

    Attributes:
        workload: name, hub id or path, with the settings that were given.
        method: name as registered.
        bits: requested widths, such as ``w4a8``.
        seed: seed of noise and of everything random.
        variant: ``paper`` or ``release``.
        policy: ``uniform``, ``budget`` or ``published``.
        budget: what the cell may spend.
        options: options of the method that are not at their default.
        target: where and how its networks run.
    """

    workload: str
    method: str
    bits: str
    seed: int = 0
    variant: str = DEFAULT_VARIANT
    policy: str = DEFAULT_POLICY
    budget: Budget = Budget()
    options: OptionPairs = ()
    target: Target = DEFAULT_TARGET

    @property
    def widths(self) -> Bits:
        """The requested bits, parsed. Raises ValueError as ``parse_bits`` does."""
        return parse_bits(self.bits)

    @property
    def key(self) -> str:
        """16 hex digits that name this cell for ever.

        A field that joined later, and is at its default, is left out: such a cell has the key that
        it had before.
        """
        return _key(self)

    @property
    def shared_key(self) -> str:
        """The key of what cells share: the recorded trajectory and the full-precision images."""
        content: list[Any] = [self.workload, self.seed, budget_content(self.budget)]
        if self.target.device != DEFAULT_TARGET.device:
            content.append(self.target.device)
        if self.target.offload:
            content.append("offload")
        return content_key(content)

    def batched(self, batch: int) -> "Cell":
        """The cell with that many images drawn together; with its own number if that is 0."""
        return replace(self, budget=replace(self.budget, batch=batch)) if batch else self

    @property
    def label(self) -> str:
        """Short name for progress and messages."""
        variant = "" if self.variant == DEFAULT_VARIANT else f"/{self.variant}"
        policy = "" if self.policy == DEFAULT_POLICY else f"/{self.policy}"
        target = f"/{self.target.label.replace(', ', '/')}" if self.target.label else ""
        return f"{self.workload}/{self.configured}/{self.bits}{policy}{variant}{target}"

    @property
    def configured(self) -> str:
        """The method with its options, such as ``dgq[groups=4]``."""
        pairs = ",".join(f"{name}={value}" for name, value in self.options)
        return f"{self.method}[{pairs}]" if pairs else self.method


@functools.lru_cache(maxsize=1 << 16)
def _key(cell: Cell) -> str:
    """The key of a cell, which is asked for many times."""
    plain = _plain(cell) | {
        "budget": budget_content(cell.budget),
        "target": target_content(cell.target),
    }
    if not cell.options:
        del plain["options"]
    if cell.target == DEFAULT_TARGET:
        del plain["target"]
    return content_key(plain)


@dataclass(frozen=True, slots=True)
class Grid:
    """A preset: which cells to run. ``fp`` is a method that takes only the bits ``fp``.

    Attributes:
        name: name of the results folder.
        title: heading of the page.
        workloads, methods, bits, seeds, variants, policies: every combination is a cell.
        also: further pairs of method and bits, for methods made for widths of their own.
        left_out: workload, method and bits of combinations that are no cell.
        budget: what every cell may spend.
        options: options by method; they hold for all cells of the method.
        target: where and how every cell's networks run.
    """

    name: str
    title: str
    workloads: tuple[str, ...]
    methods: tuple[str, ...]
    bits: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    variants: tuple[str, ...] = (DEFAULT_VARIANT,)
    policies: tuple[str, ...] = (DEFAULT_POLICY,)
    also: tuple[tuple[str, str], ...] = ()
    left_out: frozenset[tuple[str, str, str]] = frozenset()
    budget: Budget = Budget()
    options: tuple[tuple[str, OptionPairs], ...] = ()
    target: Target = DEFAULT_TARGET

    def cells(self) -> tuple[Cell, ...]:
        """Every planned cell, full precision first within a workload; no duplicates."""
        cells: dict[Cell, None] = {}
        options = dict(self.options)
        for workload in self.workloads:
            for seed in self.seeds:
                for method in sorted(self.all_methods, key=lambda name: name != "fp"):
                    for policy, variant, bits in self._ways(method):
                        if (workload, method, bits) in self.left_out:
                            continue
                        cell = Cell(workload, method, bits, seed, variant, policy, self.budget)
                        pairs = options.get(method, ())
                        cells.setdefault(replace(cell, options=pairs, target=self.target))
        return tuple(cells)

    @property
    def all_methods(self) -> tuple[str, ...]:
        """The methods of the grid, with those that have only widths of their own."""
        return tuple(dict.fromkeys((*self.methods, *(name for name, _ in self.also))))

    def _ways(self, method: str) -> Iterator[tuple[str, str, str]]:
        """Policy, variant and bits; full precision has nothing to choose, one row is enough."""
        if method == "fp":
            return iter([(DEFAULT_POLICY, DEFAULT_VARIANT, "fp")])
        common = self.bits if method in self.methods else ()
        own = [bits for name, bits in self.also if name == method]
        return product(self.policies, self.variants, dict.fromkeys((*common, *own)))
