"""Entries as plain data frames: the tables of the page, ready for other uses."""

from collections.abc import Sequence

import pandas as pd

from quantarena.bench.schema import Measurement
from quantarena.leaderboard.page.entries import Entry
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
    """Heading of a metric. Plain ``FID`` is kept for Inception features."""
    family, _, extractor = name.partition("/")
    if family == "fid" and "inception" not in extractor:
        return f"FID ({extractor or 'features unknown'})"
    return SHORT_NAMES.get(family, family)


def metrics_of(entries: Sequence[Entry], board: str) -> tuple[Measurement, ...]:
    """One specimen of each measurement that some entry has on that board, in a fixed order."""
    found: dict[str, Measurement] = {}
    for entry in entries:
        for figure in entry.figures:
            if figure.board == board:
                found.setdefault(figure.name, figure)
    families = list(SHORT_NAMES)

    def order(name: str) -> tuple[int, str]:
        family = name.split("/")[0]
        return (families.index(family) if family in families else len(families), name)

    return tuple(found[name] for name in sorted(found, key=order))


def board_frame(entries: Sequence[Entry]) -> pd.DataFrame:
    """All columns of a board, one line an entry, in the order of the page."""
    names = [m.name for board in (FIDELITY, QUALITY) for m in metrics_of(entries, board)]
    return pd.DataFrame([_line(entry, names) for entry in entries])


def _line(entry: Entry, names: Sequence[str]) -> dict[str, object]:
    standing, latency, observed = entry.standing, entry.latency, entry.observed
    line: dict[str, object] = {
        "workload": entry.board.workload,
        "policy": entry.board.policy,
        "variant": entry.board.variant,
        "rank": standing.place if standing else None,
        "tie_group": standing.group if standing else None,
        "best_rank": standing.best_rank if standing else None,
        "worst_rank": standing.worst_rank if standing else None,
        "method": entry.method,
        "bits": entry.bits,
        "observed_weight_bits": observed.weight_bits if observed else None,
        "observed_act_bits": observed.act_bits if observed else None,
        "score": standing.mu if standing else None,
        "score_low": standing.low if standing else None,
        "score_high": standing.high if standing else None,
        "better_than_next": standing.better_than_next if standing else None,
    }
    for name in names:
        figure = entry.figure(name)
        line[name] = figure.value if figure else None
        line[f"{name}.low"] = figure.low if figure else None
        line[f"{name}.high"] = figure.high if figure else None
    return line | {
        "speedup": latency.ratio if latency and entry.timed else None,
        "speedup_low": latency.ratio_low if latency and entry.timed else None,
        "speedup_high": latency.ratio_high if latency and entry.timed else None,
        "step_ms": latency.step_ms if latency else None,
        "latency_backend": latency.backend if latency else entry.backend,
        "latency_ranked": entry.timed,
        "packed_bytes": observed.packed_bytes if observed else None,
        "bytes_share": entry.share,
        "peak_bytes": latency.peak_bytes if latency else None,
        "macs_at_bits": entry.at_width,
        "parity_max_rel": entry.parity.max_rel if entry.parity else None,
        "status": entry.state,
        "reason": entry.reason or entry.unranked,
        "seconds": entry.seconds,
    }


def quality_places(entries: Sequence[Entry], name: str) -> dict[str, int]:
    """Places on the quality board, the reference included, by tie group.

    These measurements come as one number and an interval a row, not paired by image, so two
    whose intervals overlap are tied; a group is what overlaps its best member.
    """
    found = [(entry.name, figure) for entry in entries if (figure := entry.figure(name))]
    sign = -1.0 if found and found[0][1].higher_is_better else 1.0
    known = [(label, figure) for label, figure in found if figure.value is not None]
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
