"""Whether two sources' full precision draws the same images. Imports torch to compare them.

A row is compared with its own sender's full precision. So where two sources have one, rows stand
beside each other only if these are one and the same network.
"""

import importlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from quantarena.bench.schema import Status
from quantarena.bench.share.conflicts import Candidate, rank
from quantarena.bench.share.examine import Holding
from quantarena.bench.share.layout import is_plain_file
from quantarena.methods.builtin import FP

MOST_COMPARED = 16
"""Images that are compared of two full precisions at most."""


def other_references(
    candidates: Sequence[Candidate], holdings: Mapping[str, Holding]
) -> tuple[list[Candidate], dict[int, str]]:
    """The candidates, some with doubts, and which of them lean on other images.

    Of the full-precision rows of a workload, seed and budget one stands: an own one before
    those of submissions, a verified one before others, then what most sources drew. Those of other
    sources have to draw the same images, as far as both sources hold them.

    Args:
        candidates: rows of all sources.
        holdings: folder of each source by its name.

    Returns:
        The candidates in their order, and reasons by the place of those that cannot stand beside
        the others.
    """
    rows: dict[str, list[Candidate]] = {}
    for one in candidates:
        if one.row.cell.method == FP and one.row.status is Status.OK:
            rows.setdefault(one.row.cell.shared_key, []).append(one)
    wrong: dict[tuple[str, str], str] = {}
    doubts: dict[tuple[str, str], str] = {}
    for board, some in rows.items():
        alike = Counter(_hash(one) for one in {(c.source, _hash(c)): c for c in some}.values())
        first, *others = sorted(some, key=lambda one: rank(one, alike[_hash(one)]))
        for other in others:
            if other.source == first.source:
                continue
            place = (board, other.source)
            problem, doubt = _compared(first, other, holdings)
            if problem:
                wrong[place] = problem
            elif doubt:
                doubts[place] = doubt
    refused: dict[int, str] = {}
    marked: list[Candidate] = []
    for number, one in enumerate(candidates):
        place = (one.row.cell.shared_key, one.source)
        if one.row.status is Status.OK and place in wrong:
            refused[number] = wrong[place]
        doubt = doubts.get(place, "") if one.row.status is Status.OK else ""
        marked.append(_doubted(one, doubt) if doubt else one)
    return marked, refused


def _doubted(one: Candidate, doubt: str) -> Candidate:
    return replace(one, found=replace(one.found, doubts=(*one.found.doubts, doubt)))


def _compared(
    first: Candidate, other: Candidate, holdings: Mapping[str, Holding]
) -> tuple[str, str]:
    """Why two full-precision rows are not one network's, and why that could not be found out."""
    if _hash(first) and _hash(first) == _hash(other):
        return "", ""
    pairs = [
        (number, *(holdings[one.source].image(one.row.key, number) for one in (first, other)))
        for number in _shared(first, other, holdings)
    ]
    if not pairs:
        return "", f"its full precision's images could not be compared with those of {first.source}"
    rescore = importlib.import_module("quantarena.bench.share.rescore")  # it imports torch
    for number, ours, theirs in pairs:
        pair = rescore.Pair(number, ours, theirs)
        if why := rescore.unlike(pair, first.row.cell.target.kind):
            return f"its full precision is not that of {first.source}: {why}", ""
    return "", ""


def _hash(one: Candidate) -> str:
    return one.row.artefacts.get("images_sha256", "")


def _shared(first: Candidate, other: Candidate, holdings: Mapping[str, Holding]) -> Iterable[int]:
    """Numbers of the first images that both sources hold."""
    found = []
    for number in range(first.row.cell.budget.images):
        files = [holdings[one.source].image(one.row.key, number) for one in (first, other)]
        if all(map(is_plain_file, files)):
            found.append(number)
        if len(found) == MOST_COMPARED:
            break
    return found
