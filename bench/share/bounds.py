"""What a row's figures cannot be, whatever was measured, and which of them nobody checks. No torch.

Nothing is opened here, so a row that fails is refused before its files are read.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator

from quantarena.bench.metrics.names import (
    ALIGNMENT,
    CLEAN_FID,
    CLIP_SCORE,
    FID,
    FRAME_CHANGES,
    FRECHET,
    IMAGE_PAIRS,
    INCEPTION_SCORE,
    LATENT,
    LPIPS,
    METRICS,
    PRECISION,
    PSNR,
    R_PRECISION,
    RECALL,
    SFID,
    SSIM,
)
from quantarena.bench.schema import Measurement, Observed, Parity, Row
from quantarena.bench.share.layout import MOST_IMAGES
from quantarena.bench.spec import MOST_SEED
from quantarena.methods.builtin import FP
from quantarena.methods.core.bits import FP_WIDTH

FLOOR_BOARD = "floor"
FLOORS = f"{FLOOR_BOARD}/"
"""Start of the names of full precision's floors, ``floor/KIND/METRIC``."""
SLACK = 1e-6
"""Rounding by which a figure may leave its range."""
MOST_STEPS = 1 << 20
PARITY_LIMIT = 1e-5
"""Largest limit of the parity gate that any version had."""
_FULL_BITS = 32
_ANY = (-math.inf, math.inf)
_RANGES = {
    PSNR: (0.0, math.inf),
    SSIM: (-1.0, 1.0),
    LPIPS: (0.0, 2.0),
    LATENT: (0.0, math.inf),
    FRAME_CHANGES: (0.0, 255.0),
    PRECISION: (0.0, 1.0),
    RECALL: (0.0, 1.0),
    ALIGNMENT: (-1.0, 1.0),
    R_PRECISION: (0.0, 1.0),
    CLIP_SCORE: (-100.0, 100.0),
    INCEPTION_SCORE: (1.0, math.inf),
    # distances whose square roots of matrices are rounded
    **dict.fromkeys((FRECHET, FID, CLEAN_FID, SFID), (-1e-2, math.inf)),
}
_WIDTHS = re.compile(r"fp|[wa](1?[0-9])a(1?[0-9])")


def values_range(name: str) -> tuple[float, float]:
    """Least and largest value of a metric; KID, an unbiased estimate, may well be negative."""
    return _RANGES.get(name, _ANY)


def floor_of(name: str) -> tuple[str, str]:
    """Kind and metric of a floor by its name; both are empty where the name is none."""
    kind, _, metric = name.removeprefix(FLOORS).partition("/")
    return (kind, metric) if name.startswith(FLOORS) else ("", "")


def impossible(row: Row) -> Iterator[str]:
    """Each figure of a row that no measurement gives, as a line."""
    yield from _of_cell(row)
    double = [name for name, n in Counter(m.name for m in row.measurements).items() if n > 1]
    if double:
        yield f"it has {double[0]} more than once"
    for figure in row.measurements:
        yield from _of_board(figure, full_precision=row.cell.method == FP)
        yield from _of_value(figure, row.cell.budget.images)
    if row.observed is not None:
        yield from _of_counts(row.observed, exact="scores_sha256" in row.artefacts)
    if row.parity is not None:
        yield from _of_parity(row.parity)
    spent = {**row.seconds, "peak_bytes": row.peak_bytes}
    if wrong := [name for name, value in spent.items() if value < 0]:
        yield f"its {wrong[0]} is below 0"


def _of_cell(row: Row) -> Iterator[str]:
    """Numbers of the cell that no run takes; what is checked later may rely on them."""
    cell, budget = row.cell, row.cell.budget
    if not 0 <= cell.seed <= MOST_SEED:
        yield f"its seed is {cell.seed}"
    if not 1 <= budget.images <= MOST_IMAGES:
        yield f"its budget has {budget.images} images, 1 to {MOST_IMAGES} are taken"
    if budget.batch < 1 or not 0 <= budget.steps <= MOST_STEPS:
        yield f"its budget has a batch of {budget.batch} and {budget.steps} steps"


def _of_board(figure: Measurement, *, full_precision: bool) -> Iterator[str]:
    """Floors are full precision's alone: nothing else is free from the checks of its board."""
    name, known = figure.name, METRICS.get(figure.name)
    if figure.board == FLOOR_BOARD or name.startswith(FLOORS):
        if not full_precision:
            yield f"{name} is a floor, which only full precision's row has"
        elif figure.board != FLOOR_BOARD or not name.startswith(FLOORS):
            yield f"{name} is on board {figure.board!r}"
    elif known is not None and figure.board != known.board:
        yield f"{name} is on board {figure.board!r}, here it is on {known.board}"
    elif known is None and figure.board not in ("fidelity", "quality"):
        yield f"{name} is on board {figure.board!r}, which does not exist"
    if known is not None and figure.higher_is_better != known.higher_is_better:
        yield f"{name} says that {'larger' if figure.higher_is_better else 'smaller'} is better"


