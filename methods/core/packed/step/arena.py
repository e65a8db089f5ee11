"""Places for what a step makes: memory is used again as soon as its last reader is done."""

from collections.abc import Mapping

ALIGNMENT = 64


def place(sizes: Mapping[int, int], lives: Mapping[int, tuple[int, int]]) -> dict[int, int]:
    """Offsets by first fit, the largest buffer first.

    Args:
        sizes: bytes of each buffer.
        lives: first and last operation that touches each buffer.

    Returns:
        The offset of each buffer; two whose lives overlap do not overlap in memory.
    """
    offsets: dict[int, int] = {}
    for number in sorted(sizes, key=lambda n: (-sizes[n], lives[n], n)):
        start = 0
        taken = sorted(
            (offsets[other], offsets[other] + aligned(sizes[other]))
            for other in offsets
            if lives[other][0] <= lives[number][1] and lives[number][0] <= lives[other][1]
        )
        for low, high in taken:
            if start + aligned(sizes[number]) <= low:
                break
            start = max(start, high)
        offsets[number] = start
    return offsets


def aligned(size: int) -> int:
    """A size rounded up to whole cache lines."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def extent(sizes: Mapping[int, int], offsets: Mapping[int, int]) -> int:
    """Bytes of memory that hold all buffers at their offsets."""
    return max((offsets[n] + aligned(sizes[n]) for n in offsets), default=0)
