"""Lets a network that takes lists, one tensor for each image, be recorded and called by tensors.

Some networks (that of Z-Image is one) take their noisy images and texts as lists, give a list, and
call the timestep ``t``. Everything here works on tensors with one row for each image, so the class
of such a network is changed in place. Lists that a pipeline gives are stacked before any hook sees
the call, and what it gets back is a list again. Names of modules and weights stay as they were.
"""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.bench.errors import BrokenModel

TIMESTEP = "t"
"""What such a network calls its timestep."""
LENGTHS = "row_masks"
"""The keyword of the masks that tell which places of a stacked list are filled."""


def takes_lists(network: Any) -> bool:
    """Whether a network, or a class of them, calls its timestep ``t``; it needs ``stack_rows``."""
    names = inspect.signature(network.forward).parameters
    return TIMESTEP in names and "timestep" not in names


def stack_rows(network: nn.Module) -> None:
    """Change the class of a network that takes lists, so that its ``forward`` takes tensors.

    Calls with lists work as before; other networks are left alone.
    """
    if takes_lists(network):
        base: Any = type(network)
        network.__class__ = stacked_class(base)


@functools.cache
def stacked_class(base: Any) -> type[nn.Module]:
    """A subclass of a network's class whose calls speak lists, and whose ``forward`` tensors."""
    names = tuple(inspect.signature(base.forward).parameters)[1:]  # without self

    class Stacking(base):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            if args and isinstance(args[0], Tensor):
                return super().__call__(*args, **kwargs)
            given = dict(zip(names, args, strict=False)) | kwargs
            sample, timestep = given.pop(names[0]), given.pop(TIMESTEP)
            masks: dict[str, Tensor] = {}
            for name, value in given.items():
                if _is_rows(value):
                    given[name], masks[name] = _padded(value)
            output = super().__call__(
                _stacked(base.__name__, sample), timestep=timestep, **{LENGTHS: masks}, **given
            )
            return _with_sample(output, lambda rows: list(rows.unbind(0)))

        def forward(
            self,
            sample: Tensor,
            timestep: Tensor,
            row_masks: Mapping[str, Tensor] | None = None,
            **given: Any,
        ) -> Any:
            for name, mask in (row_masks or {}).items():
                rows = zip(given[name], mask, strict=True)
                given[name] = [row[filled] for row, filled in rows]
            given |= {names[0]: list(sample.unbind(0)), TIMESTEP: timestep}
            return _with_sample(super().forward(**given), torch.stack)

        def __reduce_ex__(self, protocol: Any) -> Any:
            return _blank, (base,), *super().__reduce_ex__(protocol)[2:]

    # messages, configurations and checkpoints name the class that diffusers has
    Stacking.__name__, Stacking.__qualname__ = base.__name__, base.__qualname__
    Stacking.__module__ = base.__module__
    return Stacking


def _blank(base: Any) -> nn.Module:
    """An empty network of the changed class, whose state is put in by ``pickle`` or ``copy``."""
    kind = stacked_class(base)
    made: nn.Module = kind.__new__(kind)
    return made


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, Tensor) for v in value)


def _stacked(name: str, sample: Any) -> Tensor:
    if not _is_rows(sample) or len({tuple(row.shape) for row in sample}) > 1:
        raise BrokenModel(f"{name} was not given one list of images of one size: one is needed")
    return torch.stack(sample)


def _padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of several lengths in one tensor, and a mask (N, L) of the places that are filled."""
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True), mask.to(rows[0].device)


def _with_sample(output: Any, change: Any) -> Any:
    """A network's output with another sample: the first of a tuple, or the attribute."""
    if isinstance(output, tuple):
        return (change(output[0]), *output[1:])
    output.sample = change(output.sample)
    return output
