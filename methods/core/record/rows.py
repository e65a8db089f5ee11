"""How many rows a module is given, and returns, for each calibration point.

The first axis of an input need not be the batch: a learned table has none, tokens may come first, a
batch may be flattened or repeated. The length of an axis alone does not tell, since a table of
eight rows fits eight points. So the network runs on two batches, and an axis counts as rows where
its length grows with the number of points.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.nested import leaves
from quantarena.methods.core.record.points import CalibrationSet

_FEW, _MANY = 2, 4
"""Points of the two runs; even, for networks that take their batch apart into guidance halves."""

_Shapes = tuple[dict[str, tuple[int, ...]], tuple[int, ...]]
"""Shapes of the tensors that one call of a module is given, by path, and of what it returns."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one module for each point; 0 says that the first axis does not follow the points.

    Attributes:
        given: rows of each argument whose shape depends on the number of points.
        returned: rows of the output, the first item of a tuple.
        dims: axes of the output; the fewest of all calls.
    """

    given: tuple[int, ...]
    returned: int
    dims: int

    @property
    def follows(self) -> bool:
        """Whether the module is given rows of the points."""
        return any(self.given)

    @property
    def learns(self) -> bool:
        """Whether its calls can be cut into points, arguments and output alike.

        Either every argument that changes has one row for each point, or there is only one such
        argument and it has several.
        """
        if not self.given or not self.returned:
            return False
        ones = all(count == 1 for count in self.given)
        return self.returned == 1 if ones else len(self.given) == 1 and self.given[0] > 1


@torch.no_grad()
def module_rows(
    network: nn.Module,
    points: CalibrationSet,
    names: Collection[str],
    run: Callable[[CalibrationSet], Any],
) -> dict[str, Rows]:
    """Count the rows of the named modules.

    Args:
        network: the network that holds them.
        points: calibration points, of which a few are run twice.
        names: paths of the modules.
        run: runs the network on points, in floating point.

    Returns:
        Rows by path; modules that did not run are missing. A module that is called several times
        has what holds for all of its calls.
    """
    few, many = (
        _shapes(network, points.rows(torch.arange(count) % len(points)), names, run)
        for count in (_FEW, _MANY)
    )
    return {name: _rows(few[name], many[name]) for name in few if name in many}


def _shapes(
    network: nn.Module,
    points: CalibrationSet,
    names: Collection[str],
    run: Callable[[CalibrationSet], Any],
) -> dict[str, list[_Shapes]]:
    """Shapes of all calls of each module in one pass."""
    calls: dict[str, list[_Shapes]] = {}

    def note(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = {
            path: tuple(leaf.shape)
            for path, leaf in leaves({"args": args, "kwargs": kwargs}).items()
            if isinstance(leaf, Tensor)
        }
        first = output[0] if isinstance(output, tuple | list) and output else output
        shape = tuple(first.shape) if isinstance(first, Tensor) else ()
        calls.setdefault(name, []).append((given, shape))

    handles = [
        network.get_submodule(name).register_forward_hook(partial(note, name), with_kwargs=True)
        for name in names
    ]
    try:
        run(points)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _rows(few: list[_Shapes], many: list[_Shapes]) -> Rows:
    dims = min(len(shape) for _, shape in few)
    if len(few) != len(many):  # one call for each point: no call has them all
        return Rows((), 0, dims)
    found = [_of_call(*pair) for pair in zip(few, many, strict=True)]
    first = found[0]
    if all(rows.follows for rows in found):
        return Rows(first.given, first.returned if all(r.returned for r in found) else 0, dims)
    return Rows((), 0, dims)


def _of_call(few: _Shapes, many: _Shapes) -> Rows:
    changing = {
        path: (shape, many[0].get(path, ()))
        for path, shape in few[0].items()
        if shape != many[0].get(path, ())
    }
    given = tuple(_count(*pair) for pair in changing.values())
    return Rows(given, _count(few[1], many[1]), len(few[1]))


def _count(few: tuple[int, ...], many: tuple[int, ...]) -> int:
    """Rows for each point, 0 where the first axis does not grow with them, or another does."""
    if not few or few[1:] != many[1:] or few[0] % _FEW or many[0] * _FEW != few[0] * _MANY:
        return 0
    return few[0] // _FEW
