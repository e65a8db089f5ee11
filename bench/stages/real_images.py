"""The real images of a workload, and their features: what quality is measured against."""

import logging

from torch import Tensor

from quantarena.bench.cache import StageCache
from quantarena.bench.errors import UserError
from quantarena.bench.metrics.image_folder import load_folder
from quantarena.bench.metrics.quality.features import Features, images_sha256, set_label
from quantarena.bench.metrics.quality.features_file import load_features, reference_features
from quantarena.bench.stages.workspace import Workspace
from quantarena.bench.workloads.emoji64 import heldout_images
from quantarena.bench.workloads.registry import WorkloadInfo

_LOG = logging.getLogger(__name__)
_EMOJI, _EMOJI_NAME = "emoji64/heldout", "emoji64-heldout"


def real_features(workspace: Workspace, cache: StageCache) -> Features | None:
    """Features of the workload's real images, or None where it has none.

    Raises:
        UserError: the reference names nothing that can be read.
    """
    return read_reference(workspace, cache)[0]


def read_reference(
    workspace: Workspace, cache: StageCache
) -> tuple[Features | None, tuple[str, ...]]:
    """``real_features``, and one line for the row for each change made to the images on reading.

    Raises:
        UserError: as ``real_features``.
    """
    name = workspace.info.reference
    if not name:
        return None, ()
    path = workspace.info.reference_path
    if name != _EMOJI and not path.is_dir():
        return reference_features(path, cache.root, name=path.name), ()
    pictures, lines = _pictures(workspace)
    label = _EMOJI_NAME if name == _EMOJI else path.name
    return reference_features(pictures, cache.root, name=label), lines


def shipped_label(info: WorkloadInfo) -> str:
    """What measurements state of the real images of a workload of the zoo, without a network.

    Raises:
        UserError: the file of their features cannot be read.
    """
    if info.reference != _EMOJI:
        return load_features(info.reference_path).label
    images = heldout_images(info.resolution)
    return set_label(_EMOJI_NAME, images_sha256(images), len(images))


def real_images(workspace: Workspace) -> Tensor:
    """The workload's real images, uint8 (N, 3, S, S).

    Raises:
        UserError: there are none, or the pictures cannot be read, or only their features are here.
    """
    return _pictures(workspace)[0]


def _pictures(workspace: Workspace) -> tuple[Tensor, tuple[str, ...]]:
    """The real images, and what was changed in them."""
    if workspace.info.reference == _EMOJI:
        return heldout_images(workspace.info.resolution), ()
    path = workspace.info.reference_path
    if not path.is_dir():
        raise UserError(
            f"{path.name} holds features, not images: give a folder with --set reference=FOLDER"
        )
    pictures = load_folder(path, lossy=True)
    lines = tuple(f"real images in {line}" for line in pictures.warnings)
    for line in lines:
        _LOG.warning("warning: %s", line)
    return pictures.images, lines
