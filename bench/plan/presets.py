"""The grids that come with the harness, and how options change one. Plain data."""

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from quantarena.bench.errors import UserError, did_you_mean
from quantarena.bench.spec import (
    MOST_SEED,
    POLICY_NAMES,
    VARIANT_NAMES,
    Budget,
    Grid,
    OptionPairs,
    budget_content,
    content_key,
)
from quantarena.bench.target import DEFAULT_TARGET, Target
from quantarena.methods.builtin import FP, builtins
from quantarena.methods.core.bits import parse_bits
from quantarena.methods.info import BOARD_BITS

DEFAULT = "quick"
MOST = 10**9
"""Largest number of images, steps or iterations: beyond it lies a slip of the hand."""
LONGEST_NAME = 100
"""Bytes of a folder's name. File systems take 255, and drafts of files have longer names."""
_T = TypeVar("_T")
# Which built-in methods are compared at which widths is data on their classes.
_BOARDS = {name: method.board_bits for name, method in builtins().items()}
_METHODS = (FP, *(name for name, bits in _BOARDS.items() if set(bits) >= set(BOARD_BITS)))
_ALSO = tuple(
    (name, width)
    for name, bits in _BOARDS.items()
    for width in bits
    if name not in _METHODS or width not in BOARD_BITS
)
# Where a width says least about methods, it is left to the larger presets: quick has its time.
# At w8a8 no method differs from another; emoji-dit has all that list it, emoji-t2i has two.
_WITHOUT = {
    "emoji-t2i": {"w2a4": (), "w8a8": ("rtn", "q_diffusion")},
    "cifar10-uncond": {"w2a4": (), "w8a8": (), "w4a16": ("rtn",)},
}
# MPQ-DM is a method for fewer bits, and takes more than twice as long as any other.
_SLOW = frozenset((name, "mpq_dm", "w4a8") for name in ("emoji-t2i", "cifar10-uncond"))
_WORKLOADS = ("emoji-t2i", "emoji-dit", "cifar10-uncond")


@dataclass(frozen=True, slots=True)
class Preset:
    """A named grid.

    Attributes:
        grid: what it runs.
        warning: a line to print before it starts, or empty.
        executor: how it runs unless told otherwise: ``local``, ``ray`` or ``auto``.
    """

    grid: Grid
    warning: str = ""
    executor: str = "auto"


