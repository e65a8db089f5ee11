"""What can be voted on in a results folder: prompts, and the images that methods drew for them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantarena.bench.schema import Row, Status
from quantarena.bench.scores import UNITS
from quantarena.leaderboard.arena.events import Task
from quantarena.leaderboard.page.gallery import caption
from quantarena.leaderboard.ranking.read_results import (
    FP_METHOD,
    BoardId,
    by_board,
    contestant,
    load_rows,
    load_scores,
)

MOST_NAME = 300
"""Longest name of a board or contestant that an event can hold."""
MOST_PROMPT = 2000
"""Longest prompt that the page shows, in characters; the rest is cut."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One prompt and seed of a board, with every contestant's image of it.

    Attributes:
        board: key of the board.
        unit: the unit of evidence, as in ``ranking.votes.Vote``.
        seed: of the images.
        image: number of the image.
        prompt: what was asked for, in words; the class or number where there is no prompt.
        files: image file by contestant, at least two.
        reference: full precision's image, if there is one.
    """

    board: str
    unit: str
    seed: int
    image: int
    prompt: str
    files: Mapping[str, Path]
    reference: Path | None

    @property
    def key(self) -> str:
        """Name of the scene, the same for every start of the server."""
        return f"{self.board}|{self.seed}|{self.image}"


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Everything that can be voted on.

    Attributes:
        folder: the results folder.
        scenes: in a fixed order.
        titles: title by key of the board.
        contestants: contestants by key of the board, sorted.
        problems: one line for whatever could not be read.
    """

    folder: Path
    scenes: tuple[Scene, ...]
    titles: Mapping[str, str]
    contestants: Mapping[str, tuple[str, ...]]
    problems: tuple[str, ...] = ()

    def scene(self, key: str) -> Scene | None:
        """The scene of that key, if the folder still has it."""
        return next((scene for scene in self.scenes if scene.key == key), None)


def board_key(board: BoardId) -> str:
    """One text for a board, such as ``emoji-t2i/uniform/paper/1a2b3c``."""
    parts = [board.workload, board.policy, board.variant, board.budget, board.target]
    return plain("/".join(filter(None, parts)))[:MOST_NAME]


def plain(text: str) -> str:
    """A text without control characters and lone surrogates, which JSON and pages cannot hold."""
    clean = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(letter if letter.isprintable() else " " for letter in clean)


def read_catalogue(
    folder: Path, *, task: Task, reference: bool, workloads: Sequence[str] = ()
) -> Catalogue:
    """What can be voted on in a results folder.

    Full precision is the reference and does not compete, unless the task is ``preference`` and
    it is not shown.

    Args:
        folder: with ``rows`` and ``images``.
        task: what voters are asked.
        reference: whether full precision's image is shown beside the others.
        workloads: boards of these only; all where there are none.

    Raises:
        ValueError: nothing can be voted on; one line says what is missing.
    """
    loaded = load_rows(folder)
    wanted = [r for r in loaded.rows if not workloads or r.cell.workload in workloads]
    references = _references(folder, wanted)
    scenes: list[Scene] = []
    titles: dict[str, str] = {}
    problems = list(loaded.problems)
    for board, rows in by_board(wanted).items():
        found = _scenes(folder, board, rows, references, reference, task, problems)
        if reference:
            found = [scene for scene in found if scene.reference]
        if found:
            scenes += found
            titles[found[0].board] = plain(board.title)
    if not scenes:
        hint = "no prompt has images of two methods"
        hint += " and of full precision" if reference else ""
        raise ValueError(f"nothing to vote on in {folder}: {hint}")
    names: dict[str, set[str]] = {}
    for scene in scenes:
        names.setdefault(scene.board, set()).update(scene.files)
    contestants = {board: tuple(sorted(of)) for board, of in names.items()}
    return Catalogue(folder, tuple(scenes), titles, contestants, tuple(problems))


def _references(folder: Path, rows: Iterable[Row]) -> dict[tuple[str, str, str, int], Path]:
    """Full precision's images, by workload, budget, target and seed: policies share them."""
    found = {}
    for row in rows:
        place = _images(folder, row)
        if row.cell.method == FP_METHOD and place:
            board = BoardId.of(row.cell)
            found[board.workload, board.budget, board.target, row.cell.seed] = place
    return found


def _scenes(
    folder: Path,
    board: BoardId,
    rows: Sequence[Row],
    references: Mapping[tuple[str, str, str, int], Path],
    shown: bool,
    task: Task,
    problems: list[str],
) -> list[Scene]:
    files: dict[tuple[int, int], dict[str, Path]] = {}
    texts: dict[tuple[int, int], tuple[str, str]] = {}
    for row in rows:
        is_fp = row.cell.method == FP_METHOD
        place = _images(folder, row)
        if place is None or (is_fp and (shown or task == "fidelity")):
            continue
        name = plain(contestant(row.cell))
        if len(name) > MOST_NAME:
            problems.append(f"{row.key}: its name is too long to vote on")
            continue
        units = _units(folder, row)
        for path in sorted(place.glob("[0-9][0-9][0-9][0-9].png")):
            at = (row.cell.seed, int(path.stem))
            files.setdefault(at, {})[name] = path
            texts.setdefault(at, (_unit(*at, units), plain(caption(row, at[1]))[:MOST_PROMPT]))
    scenes = []
    for (seed, image), of in sorted(files.items()):
        place = references.get((board.workload, board.budget, board.target, seed))
        fp = place / f"{image:04d}.png" if place else None
        unit, prompt = texts[seed, image]
        fp = fp if fp and fp.is_file() else None
        if len(of) > 1:
            scenes.append(Scene(board_key(board), unit, seed, image, prompt, of, fp))
    return scenes


def _images(folder: Path, row: Row) -> Path | None:
    """The folder of a row's images; None where it has none, or names a place outside."""
    name = row.artefacts.get("images")
    if row.status is not Status.OK or not name or "\0" in name:
        return None
    place = folder / name
    inside = place.resolve().is_relative_to(folder.resolve())
    return place if inside and place.is_dir() else None


def _units(folder: Path, row: Row) -> Sequence[float]:
    """The prompt of each image as a number; empty where the row does not say."""
    try:
        found = load_scores(folder, row).get(UNITS, np.empty(0))
    except ValueError:
        return ()
    return [float(number) for number in found]


def _unit(seed: int, image: int, prompts: Sequence[float]) -> str:
    """The unit of evidence as the automatic judge names it, so that votes of both can be joined."""
    if image < len(prompts):
        return f"p{int(prompts[image]):04d}"
    return f"s{seed}/i{image:04d}"
