"""Metrics of videos: those of images averaged over frames, and how far changes between frames go.

The video is the unit: each metric has one value for each video, and intervals are over videos.
"""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from quantarena.bench.metrics.fidelity.fidelity import fidelity
from quantarena.bench.metrics.images import BadImages, check_pairs
from quantarena.bench.metrics.names import FRAME_CHANGES


def video_fidelity(
    fp: Tensor,
    test: Tensor,
    frames: int,
    *,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
    """The fidelity metrics of videos.

    Args:
        fp: full precision's frames, uint8 (N x F, 3, H, W), those of a video one after the other.
        test: frames of the same seeds, the same shape.
        frames: F; 0 for images, which have the metrics of images alone.
        device: where LPIPS runs.
        progress: called with the number of videos done.

    Returns:
        Name to (N,) float64.

    Raises:
        BadImages: the frames are not pairs, or no whole videos.
    """
    if not frames:
        return fidelity(fp, test, device=device, progress=progress)

    def done(count: int) -> None:
        if progress is not None:
            progress(count // frames)

    by_frame = fidelity(fp, test, device=device, progress=done)
    changes = {FRAME_CHANGES: frame_changes(fp, test, frames)}
    return {name: v.reshape(-1, frames).mean(1) for name, v in by_frame.items()} | changes


def frame_changes(fp: Tensor, test: Tensor, frames: int) -> np.ndarray:
    """How far the changes from frame to frame are from full precision's; lower is better.

    It is the mean over pixels, channels and pairs of consecutive frames of
    ``|(t_k+1 - t_k) - (f_k+1 - f_k)|`` in levels of 255. A shift of all frames alike gives 0, and
    flicker gives its size, whatever moves in the picture. No motion is estimated: what moves
    otherwise than at full precision counts as well.

    Args:
        fp: full precision's frames, uint8 (N x F, 3, H, W).
        test: the other network's.
        frames: F, at least 1; a video of one frame has no change, and gives 0.

    Returns:
        (N,) float64.

    Raises:
        BadImages: the frames are not pairs, or no whole videos.
    """
    check_pairs(fp, test)
    if len(fp) % frames:
        raise BadImages(f"{len(fp)} frames are no videos of {frames} frames")
    out = np.zeros(len(fp) // frames)
    for video in range(len(out)):  # one video at a time is in memory as numbers
        first = video * frames
        total = 0.0
        for k in range(first, first + frames - 1):
            change = test[k + 1].short() - test[k].short() - fp[k + 1].short() + fp[k].short()
            total += float(change.abs().double().mean())
        out[video] = total / max(1, frames - 1)
    return out
