"""Tile sizes of the integer product, and how they are chosen.

The rules of :func:`default` follow from sizes alone.  They have not been timed on a GPU;
:func:`tune` times every configuration of :func:`candidates` on the GPU at hand, for one shape.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from quantarena.methods.core.cuda.packing import segments


@dataclass(frozen=True, slots=True)
class Config:
    """Tile of one program: rows, columns, and bytes of a segment along K; warps and stages."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


Key = tuple[int, int, int, int]
"""Number of rows, columns and products per output, and weight bits."""

TUNED: dict[Key, Config] = {}
"""The configurations chosen by :func:`tune` in this process."""

_TILES = ((128, 256, 8), (128, 128, 8), (128, 128, 4), (64, 128, 4), (64, 64, 4), (16, 64, 4))
HOPPER = 90
"""Capability times ten of the first GPUs whose products read operands from shared memory."""
_SEVERAL_PLANES = (3, 5, 6, 7)
_SHARED = 227 << 10  # bytes of shared memory of one program on Hopper


def candidates(bits: int) -> list[Config]:
    """Configurations worth timing at a width; all fit the shared memory of a Hopper GPU."""
    count = segments(bits)
    longest = max(32, 128 // count)  # K of one pass of the loop is this times the segments
    configs = []
    for rows, columns, warps in _TILES:
        for depth, stages in {(longest, 3), (max(32, longest // 2), 4)}:
            operands = depth * count * rows + depth * columns * (bits * count // 8)
            if stages * operands + depth * columns <= _SHARED:
                configs.append(Config(rows, columns, depth, warps, stages))
    return sorted(configs, key=lambda config: (config.rows, config.columns, config.depth))


def default(rows: int, columns: int, bits: int, arch: int = HOPPER) -> Config:
    """A configuration chosen by sizes alone: large tiles only where they fill the GPU.

    Args:
        rows: rows of the product.
        columns: columns of the product.
        bits: width of a weight code.
        arch: compute capability times ten. Before Hopper products read their operands from
            registers, where codes of several planes leave no room for a tile of 128 rows: compiled,
            it spills kilobytes (``aot --arch 80``).
    """
    depth = max(32, 128 // segments(bits))
    if rows <= 16:
        return Config(16, 64, depth, 4, 4)
    if arch < HOPPER and bits in _SEVERAL_PLANES:
        return Config(64, 128, 32, 4, 3)
    if rows <= 64 or rows * columns <= 128 * 128 * 64:
        return Config(64, 64, depth, 4, 3)
    if arch < HOPPER and bits == 4:
        return Config(128, 128, 32, 8, 4)
    return Config(128, 128, depth, 8, 3)


def choose(rows: int, columns: int, depth: int, bits: int, arch: int = HOPPER) -> Config:
    """The tuned configuration of a product, or else the default."""
    return TUNED.get((rows, columns, depth, bits)) or default(rows, columns, bits, arch)


def tune(key: Key, seconds: Callable[[Config], float], configs: Iterable[Config]) -> Config:
    """Times configurations and keeps the fastest for :func:`choose`.

    Args:
        key: the product.
        seconds: measures one configuration; ``inf`` for one that cannot run.
        configs: configurations to try.

    Returns:
        The fastest configuration.
    """
    times = {config: seconds(config) for config in configs}
    best = min(times, key=lambda config: times[config])
    TUNED[key] = best
    return best
