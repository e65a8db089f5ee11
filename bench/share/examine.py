"""Examines the rows of one results folder or submission: verified, self-reported or refused.

Three kinds of findings: a *problem* contradicts the row, which is refused; a *doubt* is something
that cannot be checked, which makes the row self-reported; a *note* is for the reader.
"""

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from quantarena.bench.content import bytes_sha256, listing_sha256
from quantarena.bench.documents import parse_json
from quantarena.bench.errors import QuantArenaError
from quantarena.bench.files import read_text
from quantarena.bench.schema import Row, Status
from quantarena.bench.scores import read_scores
from quantarena.bench.share.figures import Arrays, strange_figures, strange_times
from quantarena.bench.share.layout import (
    ROW_BYTES,
    SHARE,
    Problem,
    is_plain_file,
    plain_line,
    sampled,
)
from quantarena.bench.share.manifest import is_numbered
from quantarena.bench.share.provenance import Standing
from quantarena.bench.share.tables import contradictions, other_code, unknown_here
from quantarena.bench.store import parse_row
from quantarena.methods.builtin import FP

Listing = Mapping[str, str]
"""SHA-256 of each image of a row by its file name."""
Done = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Holding:
    """A folder with rows, scores and images.

    Attributes:
        root: the folder.
        kind: ``results`` or ``submission``.
        images: of a submission, the hashes of each row's images; a results folder holds them all.
    """

    root: Path
    kind: str
    images: Mapping[str, Listing] | None = None

    def listing(self, key: str) -> Listing:
        """The hashes of a row's images, read from the files where nobody states them."""
        if self.images is not None:
            return self.images.get(key, {})
        folder = self.root / "images" / key
        files = sorted(folder.glob("[0-9]*.png")) if folder.is_dir() else []
        return {file.name: bytes_sha256(file) for file in files if is_plain_file(file)}

    def image(self, key: str, number: int) -> Path:
        """The file of an image, whether it is here or not."""
        return self.root / "images" / key / f"{number:04d}.png"


@dataclass(frozen=True, slots=True)
class Examined:
    """A row and what was found of it.

    Attributes:
        row: the row.
        digest: that its file states.
        problems: what contradicts it.
        doubts: what could not be checked.
        notes: what a reader should know.
        rescored: numbers of the images that were scored again.
    """

    row: Row
    digest: str
    problems: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    rescored: tuple[int, ...] = ()

    @property
    def standing(self) -> Standing:
        """What the findings amount to."""
        if self.problems:
            return Standing.REFUSED
        return Standing.SELF_REPORTED if self.doubts else Standing.VERIFIED


def read_rows(root: Path) -> tuple[list[tuple[Row, str]], list[Problem]]:
    """The rows of a folder with the digests that they state, and the files that are no rows."""
    rows, problems = [], []
    folder = root / "rows"
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        name = f"rows/{path.name}"
        if not is_plain_file(path):
            problems.append(Problem(name, "it is no regular file"))
            continue
        try:
            text = read_text(path, ROW_BYTES)
            row = parse_row(text)
            if row.key != path.stem:
                raise ValueError(f"it holds the row {row.key}, as its cell says")
            rows.append((row, str(parse_json(text)["digest"])))
        except (OSError, ValueError) as error:
            problems.append(Problem(name, str(error)))
    return rows, problems


def examine(
    holding: Holding,
    rows: Iterable[tuple[Row, str]],
    *,
    share: float = SHARE,
    done: Done = lambda count, total: None,
) -> list[Examined]:
    """What is found of each row; full precision's come first, since others lean on them.

    Args:
        holding: the folder.
        rows: its rows with their digests.
        share: share of the images of each row that are scored again.
        done: called with the number of rows that are done, and of all.
    """
    ordered = sorted(rows, key=lambda pair: pair[0].cell.method != FP)
    references: dict[str, Examined] = {}
    found: list[Examined] = []
    for number, (row, digest) in enumerate(ordered, 1):
        one = _examined(holding, row, digest, references.get(row.cell.shared_key), share)
        found.append(one)
        if row.cell.method == FP and row.status is Status.OK:
            references[row.cell.shared_key] = one
        done(number, len(ordered))
    return found


def _examined(
    holding: Holding, row: Row, digest: str, reference: Examined | None, share: float
) -> Examined:
    one = Examined(
        row,
        digest,
        problems=(*contradictions(row), *strange_times(row)),
        doubts=tuple(unknown_here(row)),
        notes=tuple(other_code(row)),
    )
    if one.problems:
        return one  # what follows relies on the numbers of its cell
    if row.status is not Status.OK:
        doubt = f"it is {row.status}, which no file shows"
        return replace(one, doubts=(*one.doubts, doubt)) if holding.kind != "results" else one
    one = _judged(one, "strange_networks")
    one, scores = _with_scores(holding, one)
    one = _with_images(holding, one)
    if one.problems or scores is None:
        return one
    return _with_pairs(holding, one, scores, one if row.cell.method == FP else reference, share)


