"""Text alignment without a network: is a picture what its caption says, of the known ones.

Image features (EfficientNet-lite0) are taken by a linear map to the space of sentence embeddings
(MiniLM), where the captions of emoji64 lie. It was fitted on emoji drawings: it knows those
captions and no others. It is no CLIPScore. ``derive_alignment`` says how it was made.
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
    """The map and the captions it knows.

    Attributes:
        mean: of the image features, (D,).
        std: their deviation, (D,).
        weight: standardised features to centred embeddings, (D, E).
        centre: mean embedding, (E,).
        embeddings: of the captions, (C, E).
        captions: C texts.
        sha256: of the file.
    """

    mean: Tensor
    std: Tensor
    weight: Tensor
    centre: Tensor
    embeddings: Tensor
    captions: tuple[str, ...]
    sha256: str

    def similarity(self, features: Tensor) -> Tensor:
        """Cosine of each image with each caption, (N, C), both centred.

        Args:
            features: EfficientNet-lite0's, (N, D).
        """
        image = ((features.float() - self.mean) / self.std) @ self.weight
        text = self.embeddings - self.centre
        return functional.normalize(image, dim=1) @ functional.normalize(text, dim=1).T


@lru_cache(maxsize=1)
def scorer(folder: Path = ASSETS) -> Scorer:
    """The committed scorer.

    Raises:
        BrokenWeights: the file or its manifest is missing, cut short or changed.
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
    """How well images show their captions.

    Args:
        features: EfficientNet-lite0's, (N, D).
        prompts: N captions that the scorer knows.
        scorer: the map.

    Returns:
        Metric to (N,): the cosine with the own caption, and whether it is nearer than all of 99
        others, drawn for each caption once and for all (chance: 0.01).

    Raises:
        ValueError: a caption that the scorer does not know, named.
    """
    known = {text: number for number, text in enumerate(scorer.captions)}
    for text in prompts:
        if text not in known:
            raise ValueError(
                f"prompt {_short(text)!r} is not among the {len(known):,} captions of emoji64 that "
                "this scorer knows"
            )
    cosines = scorer.similarity(features)
    own = torch.tensor([known[text] for text in prompts])
    nearest = cosines[torch.arange(len(own)), own]
    others = torch.stack([_distractors(text, known[text], len(known)) for text in prompts])
    best = cosines.gather(1, others).max(1).values
    return {
        ALIGNMENT: np.asarray(nearest.double().numpy()),
        R_PRECISION: np.asarray((nearest > best).double().numpy()),
    }


def retrieval(scorer: Scorer, features: Tensor, captions: Sequence[str]) -> dict[str, float]:
    """How often the own caption is found among all that the scorer knows.

    Returns:
        ``recall@1``, ``recall@5`` and ``recall@10``, and R-precision against 99 others.
    """
    known = {text: number for number, text in enumerate(scorer.captions)}
    cosines = scorer.similarity(features)
    own = torch.tensor([known[text] for text in captions])
    mine = cosines[torch.arange(len(own)), own]
    rank = (cosines > mine[:, None]).sum(1)
    found = {f"recall@{k}": float((rank < k).double().mean()) for k in (1, 5, 10)}
    found["r-precision-99"] = float(alignment(features, captions, scorer)[R_PRECISION].mean())
    return found


def _distractors(text: str, own: int, count: int) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
    order = torch.randperm(count - 1, generator=torch.Generator().manual_seed(seed))
    drawn = order[:DISTRACTORS]
    return drawn + (drawn >= own)  # every caption but the own one


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
