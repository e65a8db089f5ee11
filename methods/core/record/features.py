"""Features inside the network at every sampler call, for step policies that look at them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.errors import BrokenModel, UserError, did_you_mean
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.core.trace.network import Graph, LayerInfo, Role


@dataclass(frozen=True, slots=True)
class FeatureTap:
    """Which features to keep.

    Attributes:
        module: path of the module, such as ``middle_module`` finds.
        rows: first rows of each sampler call to keep.
        output: keep what the module returns and not what it is given.
        channel: axis of the channels, which is moved to 1; None takes 1 of images (4 axes and
            more) and the last of tokens and vectors.
    """

    module: str
    rows: int = 8
    output: bool = False
    channel: int | None = None

    @contextmanager
    def watching(self, model: nn.Module, note: Callable[[Tensor], None]) -> Iterator[None]:
        """Hand every value of the module to ``note`` inside the block, (B, C, ...), not copied.

        Raises:
            UserError: the network has no such module.
            BrokenModel: the module is given, or returns, no tensor.
        """
        names = [name for name, _ in model.named_modules() if name]
        if self.module not in names:
            near = did_you_mean(self.module, names)
            raise UserError(f"no module {self.module!r} to take features of: {near}")

        def given(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            note(self._channels((*args, *kwargs.values())))

        def returned(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            values = tuple(output) if isinstance(output, tuple | list) else (output,)
            note(self._channels(values))

        module = model.get_submodule(self.module)
        handle = (
            module.register_forward_hook(returned)
            if self.output
            else module.register_forward_pre_hook(given, with_kwargs=True)
        )
        try:
            yield
        finally:
            handle.remove()

    def _channels(self, values: tuple[Any, ...]) -> Tensor:
        """The first tensor, channels at axis 1."""
        found = next((v for v in values if isinstance(v, Tensor) and v.dim() > 1), None)
        if found is None:
            raise BrokenModel(f"{self.module} has no tensor there to take features of")
        axis = self.channel
        if axis is None:
            axis = 1 if found.dim() > 3 else -1
        return found.detach().movedim(axis, 1)


def middle_module(graph: Graph) -> str:
    """The attention, or else the layer, in the middle of the network.

    EDA-DM looks at the attention of the U-Net's middle block. Without names: of the modules that
    own query, key or value layers, keep those at the lowest resolution (fewest positions of an
    image), and take the middle one in execution order, the earlier of two. In a U-Net that is the
    middle block; in a transformer, where all have one resolution, the middle of the stack. A
    network without attention gives its middle layer at the lowest resolution above one position.

    Args:
        graph: of the traced network.

    Returns:
        A module path.
    """
    order = sorted(graph.layers.values(), key=lambda layer: layer.order)
    owners: dict[str, LayerInfo] = {}
    for layer in order:
        if layer.role is Role.QKV:  # the first is the query: keys may be of a condition
            owners.setdefault(layer.name.rpartition(".")[0] or layer.name, layer)
    if not owners:
        owners = {layer.name: layer for layer in order if _positions(layer) > 1}
    if not owners:
        owners = {layer.name: layer for layer in order}
    lowest = min(_positions(layer) for layer in owners.values())
    names = [name for name, layer in owners.items() if _positions(layer) == lowest]
    return names[(len(names) - 1) // 2]


def _positions(layer: LayerInfo) -> int:
    """Places of an image that the layer computes at: pixels or tokens."""
    return layer.macs // max(1, layer.weights)


@torch.no_grad()
def features(model: nn.Module, trajectory: Trajectory, tap: FeatureTap) -> Tensor:
    """Features of recorded calls, by running their first rows through the network again.

    Args:
        model: the network, usually the full-precision one; it is run once a call.
        trajectory: what it was fed.
        tap: what to keep.

    Returns:
        (S, n, C, ...) with n of ``tap.rows`` or the recorded rows, the smaller.

    Raises:
        UserError: the network has no such module.
        BrokenModel: the module did not run, or has no row for each row of the network.
    """
    kept: list[Tensor] = []
    with tap.watching(model, kept.append):
        for call in range(trajectory.calls):
            rows = torch.arange(min(tap.rows, trajectory.rows))
            before = len(kept)
            trajectory.pick(torch.full_like(rows, call), rows).call(model)
            if len(kept) == before:
                raise BrokenModel(f"{tap.module} did not run: no features of it")
            kept[before:] = [require_rows(kept[before], len(rows), tap).clone()]
    return torch.stack(kept)


def require_rows(value: Tensor, rows: int, tap: FeatureTap) -> Tensor:
    """``value`` if it has a row for each row of the network's batch.

    Raises:
        BrokenModel: it has not.
    """
    if value.shape[0] != rows:
        raise BrokenModel(
            f"{tap.module} has {value.shape[0]} rows where the network has {rows}: take features "
            "of a module that sees one row an image"
        )
    return value
