"""The scores file of a row: an npz archive of numbers by image, and the names of its arrays.

An array under a metric's own name, such as ``lpips/alex-v0.1``, holds one number per image, (N,).
Metrics of a whole set of images, such as KID, have no such array. Everything else that the file
holds has a prefix with a colon, which no metric's name contains.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

UNITS = "unit:prompt"
"""The prompt of each image as a number, (N,); absent where images have no prompts."""
REPLICATES = "replicates:"
"""Prefix of a metric of a whole set: its bootstrap values, (B,)."""
FLOOR = "floor:"
"""Prefix of a fidelity metric, (n,): full precision with bfloat16 weights against full precision.

Only full precision's own file has it."""
FLOOR_SEED = "floor-seed:"
"""Prefix of a fidelity metric, (n,): full precision with another seed against full precision.

Only full precision's own file has it."""
CURVE = "curve:"
"""Prefix of a metric that has a value at each sampler call, (S, n)."""


def is_metric(name: str) -> bool:
    """True for the name of an array that holds one number per image of a metric."""
    return ":" not in name


def read_scores(path: Path) -> dict[str, NDArray[np.float64]]:
    """Every array of a scores file, in the order of the file.

    Raises:
        OSError, ValueError, KeyError, EOFError: the file is absent or damaged.
    """
    with np.load(path, allow_pickle=False) as archive:
        return {name: np.asarray(archive[name], dtype=np.float64) for name in archive.files}
