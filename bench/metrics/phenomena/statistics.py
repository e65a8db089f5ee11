"""The statistics behind the table of phenomena, each on plain tensors.

Each sees one phenomenon and not the others: a channel that is 100 times larger moves the ratio of
channels, and neither the one of sampler calls nor the one of halves, which take the median channel.
"""

import math

import torch
from torch import Tensor


def kurtosis(weight: Tensor) -> Tensor:
    """``E[(w - mean)^4] / E[(w - mean)^2]^2`` of each output channel; 3 for a normal distribution.

    Args:
        weight: (O, K, ...).

    Returns:
        (O,), without channels whose weights are all the same.
    """
    rows = weight.detach().flatten(1).double()
    centred = rows - rows.mean(1, keepdim=True)
    spread = centred.square().mean(1)
    alive = spread > 0
    return (centred.pow(4).mean(1)[alive] / spread[alive].square()).float()


def range_by_call(peaks: Tensor) -> float:
    """How much the range of the median channel changes over the sampler calls: largest / smallest.

    Args:
        peaks: largest absolute value of each channel at each call, (S, C).

    Returns:
        1 where nothing changes; NaN where no channel is alive at all calls.
    """
    alive = (peaks > 0).all(0)
    ratios = peaks[:, alive].amax(0) / peaks[:, alive].amin(0)
    return float(ratios.median()) if len(ratios) else math.nan


def deep_over_skip(peaks: Tensor, parts: tuple[int, ...]) -> float:
    """The median channel's peak in the first part of a concatenation, over that in the others.

    Args:
        peaks: largest absolute value of each channel, (C,).
        parts: channels of each part; they sum to C.
    """
    deep, skip = peaks[: parts[0]].median(), peaks[parts[0] :].median()
    return float(deep / skip) if skip > 0 else math.nan


def largest_over_median(peaks: Tensor) -> float:
    """The largest of some peaks over their median; NaN where most are zero."""
    middle = peaks.median()
    return float(peaks.max() / middle) if middle > 0 else math.nan


def first_key_share(query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None) -> float:
    """The mean share of attention that the first key gets, times the keys that can be seen.

    Args:
        query: (..., L, D).
        key: (..., K, D).
        mask: as in ``scaled_dot_product_attention``: added to the scores, or true where a key is
            seen.
        scale: factor of the scores; None for one over the square root of D.

    Returns:
        1 where attention is uniform.
    """
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    seen = torch.ones_like(scores)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        top = scores.amax(-1, keepdim=True)
        seen = (scores > top - 1e4).to(scores.dtype)
    return float((scores.softmax(-1)[..., 0] * seen.sum(-1)).mean())
