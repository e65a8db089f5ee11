"""Writes a submission: the rows of a results folder, their scores, and images to check. No torch.

The images of the sample are those that a verifier asks for by the same rule; the manifest states
the hashes of all of them.
"""

import dataclasses
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantarena.bench.content import bytes_sha256
from quantarena.bench.errors import UserError
from quantarena.bench.files import (
    draft_of,
    finish_replacing,
    plain_errors,
    put_in_place,
    utc_now,
    write_atomic,
)
from quantarena.bench.machine import versions
from quantarena.bench.schema import SCHEMA_VERSION, Row, Status
from quantarena.bench.share.examine import Holding, Listing, read_rows
from quantarena.bench.share.layout import (
    MANIFEST,
    README,
    SAMPLE_RULE,
    is_plain_file,
    limit,
    sampled,
)
from quantarena.bench.share.manifest import (
    FORMAT,
    VERSION,
    FileEntry,
    Manifest,
    is_name,
    write_manifest,
)
from quantarena.bench.share.provenance import FILE as MERGED
from quantarena.methods.builtin import FP


@dataclass(frozen=True, slots=True)
class Submitted:
    """What was written.

    Attributes:
        folder: the submission.
        rows: number of rows.
        images: number of images in it.
        bytes: of all files.
        manifest: its manifest.
    """

    folder: Path
    rows: int
    images: int
    bytes: int
    manifest: Manifest


def submit(results: Path, folder: Path, *, name: str, share: float) -> Submitted:
    """Write a submission of a results folder.

    Args:
        results: a folder with ``rows``.
        folder: to be made; it must not exist, or be an earlier submission or empty.
        name: of the sender or the machine.
        share: share of each row's images that goes along; one image at least does.

    Raises:
        UserError: a row is damaged, there is none, or the folder cannot be written.
    """
    if not is_name(name):
        raise UserError(f"--as {name}: take up to 64 letters, digits, dots, dashes, underscores")
    if (results / MERGED).exists():
        raise UserError(f"{results} joins results of several machines: submit these one by one")
    pairs, problems = read_rows(results)
    if problems:
        raise UserError(f"{results / problems[0].where} is no intact row: {problems[0].what}")
    if not pairs:
        raise UserError(f"{results} has no rows: start with quantarena run")
    finish_replacing(folder)
    require_replaceable(folder, MANIFEST)
    holding = Holding(results, "results")
    rows = [row for row, _ in pairs]
    listings = {row.key: holding.listing(row.key) for row in rows if row.status is Status.OK}
    wanted = _wanted(rows, listings, share)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with plain_errors("write", folder), draft_of(folder) as work:
        files = _copied(results, work, _names(rows, listings, wanted))
        write_atomic(work / README, _readme(name, rows, share))
        files[README] = _entry(work / README)
        manifest = _manifest(name, rows, share, listings, files)
        write_manifest(work, manifest)
        if (size := (work / MANIFEST).stat().st_size) > (most := limit(MANIFEST) or 0):
            raise UserError(f"the manifest has {size} bytes, {most} are taken: submit fewer rows")
        put_in_place(work, folder)
    total = sum(entry.bytes for entry in files.values())
    images = sum(len(numbers) for numbers in wanted.values())
    return Submitted(folder, len(rows), images, total, manifest)


def require_replaceable(folder: Path, mark: str) -> None:
    """Refuse to replace a folder that holds anything else than what is to be written.

    Args:
        folder: the folder.
        mark: the file that an earlier one of the same kind has.

    Raises:
        UserError: it is something else.
    """
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise UserError(f"{folder} exists and is no folder: choose another -o")
    if any(folder.iterdir()) and not (folder / mark).is_file():
        raise UserError(f"{folder} holds something else (no {mark}): choose another -o")


def _wanted(rows: Iterable[Row], listings: dict[str, Listing], share: float) -> dict[str, set[int]]:
    """Numbers of the images of each row that go along, with those of full precision beside them."""
    known = list(rows)
    references = {row.cell.shared_key: row.key for row in known if row.cell.method == FP}
    wanted: dict[str, set[int]] = {}
    for row in known:
        listing = listings.get(row.key)
        if not listing:
            continue
        numbers = sampled(row.artefacts.get("images_sha256", row.key), len(listing), share)
        for key in {row.key, references.get(row.cell.shared_key, row.key)}:
            wanted.setdefault(key, set()).update(numbers)
    return wanted


def _names(
    rows: Iterable[Row], listings: dict[str, Listing], wanted: dict[str, set[int]]
) -> list[str]:
    names = []
    for row in rows:
        names.append(f"rows/{row.key}.json")
        if row.status is Status.OK and row.artefacts.get("scores"):
            names.append(f"scores/{row.key}.npz")
        pictures = (f"{number:04d}.png" for number in sorted(wanted.get(row.key, ())))
        names += [f"images/{row.key}/{p}" for p in pictures if p in listings.get(row.key, {})]
    return names


def _copied(results: Path, work: Path, names: Iterable[str]) -> dict[str, FileEntry]:
    files: dict[str, FileEntry] = {}
    for name in names:
        source, target = results / name, work / name
        if not is_plain_file(source):
            continue  # a row without its scores or images is self-reported
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target, follow_symlinks=False)
        files[name] = _entry(target)
    return files


def _entry(file: Path) -> FileEntry:
    return FileEntry(bytes_sha256(file), file.stat().st_size)


def _manifest(
    name: str,
    rows: list[Row],
    share: float,
    listings: dict[str, Listing],
    files: dict[str, FileEntry],
) -> Manifest:
    machines = {str(row.machine): row.machine for row in rows if row.machine}
    codes = {
        row.cell.method: str(row.method["code_sha256"])
        for row in rows
        if row.method.get("code_sha256")
    }
    return Manifest(
        format=FORMAT,
        version=VERSION,
        name=name,
        created=utc_now(),
        row_schema=SCHEMA_VERSION,
        package=versions().get("quantarena", "unknown"),
        commits=tuple(sorted({text for row in rows if (text := _commit(row.machine))})),
        machines=tuple(machines.values()),
        closures=dict(sorted(codes.items())),
        share=share,
        rule=SAMPLE_RULE,
        images={key: dict(listing) for key, listing in listings.items()},
        files=dict(sorted(files.items())),
    )


def _commit(machine: dict[str, Any]) -> str:
    git = machine.get("git")
    if not isinstance(git, dict) or not git.get("commit"):
        return ""
    return f"{git['commit']}{'+' if git.get('dirty') else ''}"


def _readme(name: str, rows: list[Row], share: float) -> str:
    budgets = {dataclasses.astuple(row.cell.budget) for row in rows}
    return (
        f"# Results of {name}\n\n{len(rows)} rows of quantarena, {len(budgets)} budget(s), "
        f"{100 * share:g} % of the images. `quantarena verify FOLDER` checks them, "
        "`quantarena merge RESULTS FOLDER -o OUT` joins them to others.\n"
    )
