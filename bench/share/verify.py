"""Verifies a submission: its files against its manifest, then its rows. Nothing is written."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantarena.bench.content import bytes_sha256
from quantarena.bench.errors import UserError
from quantarena.bench.files import finish_replacing
from quantarena.bench.share.examine import Done, Examined, Holding, examine, read_rows
from quantarena.bench.share.layout import MANIFEST, SHARE, Problem, is_plain_file, limit, walk
from quantarena.bench.share.manifest import Manifest, read_manifest, strange_entries
from quantarena.bench.share.provenance import Standing


@dataclass(frozen=True, slots=True)
class Report:
    """What was found of a submission.

    Attributes:
        folder: the submission.
        manifest: its manifest, None where it cannot be read.
        problems: what is wrong with its files and rows. A submission without problems is accepted.
        rows: what was found of each row; empty where the files are already wrong.
    """

    folder: Path
    manifest: Manifest | None
    problems: tuple[Problem, ...]
    rows: tuple[Examined, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def standings(self) -> dict[str, int]:
        """Number of rows by what was found of them."""
        return standings(self.rows)


def standings(rows: tuple[Examined, ...] | list[Examined]) -> dict[str, int]:
    """Number of rows by what was found of them."""
    return {str(one): sum(row.standing is one for row in rows) for one in Standing}


def is_submission(folder: Path) -> bool:
    """Whether a folder is meant as a submission: it has a manifest."""
    return (folder / MANIFEST).exists() or (folder / MANIFEST).is_symlink()


def verify(folder: Path, *, share: float = SHARE, done: Done = lambda count, total: None) -> Report:
    """Check a submission. Files are opened only when their names, kinds and sizes are in order.

    Args:
        folder: the submission.
        share: share of the images of each row that are scored again.
        done: called with the number of rows that are done, and of all.

    Raises:
        UserError: there is no such folder.
    """
    if folder.is_symlink():
        raise UserError(f"{folder} is a link: name the folder itself")
    finish_replacing(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: write one with quantarena submit")
    present, problems = walk(folder)
    try:
        manifest = read_manifest(folder)
    except ValueError as error:
        return Report(folder, None, (*problems, Problem(MANIFEST, str(error))), ())
    problems += strange_entries(manifest)
    problems += _listed(manifest, present)
    if not problems:
        problems += _changed(folder, manifest)
    if problems:
        return Report(folder, manifest, tuple(problems), ())
    rows, problems = read_rows(folder)
    problems += _rows_listed(manifest, {row.key for row, _ in rows} | _broken(problems))
    if not rows and not problems:
        problems.append(Problem("rows", "there is no row"))
    found = examine(Holding(folder, "submission", manifest.images), rows, share=share, done=done)
    problems += [
        Problem(f"rows/{one.row.key}.json", what) for one in found for what in one.problems
    ]
    return Report(folder, manifest, tuple(problems), tuple(found))


def _listed(manifest: Manifest, present: dict[str, int]) -> list[Problem]:
    """Files that the manifest names and the folder lacks, the reverse, and other sizes."""
    files = manifest.files
    problems = [
        Problem(name, "the manifest names it, it is not here")
        for name in files
        if name not in present and limit(name) is not None
    ]
    problems += [
        Problem(name, "the manifest does not name it")
        for name in present
        if name not in files and name != MANIFEST
    ]
    problems += [
        Problem(name, f"it has {present[name]} bytes, the manifest says {entry.bytes}")
        for name, entry in files.items()
        if name in present and present[name] != entry.bytes
    ]
    return problems


def _changed(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    """Files whose bytes are not those that the manifest states, and images that two lists state."""
    for name, entry in manifest.files.items():
        path = folder / name
        try:
            found = bytes_sha256(path) if is_plain_file(path) else ""
        except OSError as error:
            yield Problem(name, f"it cannot be read: {error.strerror or error}")
            continue
        if found != entry.sha256:
            yield Problem(
                name, f"its sha256 is {found[:12]}, the manifest says {entry.sha256[:12]}"
            )
        parts = name.split("/")
        if parts[0] == "images":
            listed = manifest.images.get(parts[1], {}).get(parts[2])
            if listed != entry.sha256:
                yield Problem(name, "the manifest states two hashes of it")


def _rows_listed(manifest: Manifest, keys: set[str]) -> list[Problem]:
    """Scores and images of rows that are not here."""
    named = {name.split("/")[1].partition(".")[0] for name in manifest.files if "/" in name}
    strays = sorted((named | set(manifest.images)) - keys)
    return [Problem(f"rows/{key}.json", "its files are here, the row is not") for key in strays]


def _broken(problems: list[Problem]) -> set[str]:
    return {Path(problem.where).stem for problem in problems}
