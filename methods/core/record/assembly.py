"""Assembles recorded network calls to a trajectory: grouped by sampler call, rows by image."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quantarena.methods.core.clock import CallSchedule
from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.nested import Tree, leaves, map_leaves
from quantarena.methods.core.record.layout import half_places, is_mask, padded_lengths
from quantarena.methods.core.record.spill import Spool
from quantarena.methods.core.record.tensor_file import Column
from quantarena.methods.core.record.trajectory import describe


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor among the inputs of one network call.

    Attributes:
        number: its number in the spool.
        by_row: whether it has a row for each row of the sample.
    """

    number: int
    by_row: bool


@dataclass(slots=True)
class NetworkCall:
    """One recorded call of the network.

    Attributes:
        index: sampler call; None where it was not announced.
        rows: rows of the batch.
        timestep: model timestep, (1,).
        sample: number of the sample in the spool.
        inputs: further inputs, with ``StoredTensor`` in place of tensors.
        feature: number of its first rows' features in the spool; None where none are recorded.
    """

    index: int | None
    rows: int
    timestep: Tensor
    sample: int
    inputs: Tree
    feature: int | None = None


def by_sampler_call(
    calls: Sequence[NetworkCall], schedule: CallSchedule | None
) -> list[list[NetworkCall]]:
    """Group network calls by sampler call; one group has calls of several runs or batches.

    Without a schedule, runs are told apart by the period of the timesteps: a sampler may visit one
    timestep twice, so the whole sequence is compared.

    Raises:
        BrokenModel: there are no calls, or a run stopped before its last step.
    """
    if not calls:
        raise BrokenModel("the sampler never called the network: nothing was recorded")
    if schedule is None:
        times = [float(call.timestep) for call in calls]
        period = next(
            n
            for n in range(1, len(times) + 1)
            if len(times) % n == 0 and times == times[:n] * (len(times) // n)
        )
        return [list(calls[index::period]) for index in range(period)]
    groups: list[list[NetworkCall]] = [[] for _ in schedule.timesteps]
    for call in calls:
        assert call.index is not None
        groups[call.index].append(call)
    return groups


def assemble(
    steps: Sequence[Sequence[NetworkCall]], spool: Spool, halves: int, schedule: CallSchedule | None
) -> tuple[dict[str, Column], dict[str, str]]:
    """Assemble the tensors and the metadata of the trajectory's file.

    Args:
        steps: network calls by sampler call.
        spool: holds the tensors of these calls.
        halves: guidance halves of each batch, one after the other.
        schedule: the sampler's calls.

    Raises:
        BrokenModel: one sampler call has several timesteps, or runs differ in more than values.
    """
    places = half_places([call.sample for call in steps[0]], halves)
    _require_alike(steps, places, halves)
    numbers = [[call.sample for call in step] for step in steps]
    timestep = torch.cat([step[0].timestep for step in steps])
    columns = {
        "sample": _by_row("sample", numbers, spool, places),
        "timestep": Column(timestep.dtype, tuple(timestep.shape), [timestep]),
    }
    fixed, once = set(), set()
    inputs = [[leaves(call.inputs) for call in step] for step in steps]
    lengths = _lengths([given for step in inputs for given in step], spool)
    for path, leaf in inputs[0][0].items():
        everywhere = [[given[path] for given in step] for step in inputs]
        flat = [value for step in everywhere for value in step]
        if all(isinstance(value, StoredTensor) and value.by_row for value in flat):
            numbers = [[value.number for value in step] for step in everywhere]
            if all(step == numbers[0] for step in numbers):
                once.add(path)
                numbers = numbers[:1]
            column = _by_row(path, numbers, spool, places, lengths.get(path))
            shape = column.shape[1:] if path in once else column.shape
            columns[f"condition.{path}"] = Column(column.dtype, shape, column.pieces)
        else:
            _require_constant(path, flat)
            if isinstance(leaf, StoredTensor):
                dtype, shape = spool.kind(leaf.number)
                fixed.add(path)
                columns[f"condition.{path}"] = Column(dtype, shape, _pieces([leaf.number], spool))
    if steps[0][0].feature is not None:
        columns["features"] = _features(steps, spool)
    tree = map_leaves(
        lambda path, leaf: torch.empty(0) if isinstance(leaf, StoredTensor) else leaf,
        steps[0][0].inputs,
    )
    return columns, describe(tree, fixed, once, halves, schedule)


def _lengths(calls: Sequence[Mapping[str, Any]], spool: Spool) -> dict[str, int]:
    """The length to pad each input to whose batches have several, and come with a mask."""
    rows = {
        path: [leaf[path].number for leaf in calls]
        for path in calls[0]
        if all(isinstance(leaf[path], StoredTensor) and leaf[path].by_row for leaf in calls)
    }
    shapes = {path: [spool.kind(number)[1] for number in rows[path]] for path in rows}
    return padded_lengths(shapes, lambda path: is_mask([spool.get(n) for n in rows[path]]))


def _require_alike(
    steps: Sequence[Sequence[NetworkCall]], places: Sequence[tuple[int, int, int]], halves: int
) -> None:
    """Refuse runs that differ in batches, timesteps or kinds of inputs."""
    first = [call.rows for call in steps[0]]
    paths = list(leaves(steps[0][0].inputs)) if first else []
    if not places or any(first[call] % pieces for call, _, pieces in places):
        raise BrokenModel(f"batches of {first} rows are not made of {halves} guidance halves")
    for index, step in enumerate(steps):
        if [call.rows for call in step] != first:
            raise BrokenModel(
                f"sampler call {index} fed the network batches of {[c.rows for c in step]} rows, "
                f"call 0 of {first}: let every run of the sampler finish"
            )
        if any(float(call.timestep) != float(step[0].timestep) for call in step):
            times = sorted({float(call.timestep) for call in step})
            raise BrokenModel(f"sampler call {index} has several timesteps: {times}")
        if any(list(leaves(call.inputs)) != paths for call in step):
            raise BrokenModel(f"the network gets other inputs at sampler call {index} than at 0")


def _require_constant(path: str, values: Sequence[Any]) -> None:
    """Refuse tensors without rows and constants that differ between calls."""
    numbers = [v.number if isinstance(v, StoredTensor) else v for v in values]
    kinds = {type(v) for v in values}
    if len(kinds) > 1 or any(n != numbers[0] for n in numbers):
        raise BrokenModel(
            f"network input {path} changes from call to call and has no row for each image: "
            "points of several calls could not be run together"
        )


def _by_row(
    name: str,
    numbers: Sequence[Sequence[int]],
    spool: Spool,
    places: Sequence[tuple[int, int, int]],
    length: int | None = None,
) -> Column:
    """A column (S, N, ...) from the tensors of all calls, with guidance halves put together.

    Args:
        name: of the input, for messages.
        numbers: of the tensors of each sampler call's network calls.
        spool: holds them.
        places: where each half's rows lie, see ``half_places``.
        length: the second size of every tensor, if they are to be padded to one.
    """
    kinds = {
        (dtype, shape[1:] if length is None else (length, *shape[2:]))
        for step in numbers
        for dtype, shape in map(spool.kind, step)
    }
    if len(kinds) > 1:
        shapes = " and ".join(sorted(str(shape) for _, shape in kinds))
        raise BrokenModel(
            f"network input {name} has rows of shape {shapes}: pad it, so that all batches have one"
        )
    ((dtype, shape),) = kinds
    rows = sum(spool.kind(number)[1][0] for number in numbers[0])

    def pieces() -> Iterator[Tensor]:
        for step in numbers:
            for call, piece, count in places:
                value = spool.get(step[call])
                size = len(value) // count
                value = value[piece * size : (piece + 1) * size]
                if length is not None:
                    value = F.pad(value, (0, 0) * (value.dim() - 2) + (0, length - value.shape[1]))
                yield value

    return Column(dtype, (len(numbers), rows, *shape), pieces())


def _features(steps: Sequence[Sequence[NetworkCall]], spool: Spool) -> Column:
    """A column (S, n, C, ...) of the features of each call's first rows."""
    numbers = [[c.feature for c in step if c.feature is not None] for step in steps]
    rows = {sum(spool.kind(number)[1][0] for number in step) for step in numbers}
    if len(rows) > 1:
        raise BrokenModel("the module with the features did not run at every sampler call")
    dtype, shape = spool.kind(numbers[0][0])
    flat = [number for step in numbers for number in step]
    return Column(dtype, (len(steps), rows.pop(), *shape[1:]), _pieces(flat, spool))


def _pieces(numbers: Iterable[int], spool: Spool) -> Iterator[Tensor]:
    return (spool.get(number) for number in numbers)