def _with_scores(holding: Holding, one: Examined) -> tuple[Examined, Arrays | None]:
    row, place = one.row, f"scores/{one.row.key}.npz"
    if row.artefacts.get("scores", place) != place:
        return _problem(one, f"its scores are said to be in {row.artefacts['scores']}"), None
    path = holding.root / place
    if "scores" not in row.artefacts or not is_plain_file(path):
        return _doubt(one, "its scores file is not here"), None
    stated = row.artefacts.get("scores_sha256")
    if stated is None:
        one = _doubt(one, "it states no hash of its scores: an earlier version wrote it")
    elif stated != bytes_sha256(path):
        return _problem(one, "its scores file is not the one that it states the hash of"), None
    try:
        scores = read_scores(path)
        wrong = tuple(strange_figures(row, scores))
    except (ValueError, TypeError) as error:
        return _problem(one, f"its scores file cannot be read: {error}"), None
    return replace(one, problems=(*one.problems, *wrong)), scores


def _with_images(holding: Holding, one: Examined) -> Examined:
    row, place = one.row, f"images/{one.row.key}"
    if row.artefacts.get("images", place) != place:
        return _problem(one, f"its images are said to be in {row.artefacts['images']}")
    listing = holding.listing(row.key)
    if "images" not in row.artefacts or not listing:
        return _doubt(one, "its images are not here")
    images = row.cell.budget.images
    if not is_numbered(listing, images):
        return _problem(one, f"it has {len(listing)} images, its budget says {images}")
    stated = row.artefacts.get("images_sha256")
    if stated is None:
        return _doubt(one, "it states no hash of its images: an earlier version wrote it")
    if stated != listing_sha256(listing):
        return _problem(one, "its images are not those that it states the hash of")
    return _judged(one, "strange_noise")


def _judged(one: Examined, check: str) -> Examined:
    """What a check of ``installed`` finds: doubts where the row is of other code, else problems."""
    installed = importlib.import_module("quantarena.bench.share.installed")  # it imports torch
    try:
        lines, why = getattr(installed, check)(one.row)
    except QuantArenaError as error:
        return _doubt(one, f"it could not be compared with this installation: {error}")
    for line in lines:
        one = _doubt(one, f"{line}; {why}") if why else _problem(one, line)
    return one


def _with_pairs(
    holding: Holding, one: Examined, scores: Arrays, reference: Examined | None, share: float
) -> Examined:
    row = one.row
    if reference is None:
        return _doubt(one, "full precision's row of its seed and budget is not beside it")
    beside = reference.row.observed
    if row.observed and beside and row.observed.fp_bytes != beside.fp_bytes:
        return _problem(
            one,
            f"its full precision has {row.observed.fp_bytes} bytes, that of the row beside it "
            f"{beside.fp_bytes}",
        )
    if reference is not one and reference.standing is not Standing.VERIFIED:
        one = _doubt(one, f"full precision's row beside it is {reference.standing}")
    if row.workload.get("frames"):
        return _doubt(one, "its frames are not here, a video is no image to be scored again")
    seed = row.artefacts.get("images_sha256", row.key)
    numbers = sampled(seed, row.cell.budget.images, share)
    side = row.workload.get("resolution")
    rescore = importlib.import_module("quantarena.bench.share.rescore")  # it imports torch
    wrong: list[str] = []
    again: list[int] = []
    absent: list[int] = []
    for number in numbers:
        files = holding.image(reference.row.key, number), holding.image(row.key, number)
        if not all(is_plain_file(file) for file in files):
            absent.append(number)
            continue
        pair = rescore.Pair(number, *files)
        wrong += rescore.strange_pair(pair, scores, side if isinstance(side, int) else None)
        again.append(number)
    one = replace(one, problems=(*one.problems, *wrong), rescored=tuple(again))
    if absent:
        shown = ", ".join(map(str, absent[:8]))
        one = _doubt(one, f"images {shown} were chosen to be scored again and are not here")
    return one


def _problem(one: Examined, what: str) -> Examined:
    return replace(one, problems=(*one.problems, plain_line(what, 320)))


def _doubt(one: Examined, what: str) -> Examined:
    return replace(one, doubts=(*one.doubts, plain_line(what, 320)))
