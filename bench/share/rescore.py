"""Scores sampled images again from their files, and compares them with what the row states."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from quantarena.bench.errors import QuantArenaError
from quantarena.bench.metrics.fidelity.fidelity import fidelity
from quantarena.bench.metrics.image_folder import load_image
from quantarena.bench.metrics.names import IMAGE_PAIRS, LPIPS, PSNR, SSIM
from quantarena.bench.share.figures import Arrays

TOLERANCES = {PSNR: 0.01, SSIM: 1e-4, LPIPS: 1e-4}
"""Largest difference of a score, beside a thousandth of it: processors sum in other orders."""
RELATIVE = 1e-3
SAME, SAME_ON_GPU = 1e-3, 1e-2
"""LPIPS up to which two images are of one network: processors sum in other orders, step after step.

GPUs may round the factors of convolutions to 10 bits as well. Rounding full precision's weights to
bfloat16 makes 6e-6 to 3e-3 on the two models of the tests' size, other noise 0.16 to 0.21.
"""


@dataclass(frozen=True, slots=True)
class Pair:
    """An image of a row, and full precision's of the same seed.

    Attributes:
        number: of the image.
        reference: file of full precision's.
        test: file of the row's.
    """

    number: int
    reference: Path
    test: Path


def strange_pair(pair: Pair, scores: Arrays, side: int | None) -> list[str]:
    """What of an image does not fit the row, as lines.

    Args:
        pair: the files.
        scores: of the row.
        side: resolution that the row states.
    """
    try:
        reference, test = _picture(pair.reference, side), _picture(pair.test, side)
        found = fidelity(reference, test)
    except QuantArenaError as error:
        return [str(error)]
    lines = []
    for name in IMAGE_PAIRS:
        if name not in found:
            continue
        if name not in scores:
            lines.append(f"the scores hold nothing of {name}, which its images have")
            continue
        stated, again = float(scores[name][pair.number]), float(found[name][0])
        slack = TOLERANCES[name] + RELATIVE * abs(again)
        if not np.isfinite(stated) or abs(stated - again) > slack:
            lines.append(
                f"{name} of image {pair.number} is {again:.5g} by its file, stated is {stated:.5g}"
            )
    return lines


def unlike(pair: Pair, device: str) -> str:
    """Why two images are not the same network's of one seed, in words; empty where they may be.

    Args:
        pair: the files.
        device: kind of device that the images were drawn on.
    """
    most = SAME if device == "cpu" else SAME_ON_GPU
    try:
        first, other = _picture(pair.reference, None), _picture(pair.test, None)
        found = float(fidelity(first, other)[LPIPS][0])
    except QuantArenaError as error:
        return str(error)
    return f"{LPIPS} of image {pair.number} is {found:.3g}" if found > most else ""


def _picture(file: Path, side: int | None) -> Tensor:
    image, notes = load_image(file)
    if notes:
        raise QuantArenaError(f"{file.parent.name}/{file.name}: {'; '.join(notes)}")
    height, width = image.shape[2:]
    if side is not None and side not in (height, width):
        raise QuantArenaError(
            f"{file.parent.name}/{file.name} is {width}x{height}, the row states {side}"
        )
    return image
