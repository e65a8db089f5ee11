"""Where a row's images and scores lie, and whether what lies there is the row's. No torch."""

import contextlib
import shutil
from pathlib import Path

from quantarena.bench.content import bytes_sha256, listing_sha256
from quantarena.bench.schema import Row


def places(row: Row) -> dict[str, str]:
    """Where a row's files are, each with a mark of what is in them.

    A row that others wrote names no other places than its own.
    """
    own = {"images": f"images/{row.key}", "scores": f"scores/{row.key}.npz"}
    files = {name: place for name, place in own.items() if row.artefacts.get(name) == place}
    unhashed = f"attempt {row.attempt} of {row.finished}"  # rows of earlier versions
    return {
        place: f"{name} {row.artefacts.get(f'{name}_sha256', unhashed)}"
        for name, place in files.items()
    }


def stated_sha256(row: Row, place: str) -> str | None:
    """The hash that a row states of one of its places; None for rows of earlier versions."""
    return row.artefacts.get(f"{place.partition('/')[0]}_sha256")


def artefact_sha256(path: Path) -> str:
    """The hash that a row would state of a folder of images, or of a file of scores.

    Other files than images in a folder do not count, as in ``bench/share``.

    Raises:
        OSError: a file cannot be read.
    """
    if not path.is_dir():
        return bytes_sha256(path)
    files = (file for file in path.glob("[0-9]*.png") if file.is_file() and not file.is_symlink())
    return listing_sha256({file.name: bytes_sha256(file) for file in files})


def forget_artefact(path: Path) -> None:
    """Delete a folder of images or a file of scores, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
