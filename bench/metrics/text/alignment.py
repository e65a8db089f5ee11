"""Text alignment for the captions of emoji64, without a text encoder.

A linear map takes image features (EfficientNet-lite0) to the space of sentence embeddings (MiniLM),
in which the captions of emoji64 are stored. The map was fitted on emoji drawings and knows only
their captions. It is not a CLIPScore. ``metrics.derive.alignment`` made the committed file.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional

from quantarena.bench.metrics.bootstrap import Array
from quantarena.bench.metrics.names import ALIGNMENT, R_PRECISION
from quantarena.bench.metrics.weights import ASSETS, REMEDY, BrokenWeights, stated_sha256, verified

FILE_NAME = "alignment-effnet-lite0-minilm.safetensors"
SEPARATOR = "\n"
DISTRACTORS = 99
_TENSORS = ("mean", "std", "weight", "centre", "captions")


@dataclass(frozen=True, slots=True, eq=False)
class Scorer:
    """The linear map and the captions that it knows.

    Attributes:
        mean: mean of the image features, (D,).
        std: standard deviation of the image features, (D,).
        weight: map from standardised features to centred embeddings, (D, E).
        centre: mean embedding, (E,).
        embeddings: embeddings of the captions, (C, E).
        captions: the C captions.
        sha256: hash of the file.
    """

    mean: Tensor
    std: Tensor
    weight: Tensor
    centre: Tensor
    embeddings: Tensor
    captions: tuple[str, ...]
    sha256: str

    @property
    def label(self) -> str:
        """What measurements state that they compare with."""
        return f"{len(self.captions)} captions of emoji64"

    def similarity(self, features: Tensor) -> Tensor:
        """The cosine of each image's embedding with each caption's, (N, C), both centred.

        Args:
            features: EfficientNet-lite0 features, (N, D).
        """
        image = ((features.float() - self.mean) / self.std) @ self.weight
        text = self.embeddings - self.centre
        return functional.normalize(image, dim=1) @ functional.normalize(text, dim=1).T


@lru_cache(maxsize=1)
def scorer(folder: Path = ASSETS) -> Scorer:
    """Load the committed scorer.

    Raises:
        BrokenWeights: the file or its manifest is missing, truncated or changed.
    """
    sha256 = stated_sha256(FILE_NAME, folder)
    path = verified(folder / FILE_NAME, sha256, REMEDY)
    try:
        with safe_open(path, framework="pt") as file:
            captions = tuple(file.metadata()["captions"].split(SEPARATOR))
            mean, std, weight, centre, known = (file.get_tensor(name).float() for name in _TENSORS)
    except (SafetensorError, KeyError, TypeError) as error:
        raise BrokenWeights(f"{path} is no alignment scorer ({error}); {REMEDY}") from None
    return Scorer(mean, std, weight, centre, known, captions, sha256)


def alignment(features: Tensor, prompts: Sequence[str], scorer: Scorer) -> dict[str, Array]:
    """Measure how well images show their captions.

    Args:
        features: EfficientNet-lite0 features, (N, D).
        prompts: N captions that the scorer knows.
        scorer: the map and its captions.

    Returns:
        Metric to (N,): the cosine with the image's caption, and whether that caption is nearer than
        all of 99 others. The 99 are fixed for each caption; a random image has probability 0.01.

    Raises:
        ValueError: the scorer does not know a caption, which is named.
    """
    known = {text: number for number, text in enumerate(scorer.captions)}
    for text in prompts:
        if text not in known:
            raise ValueError(
                f"prompt {_short(text)!r} is not among the {len(known):,} captions of emoji64 that "
                "this scorer knows"
            )
    cosines = scorer.similarity(features)
    target = torch.tensor([known[text] for text in prompts])
    nearest = cosines[torch.arange(len(target)), target]
    others = torch.stack([_distractors(text, known[text], len(known)) for text in prompts])
    best = cosines.gather(1, others).max(1).values
    return {
        ALIGNMENT: np.asarray(nearest.double().numpy()),
        R_PRECISION: np.asarray((nearest > best).double().numpy()),
    }


def retrieval(scorer: Scorer, features: Tensor, captions: Sequence[str]) -> dict[str, float]:
    """How often an image's caption ranks first, or near the first, among all known captions.

    Returns:
        ``recall@1``, ``recall@5`` and ``recall@10``, and R-precision against 99 others.
    """
    known = {text: number for number, text in enumerate(scorer.captions)}
    cosines = scorer.similarity(features)
    target = torch.tensor([known[text] for text in captions])
    cosine = cosines[torch.arange(len(target)), target]
    rank = (cosines > cosine[:, None]).sum(1)
    shares = {f"recall@{k}": float((rank < k).double().mean()) for k in (1, 5, 10)}
    shares["r-precision-99"] = float(alignment(features, captions, scorer)[R_PRECISION].mean())
    return shares


def _distractors(text: str, target: int, count: int) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
    order = torch.randperm(count - 1, generator=torch.Generator().manual_seed(seed))
    drawn = order[:DISTRACTORS]
    return drawn + (drawn >= target)  # skips the caption itself


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
