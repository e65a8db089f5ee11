"""The last latents of a sampler: recording them, and their mean squared difference."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantarena.bench.metrics.bootstrap import Array

KEPT_LATENTS = 256
"""Number of images whose last latents are kept."""


def latent_mse(reference: Tensor, test: Tensor) -> Array:
    """Mean squared difference of the samplers' last latents, image by image; lower is better.

    Args:
        reference: full precision's, (N, C, ...).
        test: the other network's from the same noise.

    Returns:
        (N,) float64.

    Raises:
        ValueError: other shapes, or latents that are not finite.
    """
    if reference.shape != test.shape:
        raise ValueError(f"latents differ in shape: {reference.shape} and {test.shape}")
    found = (test.double() - reference.double()).pow(2).flatten(1).mean(1)
    if not bool(found.isfinite().all()):
        raise ValueError("latents are not finite")
    return np.asarray(found.numpy())


class LastLatents:
    """The last latents of each run of a sampler; ``watching`` fills it."""

    def __init__(self, images: int, batch: int) -> None:
        self._images, self._batch = images, batch
        self._done: list[Tensor] = []
        self._last: Tensor | None = None

    def run_ends(self) -> None:
        """Keep what the sampler returned last: a run is over.

        Some pipelines step both guidance halves; the first half is kept.
        """
        expected = min(self._batch, self._images - self._count)
        last, self._last = self._last, None
        if last is None or self._count >= KEPT_LATENTS or expected < 1:
            return
        if len(last) % expected == 0:
            self._done.append(last[:expected].detach().float().cpu().clone())

    @property
    def _count(self) -> int:
        return sum(map(len, self._done))

    def step_ends(self, output: Any) -> None:
        """Note the output of one step of the sampler."""
        found = getattr(output, "prev_sample", None)
        if found is None and isinstance(output, tuple):
            found = output[0]
        self._last = found if isinstance(found, Tensor) else None

    @property
    def tensor(self) -> Tensor | None:
        """Last latents of the first images, at most 256, (N, C, ...); None if some are missing."""
        wanted = min(self._images, KEPT_LATENTS)
        return torch.cat(self._done)[:wanted] if self._count >= wanted else None


@contextmanager
def watching(scheduler: Any, images: int, batch: int) -> Iterator[LastLatents]:
    """Record what a sampler returns at the end of each run inside the block.

    Args:
        scheduler: a scheduler of diffusers. Nothing is recorded if it lacks ``set_timesteps`` or
            ``step``.
        images: number of images drawn inside the block.
        batch: images per run; the last run may have fewer.
    """
    latents = LastLatents(images, batch)
    if not (hasattr(scheduler, "set_timesteps") and hasattr(scheduler, "step")):
        yield latents
        return
    undo = [
        _after(scheduler, "set_timesteps", lambda _: latents.run_ends()),
        _after(scheduler, "step", latents.step_ends),
    ]
    try:
        yield latents
    finally:
        for function in undo:
            function()
        latents.run_ends()


def _after(scheduler: Any, name: str, then: Callable[[Any], None]) -> Callable[[], None]:
    """Call ``then`` with each result of an object's method; returns a function that undoes it."""
    inner, before = getattr(scheduler, name), vars(scheduler).get(name)

    # A bound method with the same signature, which pipelines inspect to see what step() takes.
    @functools.wraps(getattr(type(scheduler), name))
    def follow(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = inner(*args, **kwargs)
        then(output)
        return output

    setattr(scheduler, name, MethodType(follow, scheduler))

    def undo() -> None:
        if before is None:
            delattr(scheduler, name)
        else:
            setattr(scheduler, name, before)

    return undo
