"""The columns of the fidelity and the quality board, and the order of the latter."""

import math
from collections.abc import Sequence

from quantarena.bench.schema import Measurement
from quantarena.leaderboard.page.lines import Line
from quantarena.leaderboard.ranking.standings import width_order

FIDELITY, QUALITY = "fidelity", "quality"

SHORT_NAMES = {
    "lpips": "LPIPS",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "noise-sqnr": "Noise SQNR",
    "latent-mse": "Latent MSE",
    "kid": "KID",
    "fid": "FID",
    "frechet-pca32": "Fréchet",
    "precision-k3": "Precision",
    "recall-k3": "Recall",
    "alignment": "Alignment",
    "r-precision-99": "R-precision",
}


def short_name(name: str) -> str:
    """Heading of a metric. Only FID on Inception features is called plain ``FID``."""
    family, _, extractor = name.partition("/")
    if family == "fid" and "inception" not in extractor:
        return f"FID ({extractor or 'features unknown'})"
    return SHORT_NAMES.get(family, family)


def metrics_of(lines: Sequence[Line], board: str) -> tuple[Measurement, ...]:
    """One example of each measurement that any line has on that board, in a fixed order."""
    examples: dict[str, Measurement] = {}
    for line in lines:
        for figure in line.figures:
            if figure.board == board:
                examples.setdefault(figure.name, figure)
    families = list(SHORT_NAMES)

    def order(name: str) -> tuple[int, str]:
        family = name.split("/")[0]
        return (families.index(family) if family in families else len(families), name)

    return tuple(examples[name] for name in sorted(examples, key=order))


def quality_lines(lines: Sequence[Line], name: str) -> tuple[Line, ...]:
    """The lines with a value in one metric: full precision, then the best first in each width."""
    known = [(line, figure) for line in lines if line.ok and (figure := line.figure(name))]

    def order(pair: tuple[Line, Measurement]) -> tuple[bool, tuple[float, float, str], float, str]:
        line, figure = pair
        value = math.inf if figure.value is None else figure.value
        sign = -1.0 if figure.higher_is_better else 1.0
        return (not line.is_fp, width_order(line.bits), sign * value, line.name)

    return tuple(line for line, _ in sorted(known, key=order))