def _of_value(figure: Measurement, images: int) -> Iterator[str]:
    name, ends = figure.name, (figure.low, figure.high)
    numbers = [x for x in (figure.value, *ends) if x is not None]
    low, high = values_range(floor_of(name)[1] or name)
    if not all(math.isfinite(x) for x in numbers):
        yield f"{name} is not finite"
    elif figure.value is None:
        if numbers:
            yield f"{name} has an interval and no value"
    elif not all(low - SLACK <= x <= high + SLACK for x in numbers[:1]):
        yield f"{name} is {figure.value:g}, it lies within {low:g} and {high:g}"
    elif (figure.low is None) != (figure.high is None):
        yield f"{name} has one end of an interval"
    elif figure.low is not None and figure.high is not None and figure.low > figure.high + SLACK:
        yield f"the interval of {name} is from {figure.low:g} to {figure.high:g}"
    if figure.value is not None and not 1 <= figure.n <= images and not name.startswith(FLOORS):
        yield f"{name} says {figure.n} images of {images}"


def _of_counts(counted: Observed, *, exact: bool) -> Iterator[str]:
    """Bits, bytes and operations that contradict themselves or one another.

    Args:
        counted: by the row.
        exact: whether one has to follow from the other; versions that wrote no hashes yet may
            have counted otherwise.
    """
    packed, full = counted.packed_bytes, counted.fp_bytes
    if packed <= 0 or full <= 0:
        yield f"it has {packed} bytes of {full}"
    elif exact and not math.isclose(counted.weight_bits, _FULL_BITS * packed / full, rel_tol=1e-4):
        yield f"{counted.weight_bits:g} bits a weight do not follow from {packed} bytes of {full}"
    for what, bits in (("an activation", counted.act_bits), ("a code", counted.code_bits)):
        if bits is not None and not 0 < bits <= _FULL_BITS + SLACK:
            yield f"it has {bits:g} bits {what}"
    below = [n for n in (counted.layers, counted.branch_macs, counted.attention) if n and n < 0]
    if below:
        yield f"it counts {below[0]} layers, products or MACs"
    most = counted.fp_bops
    if (most is not None and most <= 0) or (counted.bops is not None and counted.bops <= 0):
        yield f"it has {counted.bops} bit operations of {most}"
    elif most is not None and counted.bops is not None:
        most += _FULL_BITS**2 * (counted.branch_macs or 0)
        if counted.bops > most * (1 + SLACK) + 1:
            yield f"it has {counted.bops} bit operations, full precision and branches have {most}"
    yield from _of_coverage(counted, exact=exact)


def _of_coverage(counted: Observed, *, exact: bool) -> Iterator[str]:
    """Shares that are none, and activations of other widths than the shares say."""
    shares = counted.coverage
    act = 0.0
    for label, share in shares.items():
        match = _WIDTHS.fullmatch(label)
        widths = [_bits(text) for text in match.groups() if text] if match else [0]
        if not all(widths):
            yield f"its coverage has the widths {label[:20]!r}"
            return
        if not 0 <= share <= 1 + SLACK:
            yield f"the share of its MACs at {label} is {share:g}"
            return
        left, right = widths or (_FULL_BITS, _FULL_BITS)
        act += share * ((left + right) / 2 if label.startswith("a") else right)
    if shares and abs(sum(shares.values()) - 1) > 1e-4:
        yield f"the shares of its MACs add up to {sum(shares.values()):g}"
    elif exact and set(shares) - {"fp"} and not math.isclose(counted.act_bits, act, rel_tol=1e-4):
        # where nothing is quantized a rival may run in a shorter floating-point format
        yield f"{counted.act_bits:g} bits an activation do not follow from its MACs, {act:g} do"


def _bits(text: str) -> int:
    """Bits of a width in a label; 0 where there is no such width."""
    width = int(text)
    return _FULL_BITS if width == FP_WIDTH else width if 1 <= width <= 8 else 0


def _of_parity(found: Parity) -> Iterator[str]:
    if found.max_rel < 0 or found.layers < 1 or not 0 < found.limit <= PARITY_LIMIT:
        yield (
            f"its parity is {found.max_rel:g} over {found.layers} layers, with a limit of "
            f"{found.limit:g} where {PARITY_LIMIT:g} is the largest"
        )
    elif found.max_rel > found.limit:  # the gate ends a cell before it has a row with parity
        yield f"its parity is {found.max_rel:g}, above the limit of {found.limit:g}"


def own_word(row: Row) -> tuple[str, ...]:
    """Figures of a row that nobody but its sender has computed, verified or not, by name.

    They have to fit one another and what is known, and that is all that is checked of them.
    """
    names = [m.name for m in row.measurements if m.value is not None and m.name not in IMAGE_PAIRS]
    parts = (
        ("bits, bytes and operations", row.observed),
        ("parity", row.parity),
        ("times and memory", row.latency),
    )
    shown = [name for name in names if not name.startswith(FLOORS)]
    if len(shown) < len(names):
        shown.append("floors")
    return (*shown, *(name for name, part in parts if part is not None))
