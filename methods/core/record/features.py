"""Features inside the network at every sampler call, for draw policies that use them."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.errors import BrokenModel, UserError, did_you_mean
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.record.rows import module_rows
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.core.trace.network import Graph, LayerInfo, Role


@dataclass(frozen=True, slots=True)
class FeatureTap:
    """Where features are taken from.

    Attributes:
        module: path of the module, such as ``middle_module`` returns.
        rows: number of rows recorded at each sampler call, from the first on.
        output: take the module's output; else its input.
        channel: axis of the channels, which is moved to 1; None is axis 1 for images (4 axes or
            more) and the last axis for tokens and vectors.
    """

    module: str
    rows: int = 8
    output: bool = False
    channel: int | None = None

    @contextmanager
    def watching(self, model: nn.Module, note: Callable[[Tensor], None]) -> Iterator[None]:
        """Call ``note`` with every feature (B, C, ...), not copied, inside the block.

        Raises:
            UserError: the network has no such module.
            BrokenModel: the module's input or output holds no tensor.
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
        """The first tensor among the values, with channels at axis 1."""
        tensor = next((v for v in values if isinstance(v, Tensor) and v.dim() > 1), None)
        if tensor is None:
            raise BrokenModel(f"{self.module} has no tensor there to take features of")
        axis = self.channel
        if axis is None:
            axis = 1 if tensor.dim() > 3 else -1
        return tensor.detach().movedim(axis, 1)


def middle_module(graph: Graph, without: Collection[str] = ()) -> str:
    """Path of the attention, or else the layer, in the middle of the network.

    EDA-DM uses the attention of the U-Net's middle block. It is found without names: among the
    modules with query, key or value layers at the lowest resolution (fewest positions of an
    image), it is the middle one in execution order, the earlier of two. In a U-Net this is the
    middle block; in a transformer, whose modules have one resolution, the middle of the stack. In
    a network without attention it is the middle layer at the lowest resolution above one position.

    Args:
        graph: graph of the traced network.
        without: modules that are not taken, such as ``modules_without_images`` names.

    Returns:
        A module path.
    """
    order = sorted(graph.layers.values(), key=lambda layer: layer.order)
    order = [layer for layer in order if layer.name not in without] or order
    owners: dict[str, LayerInfo] = {}
    for layer in order:
        owner = layer.name.rpartition(".")[0] or layer.name
        if layer.role is Role.QKV and owner not in without:
            owners.setdefault(owner, layer)  # the query: keys may come from a condition
    if not owners:
        owners = {layer.name: layer for layer in order if _positions(layer) > 1}
    if not owners:
        owners = {layer.name: layer for layer in order}
    lowest = min(_positions(layer) for layer in owners.values())
    names = [name for name, layer in owners.items() if _positions(layer) == lowest]
    return names[(len(names) - 1) // 2]


def modules_without_images(network: nn.Module, trajectory: Trajectory) -> frozenset[str]:
    """Modules that are not given one row for each image, so that features cannot be taken there."""
    first = torch.arange(min(2, trajectory.rows))
    points = trajectory.pick(torch.zeros_like(first), first)
    names = [name for name, _ in network.named_modules() if name]

    def run(points: CalibrationSet) -> object:
        return points.call(network)

    rows = module_rows(network, points, names, run)
    return frozenset(name for name, found in rows.items() if found.given[:1] != (1,))


def _positions(layer: LayerInfo) -> int:
    """Number of positions (pixels or tokens) of an image at which the layer computes."""
    return layer.macs // max(1, layer.weights)


@torch.no_grad()
def features(model: nn.Module, trajectory: Trajectory, tap: FeatureTap) -> Tensor:
    """Compute features of recorded calls by running their first rows through the network again.

    Args:
        model: the network, usually the full-precision one; it runs once for each call.
        trajectory: the recorded inputs.
        tap: where features are taken from.

    Returns:
        Features (S, n, C, ...) on the host, with n the smaller of ``tap.rows`` and the recorded
        rows.

    Raises:
        UserError: the network has no such module.
        BrokenModel: the module did not run, or has no row for each row of the network.
    """
    rows_by_call: list[Tensor] = []
    with tap.watching(model, rows_by_call.append):
        for call in range(trajectory.calls):
            rows = torch.arange(min(tap.rows, trajectory.rows))
            before = len(rows_by_call)
            trajectory.pick(torch.full_like(rows, call), rows).call(model)
            if len(rows_by_call) == before:
                raise BrokenModel(f"{tap.module} did not run: no features of it")
            kept = require_rows(rows_by_call[before], len(rows), tap)
            rows_by_call[before:] = [kept.clone() if kept.is_cpu else kept.cpu()]
    return torch.stack(rows_by_call)


def require_rows(value: Tensor, rows: int, tap: FeatureTap) -> Tensor:
    """Return ``value`` if it has a row for each row of the network's batch.

    Raises:
        BrokenModel: it does not.
    """
    if value.shape[0] != rows:
        raise BrokenModel(
            f"{tap.module} has {value.shape[0]} rows where the network has {rows}: take features "
            "of a module that sees one row an image"
        )
    return value
