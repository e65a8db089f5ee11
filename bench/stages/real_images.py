"""The real images of a workload, and their features: what quality is measured against."""

import logging

from torch import Tensor

from quantarena.bench.cache import StageCache
from quantarena.bench.errors import UserError
from quantarena.bench.metrics.image_folder import load_folder
from quantarena.bench.metrics.quality.features import Features
from quantarena.bench.metrics.quality.features_file import reference_features
from quantarena.bench.stages.workspace import Workspace
from quantarena.bench.workloads.emoji64 import heldout_images

_LOG = logging.getLogger(__name__)
_EMOJI = "emoji64/heldout"


def real_features(workspace: Workspace, cache: StageCache) -> Features | None:
    """Features of the workload's real images, or None where it has none.

    Raises:
        UserError: the reference names nothing that can be read.
    """
    name = workspace.info.reference
    if not name:
        return None
    if name == _EMOJI:
        return reference_features(real_images(workspace), cache.root, name="emoji64-heldout")
    path = workspace.info.reference_path
    source = real_images(workspace) if path.is_dir() else path
    return reference_features(source, cache.root, name=path.name)


def real_images(workspace: Workspace) -> Tensor:
    """The workload's real images, uint8 (N, 3, S, S).

    Raises:
        UserError: there are none, or the pictures cannot be read, or only their features are here.
    """
    if workspace.info.reference == _EMOJI:
        return heldout_images(workspace.info.resolution)
    path = workspace.info.reference_path
    if not path.is_dir():
        raise UserError(
            f"{path.name} holds features, not images: give a folder with --set reference=FOLDER"
        )
    pictures = load_folder(path, lossy=True)
    for line in pictures.warnings:
        _LOG.warning("warning: real images in %s", line)
    return pictures.images
