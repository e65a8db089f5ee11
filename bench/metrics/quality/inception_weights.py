"""Finding the weights of the Inception networks on this machine.

No package carries these weights, and nothing is downloaded. They are looked for where
torch-fidelity and clean-fid keep their downloads, or in a folder that the environment names.
"""

import os
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from quantarena.bench.metrics.weights import sha256_of

VARIABLE = "QUANTARENA_INCEPTION"
FIDELITY_FILE = "weights-inception-2015-12-05-6726825d.pth"
FIDELITY_SHA256 = "6726825d"
"""The first digits of its sha256, from its name. They are checked because the file is unpickled."""
CLEAN_FILE = "inception-2015-12-05.pt"


@dataclass(frozen=True, slots=True)
class Tool:
    """A library with the weights of its network.

    Attributes:
        name: ``torchmetrics`` or ``clean-fid``.
        file: the weight file.
        sha256: hash of that file.
        version: versions of the library and of the package of its network.
    """

    name: str
    file: Path
    sha256: str
    version: str


@lru_cache(maxsize=4)
def torchmetrics_tool(given: str = "") -> Tool | str:
    """Torchmetrics with torch-fidelity's network, or one line on what is missing.

    Args:
        given: folder to look in first.
    """
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    path = _find(FIDELITY_FILE, given, cache)
    if path is None:
        return f"no weights here: put {FIDELITY_FILE} in {cache}, or set {VARIABLE}=FOLDER"
    if find_spec("torch_fidelity") is None:
        return "torch-fidelity is not installed: pip install 'quantarena[metrics]'"
    found = sha256_of(path)
    if not found.startswith(FIDELITY_SHA256):
        return f"{path} is damaged: its sha256 does not start with {FIDELITY_SHA256}"
    what = f"torchmetrics {version('torchmetrics')}, torch-fidelity {version('torch-fidelity')}"
    return Tool("torchmetrics", path, found, what)


@lru_cache(maxsize=4)
def clean_fid_tool(given: str = "") -> Tool | str:
    """clean-fid with its own network, or one line on what is missing.

    Args:
        given: folder to look in first.
    """
    path = _find(CLEAN_FILE, given, Path("/tmp"))
    if path is None:
        return f"no weights here: put {CLEAN_FILE} in /tmp, or set {VARIABLE}=FOLDER"
    if find_spec("cleanfid") is None:
        return "clean-fid is not installed: pip install 'quantarena[metrics]'"
    return Tool("clean-fid", path, sha256_of(path), f"clean-fid {version('clean-fid')}")


def given_folder() -> str:
    """The folder that the environment names; empty if it names none."""
    return os.environ.get(VARIABLE, "")


def _find(name: str, given: str, cache: Path) -> Path | None:
    places = ([Path(given).expanduser()] if given else []) + [cache]
    return next((folder / name for folder in places if (folder / name).is_file()), None)
