"""How the rows of recorded calls lie: which hold guidance halves, and which need padding."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

from torch import Tensor

Shapes = Mapping[str, Sequence[tuple[int, ...]]]
"""Shapes of each input at every call."""


def half_places(samples: Sequence[int], halves: int) -> list[tuple[int, int, int]]:
    """Where the rows of each guidance half lie in the network calls of one sampler call.

    Most pipelines put all halves into one call. Some call the network once for each half, always
    with the same sample.

    Args:
        samples: number of each call's sample; equal samples have equal numbers.
        halves: guidance halves of the images.

    Returns:
        (call, piece, pieces) in the order of the rows: piece ``piece`` of ``pieces`` equal ones of
        that call. The first halves of all images come first.
    """
    runs = [list(run) for _, run in groupby(range(len(samples)), key=lambda call: samples[call])]
    calls = len(runs[0])
    if any(len(run) != calls for run in runs) or halves % calls:
        runs, calls = [[call] for call in range(len(samples))], 1
    pieces = halves // calls
    return [(run[half // pieces], half % pieces, pieces) for half in range(halves) for run in runs]


def padded_lengths(shapes: Shapes, is_mask: Callable[[str], bool]) -> dict[str, int]:
    """The inputs that batches give in several lengths, and the length to pad each to.

    A tokenizer that pads to the longest prompt of a batch does that. Where a mask of the same
    lengths says which places count, zeros at the end change nothing but the shape.

    Args:
        shapes: of the inputs that have a row for each image.
        is_mask: whether an input holds nothing but 0 and 1.
    """
    lengths = {
        name: tuple(shape[1] for shape in calls)
        for name, calls in shapes.items()
        if len({shape[1:] for shape in calls}) > 1
        and all(len(shape) > 1 for shape in calls)
        and len({shape[2:] for shape in calls}) == 1
    }
    masked = {
        each
        for name, each in lengths.items()
        if len(shapes[name][0]) == 2 and list(lengths.values()).count(each) > 1 and is_mask(name)
    }
    return {name: max(each) for name, each in lengths.items() if each in masked}


def is_mask(values: Sequence[Tensor]) -> bool:
    """Whether tensors hold nothing but 0 and 1."""
    return all(bool(((value == 0) | (value == 1)).all()) for value in values)