_SMOKE = Grid(
    name="smoke",
    title="Smoke: every stage once, in minutes",
    workloads=_WORKLOADS[:1],
    methods=(FP, "rtn", "q_diffusion"),
    bits=("w4a8", "w4a4"),
    budget=Budget(
        images=16,
        steps=10,
        calibration_images=32,
        calibration_samples=64,
        range_samples=320,
        iterations=20,
        latency_rounds=20,
    ),
)
_QUICK = Grid(
    name="quick",
    title="Quick: the default comparison",
    workloads=_WORKLOADS,
    methods=_METHODS,
    bits=BOARD_BITS,
    also=_ALSO,
    left_out=frozenset(
        (workload, name, bits)
        for workload, without in _WITHOUT.items()
        for bits, kept in without.items()
        for name, known in builtins().items()
        if not known.rival and name not in kept
    )
    | _SLOW,
    budget=Budget(images=64),
)
_FULL = replace(
    _QUICK,
    name="full",
    title="Full: more images, more iterations, three seeds",
    left_out=frozenset(),
    seeds=(0, 1, 2),
    budget=Budget(
        images=512,
        calibration_images=256,
        calibration_samples=1024,
        range_samples=5120,
        iterations=1000,
        latency_rounds=50,
    ),
)
# Calibration and reconstruction as the papers state them: 5,120 points, 20,000 iterations a
# block. The image count is what covariance-based scores need to be comparable at all.
_PAPER = replace(
    _FULL,
    name="paper",
    title="Paper: calibration and reconstruction at the papers' own budgets",
    budget=Budget(
        images=10_000,
        batch=32,
        calibration_images=512,
        calibration_samples=5120,
        range_samples=10_240,
        iterations=20_000,
        latency_rounds=100,
    ),
)
PRESETS: dict[str, Preset] = {
    # Starting workers costs more than two of them save on so short a run.
    "smoke": Preset(_SMOKE, executor="local"),
    "quick": Preset(_QUICK),
    "full": Preset(
        _FULL,
        warning="full takes hours on a few cores; it continues where it stopped when run again",
    ),
    "paper": Preset(
        _PAPER,
        warning="paper takes days on a few cores and many hours on a GPU; start with quick",
    ),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """What the command line asks to change in a preset; empty or None leaves it as it is.

    Attributes:
        workloads, methods, bits, seeds, variants, policies: replace those of the preset.
        images, batch, steps, calibration_images, calibration_samples, range_samples, iterations,
        latency_batches: replace fields of the budget.
        name: name of the results folder.
        settings: settings of the workloads, ``KEY=VALUE``.
        options: options of methods, ``METHOD.NAME=VALUE``.
        target: replaces the preset's; None leaves it.
    """

    workloads: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    bits: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    images: int | None = None
    batch: int | None = None
    steps: int | None = None
    calibration_images: int | None = None
    calibration_samples: int | None = None
    range_samples: int | None = None
    iterations: int | None = None
    name: str | None = None
    variants: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    latency_batches: tuple[int, ...] = ()
    target: Target | None = None


LIMITS = tuple(f.name for f in fields(Budget) if f.type is int and hasattr(Choice, f.name))
"""The fields of the budget that the command line can change."""


def flag(limit: str) -> str:
    """The option of the command line that changes a field of the budget."""
    return "--samples" if limit == "calibration_samples" else f"--{limit.replace('_', '-')}"


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UserError: there is none.
    """
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}: {did_you_mean(name, PRESETS)}")
    return PRESETS[name]


def larger(name: str) -> str | None:
    """The preset after this one in size; None after the largest."""
    names = [*PRESETS, None]
    return names[names.index(name) + 1]


def choose(grid: Grid, choice: Choice) -> Grid:
    """The grid with the options applied.

    Results of one folder share one budget, so that all its rows can be compared: another budget
    gets another name. Full precision always comes along, it is the row that others are read by.

    Raises:
        UserError: bits that do not exist, or a number out of range.
    """
    budget = replace(grid.budget, **_limits(choice))
    if choice.latency_batches:
        budget = replace(budget, latency_batches=choice.latency_batches)
    methods, also = _chosen_methods(grid, choice)
    target = grid.target if choice.target is None else choice.target
    words = [grid.name, *re.findall(r"[a-z0-9]+", target.label)]
    if budget != grid.budget:
        words.append(content_key(budget_content(budget), 6))
    return replace(
        grid,
        name="-".join(words) if choice.name is None else _checked_name(choice.name),
        workloads=_unique(choice.workloads) or grid.workloads,
        methods=methods,
        also=also,
        left_out=frozenset() if choice.bits else grid.left_out,
        bits=_unique(canonical_bits(text) for text in choice.bits) or grid.bits,
        seeds=_unique(_checked_seed(seed) for seed in choice.seeds) or grid.seeds,
        variants=_unique(known_variant(v) for v in choice.variants) or grid.variants,
        policies=_unique(known_policy(p) for p in choice.policies) or grid.policies,
        budget=budget,
        target=target,
    )


def _chosen_methods(
    grid: Grid, choice: Choice
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Methods at all bits, and pairs of a method and bits of its own.

    Methods chosen by name are run at all bits chosen; without names, chosen bits keep the pairs
    that have them.
    """
    if choice.methods and choice.bits:
        return _unique(("fp", *choice.methods)), ()
    if choice.bits:
        bits = [canonical_bits(text) for text in choice.bits]
        return grid.methods, tuple(pair for pair in grid.also if pair[1] in bits)
    asked = _unique(choice.methods) or grid.all_methods
    also = tuple(pair for pair in grid.also if pair[0] in asked)
    alone = {name for name, _ in also if name not in grid.methods}
    return _unique(("fp", *(name for name in asked if name not in alone))), also


def resolved(
    grid: Grid, workloads: tuple[str, ...], options: tuple[tuple[str, OptionPairs], ...]
) -> Grid:
    """The grid on workloads by their full names, with options of methods as they were checked."""
    return replace(grid, workloads=_unique(workloads), options=options)


def canonical_bits(text: str) -> str:
    """``W4A8`` as ``w4a8``.

    Raises:
        UserError: no such bits.
    """
    try:
        return str(parse_bits(text))
    except ValueError as error:
        raise UserError(str(error)) from None


def _limits(choice: Choice) -> dict[str, Any]:
    given = {name: value for name in LIMITS if (value := getattr(choice, name)) is not None}
    for name, value in given.items():
        if value < 1:
            raise UserError(f"{flag(name)} {value}: it must be at least 1")
        if value > MOST:
            raise UserError(f"{flag(name)}: it must be at most {MOST:,}")
    return given


def _checked_name(name: str) -> str:
    if name != name.strip() or not name or name.startswith(".") or "/" in name or "\\" in name:
        raise UserError(f"--name {name!r}: it names one folder under --results")
    if not name.isprintable() or len(name.encode("utf-8", "replace")) > LONGEST_NAME:
        short = name if len(name) <= LONGEST_NAME else f"{name[:40]}..."
        raise UserError(
            f"--name {short!r}: take at most {LONGEST_NAME} bytes, all of them printable"
        )
    return name


def known_variant(name: str) -> str:
    """The name of a variant.

    Raises:
        UserError: there is none of that name.
    """
    if name not in VARIANT_NAMES:
        raise UserError(f"unknown variant {name!r}: {did_you_mean(name, VARIANT_NAMES)}")
    return name


def _checked_seed(seed: int) -> int:
    if not 0 <= seed <= MOST_SEED:
        raise UserError(f"--seed {str(seed)[:40]}: it must be from 0 to {MOST_SEED}")
    return seed


def known_policy(name: str) -> str:
    """The name of a policy.

    Raises:
        UserError: there is none of that name.
    """
    if name not in POLICY_NAMES:
        raise UserError(f"unknown policy {name!r}: {did_you_mean(name, POLICY_NAMES)}")
    return name


def _unique(values: Iterable[_T]) -> tuple[_T, ...]:
    return tuple(dict.fromkeys(values))


def command(preset_name: str, choice: Choice, plugins: Iterable[str] = ()) -> str:
    """The shortest command line that asks for the same cells."""
    if choice == Choice() and not tuple(plugins):
        return f"./run_all.sh {preset_name}"
    words = ["quantarena", "run", preset_name]
    many = {"workload": choice.workloads, "method": choice.methods, "bits": choice.bits}
    many |= {"variant": choice.variants, "policy": choice.policies}
    many |= {"set": choice.settings, "option": choice.options}
    for option, values in {**many, "seed": choice.seeds, "plugin": tuple(plugins)}.items():
        for value in values:
            words += [f"--{option}", str(value)]
    for option in (*LIMITS, "name"):
        value = getattr(choice, option)
        if option == "batch" and choice.latency_batches:
            value = ",".join(map(str, (value, *choice.latency_batches)))
        if value is not None:
            words += [flag(option), str(value)]
    for field in fields(Target):
        value = getattr(choice.target or DEFAULT_TARGET, field.name)
        if value != getattr(DEFAULT_TARGET, field.name):
            words += [f"--{field.name}", *([] if value is True else [str(value)])]
    return shlex.join(words)
