"""Which images of a row are scored again: chosen by a hash, so that no side chooses. No torch."""

import hashlib
import math

SHARE = 0.01
"""Share of a row's images; one at least is taken."""
RULE = "the images whose sha256 of 'SEED/NUMBER' is least; SEED is the row's images_sha256"


def sampled(seed: str, count: int, share: float = SHARE) -> tuple[int, ...]:
    """Numbers of the images of a row that are scored again, in order.

    Args:
        seed: the row's ``images_sha256``, which is known only when all images are drawn.
        count: number of its images.
        share: share of them, 0 to 1.
    """
    wanted = min(count, max(1, math.ceil(share * count - 1e-9)))
    if wanted == count:
        return tuple(range(count))
    order = sorted(range(count), key=lambda number: _place(seed, number))
    return tuple(sorted(order[:wanted]))


def _place(seed: str, number: int) -> bytes:
    return hashlib.sha256(f"{seed}/{number}".encode()).digest()
