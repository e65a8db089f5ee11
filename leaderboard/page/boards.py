"""The columns of the fidelity and the quality board, and the places on the quality board."""

from collections.abc import Sequence

from quantarena.bench.schema import Measurement
from quantarena.leaderboard.page.lines import Line
from quantarena.leaderboard.page.pareto import overlap

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


def quality_places(lines: Sequence[Line], name: str) -> dict[str, int]:
    """Place of each line on the quality board in one metric, full precision included.

    A metric of a whole set of images is one number with an interval, without pairs of images to
    compare. Two lines whose intervals overlap are therefore tied: a tie group holds the lines
    whose intervals overlap with that of its best member, and they share its place.
    """
    figures = [(line.name, figure) for line in lines if (figure := line.figure(name))]
    sign = -1.0 if figures and figures[0][1].higher_is_better else 1.0
    known = [(label, figure) for label, figure in figures if figure.value is not None]
    places: dict[str, int] = {}
    head: Measurement | None = None
    place = 0
    for label, figure in sorted(known, key=lambda pair: sign * (pair[1].value or 0.0)):
        if head is None or not overlap(_ends(head), _ends(figure)):
            head, place = figure, len(places) + 1
        places[label] = place
    return places


def _ends(figure: Measurement) -> tuple[float, float]:
    value = figure.value or 0.0
    low = value if figure.low is None else figure.low
    return low, value if figure.high is None else figure.high
