"""From single network calls to a trajectory: calls grouped by sampler step, rows by image."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quantarena.methods.core.clock import CallSchedule
from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.nested import Tree, leaves, map_leaves
from quantarena.methods.core.record.spill import Spool
from quantarena.methods.core.record.tensor_file import Column
from quantarena.methods.core.record.trajectory import describe


@dataclass(frozen=True, slots=True)
class Kept:
    """A tensor among the inputs of one call.

    Attributes:
        number: in the spool.
        by_row: whether it has a row for each row of the sample.
    """

    number: int
    by_row: bool


@dataclass(slots=True)
class Call:
    """One call of the network.

    Attributes:
        index: sampler call; None where nobody announced it.
        rows: of the batch.
        timestep: (1,).
        sample: number in the spool.
        inputs: further inputs, ``Kept`` in place of tensors.
        feature: number in the spool of its first rows' features, if any were kept.
    """

    index: int | None
    rows: int
    timestep: Tensor
    sample: int
    inputs: Tree
    feature: int | None = None


def by_step(calls: Sequence[Call], schedule: CallSchedule | None) -> list[list[Call]]:
    """Calls of the network by sampler call; those of one come from several runs or batches.

    Without a schedule, runs are told apart by the period of the timesteps: a sampler may visit one
    timestep twice, so the whole sequence is compared.

    Raises:
        BrokenModel: there are none, or a run stopped before its last step.
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
    steps: list[list[Call]] = [[] for _ in schedule.timesteps]
    for call in calls:
        assert call.index is not None
        steps[call.index].append(call)
    return steps


def assemble(
    steps: Sequence[Sequence[Call]], spool: Spool, halves: int, schedule: CallSchedule | None
) -> tuple[dict[str, Column], dict[str, str]]:
    """Tensors and metadata of the trajectory's file.

    Args:
        steps: network calls by sampler call.
        spool: what they were given.
        halves: guidance halves that each batch is made of, one after the other.
        schedule: of the sampler.

    Raises:
        BrokenModel: calls of one step have other timesteps, or runs differ in more than values.
    """
    _require_alike(steps, halves)
    numbers = [[call.sample for call in step] for step in steps]
    timestep = torch.cat([step[0].timestep for step in steps])
    columns = {
        "sample": _by_row("sample", numbers, spool, halves),
        "timestep": Column(timestep.dtype, tuple(timestep.shape), [timestep]),
    }
    fixed, once = set(), set()
    inputs = [[leaves(call.inputs) for call in step] for step in steps]
    for path, leaf in inputs[0][0].items():
        everywhere = [[given[path] for given in step] for step in inputs]
        flat = [value for step in everywhere for value in step]
        if all(isinstance(value, Kept) and value.by_row for value in flat):
            numbers = [[value.number for value in step] for step in everywhere]
            if all(step == numbers[0] for step in numbers):
                once.add(path)
                numbers = numbers[:1]
            column = _by_row(path, numbers, spool, halves)
            shape = column.shape[1:] if path in once else column.shape
            columns[f"condition.{path}"] = Column(column.dtype, shape, column.pieces)
        else:
            _require_constant(path, flat)
            if isinstance(leaf, Kept):
                dtype, shape = spool.kind(leaf.number)
                fixed.add(path)
                columns[f"condition.{path}"] = Column(dtype, shape, _pieces([leaf.number], spool))
    if steps[0][0].feature is not None:
        columns["features"] = _features(steps, spool)
    tree = map_leaves(
        lambda path, leaf: torch.empty(0) if isinstance(leaf, Kept) else leaf, steps[0][0].inputs
    )
    return columns, describe(tree, fixed, once, halves, schedule)


def _require_alike(steps: Sequence[Sequence[Call]], halves: int) -> None:
    first = [call.rows for call in steps[0]]
    paths = list(leaves(steps[0][0].inputs)) if first else []
    if halves < 1 or any(rows % halves for rows in first):
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
    """Tensors without rows, and constants, have to be the same at every call."""
    numbers = [v.number if isinstance(v, Kept) else v for v in values]
    kinds = {type(v) for v in values}
    if len(kinds) > 1 or any(n != numbers[0] for n in numbers):
        raise BrokenModel(
            f"network input {path} changes from call to call and has no row for each image: "
            "points of several calls could not be run together"
        )


def _by_row(name: str, numbers: Sequence[Sequence[int]], spool: Spool, halves: int) -> Column:
    """(S, N, ...) from one piece for each batch, halves put together."""
    kinds = {(dtype, shape[1:]) for step in numbers for dtype, shape in map(spool.kind, step)}
    if len(kinds) > 1:
        found = " and ".join(sorted(str(shape) for _, shape in kinds))
        raise BrokenModel(
            f"network input {name} has rows of shape {found}: pad it, so that all batches have one"
        )
    ((dtype, shape),) = kinds
    rows = sum(spool.kind(number)[1][0] for number in numbers[0])

    def pieces() -> Iterator[Tensor]:
        for step in numbers:
            for half in range(halves):
                for number in step:
                    value = spool.get(number)
                    size = len(value) // halves
                    yield value[half * size : (half + 1) * size]

    return Column(dtype, (len(numbers), rows, *shape), pieces())


def _features(steps: Sequence[Sequence[Call]], spool: Spool) -> Column:
    """(S, n, C, ...) of the first rows of each call."""
    numbers = [[c.feature for c in step if c.feature is not None] for step in steps]
    rows = {sum(spool.kind(number)[1][0] for number in step) for step in numbers}
    if len(rows) > 1:
        raise BrokenModel("the module with the features did not run at every sampler call")
    dtype, shape = spool.kind(numbers[0][0])
    flat = [number for step in numbers for number in step]
    return Column(dtype, (len(steps), rows.pop(), *shape[1:]), _pieces(flat, spool))


def _pieces(numbers: Iterable[int], spool: Spool) -> Iterator[Tensor]:
    return (spool.get(number) for number in numbers)
