"""Layout of a layer whose input channels have groups with activation ranges of their own.

Its panels are those of any layer: groups follow each other without padding, so that the weights
take what their bits say. The kernels walk K group by group. A step of four channels (two of 16-bit
products) that two groups share is walked twice, each time with the codes of one group alone.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from quantarena.methods.core.kernels.layout import PANEL, UNIT, Chunks, prove_chunks

LANES = 4


def aligned_order(sizes: Sequence[int]) -> list[int]:
    """An order of groups in which few of them share a step of four channels.

    Groups whose sizes add up to a multiple of four stand together.

    Args:
        sizes: channels of each group.

    Returns:
        Indices of the groups.
    """
    left: dict[int, list[int]] = {rest: [] for rest in range(LANES)}
    for index, size in enumerate(sizes):
        left[size % LANES].append(index)
    order = left[0]
    for run in ((1, 3), (2, 2), (1, 1, 2), (3, 3, 2), (1, 1, 1, 1), (3, 3, 3, 3)):
        while all(len(left[rest]) >= run.count(rest) for rest in run):
            order += [left[rest].pop(0) for rest in run]
    return order + left[1] + left[2] + left[3]


def group_chunks(
    codes: Tensor, edges: Sequence[int], act_bits: int, wide_accumulators: bool
) -> Chunks:
    """Chooses the form of the panels, and where int16 accumulators are emptied within groups.

    Args:
        codes: the weight operands, see ``layout.operands``; ``(out, in)`` or ``(out, in, kh, kw)``.
        edges: first channel of each group, and the number of channels.
        act_bits: width of the activation codes.
        wide_accumulators: byte products accumulate in int32, see ``layout.plan_chunks``.

    Returns:
        The chunks of every panel and group, ``start`` of ``panels * groups + 1`` entries.
    """
    panels, groups = -(-codes.shape[0] // PANEL), list(pairwise(edges))
    if not wide_accumulators:
        proven = [prove_chunks(_blocks(codes, *group), (1 << act_bits) - 1) for group in groups]
        found = [chunks for chunks in proven if chunks is not None]
        if len(found) == len(groups):
            units = sum(_units(codes, *group, LANES) for group in groups)
            count = sum(len(chunk) for chunks in found for chunk in chunks)
            # as for a layer without groups; its end empties the accumulators of a group anyway
            if 2 * (count - panels * len(groups)) <= panels * max(units, 2):
                return _chunks([chunks[p] for p in range(panels) for chunks in found], False)
    pair = not wide_accumulators
    lengths = [[_units(codes, *group, 2 if pair else LANES)] for group in groups]
    return _chunks(lengths * panels, pair)


def _chunks(lengths: Sequence[Sequence[int]], pair: bool) -> Chunks:
    counts = torch.tensor([0, *map(len, lengths)], dtype=torch.int32)
    flat = torch.tensor([n for chunk in lengths for n in chunk], dtype=torch.int32)
    return Chunks(counts.cumsum(0, dtype=torch.int32), flat.to(torch.int16), pair)


def _steps(first: int, last: int, lanes: int) -> int:
    """Steps of a group at one kernel tap."""
    return -(-last // lanes) - first // lanes


def _units(codes: Tensor, first: int, last: int, lanes: int) -> int:
    """Units of K that a group takes, at all kernel taps."""
    taps = codes[0, 0].numel()
    return -(-_steps(first, last, lanes) * taps * lanes // UNIT)


def _blocks(codes: Tensor, first: int, last: int) -> Tensor:
    """The operands of a group in the order of the steps, ``(panels, 16, units, 16)``."""
    skip = first % LANES
    spare = _steps(first, last, LANES) * LANES - skip - (last - first)
    own = codes[:, first:last].flatten(2) if codes.dim() == 4 else codes[:, first:last, None]
    own = functional.pad(own, (0, 0, skip, spare)).transpose(1, 2).flatten(1)
    own = functional.pad(own, (0, -own.shape[1] % UNIT, 0, -own.shape[0] % PANEL))
    return own.reshape(-1, PANEL, own.shape[1] // UNIT, UNIT).contiguous()
