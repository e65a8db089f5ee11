"""Computes features of CIFAR-10 test images: a reference set without the images themselves.

The licence of the images is unknown, so only their features are part of the package.

    python -m quantarena.bench.training.tasks.cifar_features cifar10_jpeg.zip
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from pathlib import Path

import torch

from quantarena.bench.metrics.quality.features import features_of
from quantarena.bench.metrics.quality.features_file import save_features
from quantarena.bench.training.tasks.cifar import cifar_images

__all__ = ["data_dir", "write_features"]

log = logging.getLogger(__name__)

COUNT = 1000
SEED = 2025
FILE = "cifar10-test-effnet-lite0.safetensors"


def data_dir() -> Path:
    """Returns the folder of the committed features."""
    return Path(__file__).resolve().parents[2] / "workloads" / "data" / "cifar10"


def write_features(source: Path, out: Path) -> Path:
    """Writes the features of a seeded choice of test images, and a manifest with their sha256.

    Args:
        source: CIFAR-10; see `cifar_images`.
        out: Folder of the file.

    Returns:
        The file's path.
    """
    images = cifar_images(source, train=False)
    picks = torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED))[:COUNT]
    path = out / FILE
    save_features(features_of(images[picks], "cifar10-test", half=True), path)
    entry = {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        "images": COUNT,
        "seed": SEED,
        "made_by": "python -m quantarena.bench.training.tasks.cifar_features",
        "content": "EfficientNet-lite0 features (1280-d, fp16) of CIFAR-10 test images; no images",
    }
    text = json.dumps({"files": {FILE: entry}}, indent=1)
    (out / "manifest.json").write_text(text + "\n", encoding="utf-8")
    return path


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("source", type=Path, help="zip of JPEGs or torchvision folder")
    parser.add_argument("--out", type=Path, default=data_dir())
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not args.source.exists():
        parser.error(f"no CIFAR-10 at {args.source}")
    log.info("%s", write_features(args.source, args.out))


if __name__ == "__main__":
    main()
