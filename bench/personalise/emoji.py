"""The subjects of the board `personalisation`: emoji that emoji-t2i has never seen.

Each is a drawing that was held out of the model's training, with its colour channels rotated, so
that the model knows neither the drawing nor an object of these colours. Four views are learned
from, and pictures are compared with four others. The tokens are in the vocabulary as the ends
of words; no caption has them as words.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from quantarena.bench.errors import UnknownName, did_you_mean
from quantarena.bench.personalise.subject import Subject
from quantarena.bench.training.tasks.images import jitter
from quantarena.bench.workloads import emoji64

VIEWS = 4
"""Views to learn from, and as many to compare with."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A held-out drawing and the word that will stand for it."""

    name: str
    style: str
    token: str

    @property
    def prompt(self) -> str:
        """The caption of the drawing, with the token before the name of the object."""
        return f"a {self.token} {self.name}, {emoji64.STYLES[self.style]}"

    @property
    def caption(self) -> str:
        """The caption without the token, which scorers of text know."""
        return emoji64.caption_of(self.name, self.style)


CASES: dict[str, tuple[Drawing, ...]] = {
    "teapot": (Drawing("teapot", "noto", "zor"),),
    "automobile": (Drawing("automobile", "fluent", "zor"),),
    "owl": (Drawing("owl", "fluent", "zor"),),
    "cat and tulip": (Drawing("cat", "noto", "zor"), Drawing("tulip", "noto", "dar")),
    "tractor": (Drawing("tractor", "fluent", "zor"),),
}
"""Three single subjects and a pair; the last one, on which rates were chosen, is on no board."""
BOARD = ("teapot", "automobile", "owl", "cat and tulip")


def case(name: str) -> tuple[Drawing, ...]:
    """The drawings of a case.

    Raises:
        UnknownName: there is none of that name.
    """
    if name not in CASES:
        raise UnknownName(f"unknown subject {name!r}: {did_you_mean(name, tuple(CASES))}")
    return CASES[name]


def views(drawing: Drawing, side: int) -> tuple[Subject, Subject]:
    """The views to learn from, and those to compare with."""
    rows = [
        row
        for row in emoji64.records("heldout")
        if (row.name, row.style) == (drawing.name, drawing.style)
    ]
    pixels = torch.from_numpy(emoji64.load_images(rows, side)).permute(0, 3, 1, 2)
    turned = pixels[:, [2, 0, 1]].float() / 255
    seed = int.from_bytes(hashlib.sha256(drawing.name.encode()).digest()[:4], "big")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        moved = jitter(turned.expand(2 * VIEWS, -1, -1, -1)).clamp(0, 1)
    images: Tensor = (moved * 255).round().to(torch.uint8)
    learned, held = images[:VIEWS], images[VIEWS:]
    return (
        Subject(drawing.token, drawing.prompt, learned),
        Subject(drawing.token, drawing.prompt, held),
    )
