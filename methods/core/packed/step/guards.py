"""What a recorded step holds on to, and whether that is still so."""

from collections.abc import Sequence
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.utils.hooks import RemovableHandle

from quantarena.methods.core.changes import changes
from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.kernels.observer import NativeOperation
from quantarena.methods.core.model.attention import QuantAttention
from quantarena.methods.core.packed.nodes.channel_sum import SplitPackedLayer
from quantarena.methods.core.packed.nodes.dense import DenseLayer
from quantarena.methods.core.packed.nodes.k_groups import GroupedLayer
from quantarena.methods.core.packed.nodes.leaf import PackedLayer
from quantarena.methods.core.packed.nodes.node import Node
from quantarena.methods.core.packed.nodes.rotation import RotationLayer
from quantarena.methods.core.packed.nodes.wrappers import (
    Conv1dLayer,
    LowRankLayer,
    MixedWidthLayer,
    OffsetLayer,
)
from quantarena.methods.core.packed.step.trace import Trace
from quantarena.methods.core.quantizers.activation import ActQuantizer

_TABLES_ALONE = (
    PackedLayer,
    SplitPackedLayer,
    GroupedLayer,
    MixedWidthLayer,
    RotationLayer,
    LowRankLayer,
    OffsetLayer,
    Conv1dLayer,
)
"""Nodes in which nothing but tables of the kernels depends on the sampler call."""
_MODED = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase)
"""Modules of torch whose own mode counts; of others, that of the whole network."""
_HOOKED = "a hook was added or removed"
TRAINING = "it is in training mode"
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def tables_alone(network: nn.Module, clock: CallClock) -> bool:
    """Whether the sampler call does nothing but choose entries of the kernels' tables.

    Then one recording serves all calls.
    """
    products = {
        id(part)
        for module in network.modules()
        if isinstance(module, QuantAttention)
        for part in module.modules()
    }
    clocks = {id(m): getattr(m, "clock", None) for m in network.modules()}
    timed = [m for m in network.modules() if clocks[id(m)] is not None]
    return all(
        clocks[id(module)] is clock and (id(module) in products or _plain(module))
        for module in timed
    )


def _plain(module: nn.Module) -> bool:
    if isinstance(module, Node) and not module.entries:
        return True
    return isinstance(module, _TABLES_ALONE) and not isinstance(module, DenseLayer)


def entries(network: nn.Module) -> int:
    """Sampler calls that all tables have an entry for; 0 where there is no table."""
    found = [m.entries for m in network.modules() if isinstance(m, Node) and m.entries]
    found += [m.steps for m in network.modules() if isinstance(m, ActQuantizer) and m.steps]
    return min(found, default=0)


class NetworkState:
    """The parts of a network as they were when its step was recorded.

    Args:
        network: the network.

    ``changed()`` says what is different now. It is called before each replay, when nothing of the
    network is in a cache; so it looks at few objects, and through all modules only where
    ``changes`` has seen something.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._seen = changes.seen()
        self._handles = RemovableHandle.next_id
        modules = list(network.modules())
        self._leaves = [m for m in modules if isinstance(m, PackedLayer) and m._call is not None]
        self._calls = [leaf._call for leaf in self._leaves]
        native = set(map(id, self._leaves))  # a native call has its buffers, whatever a layer has
        tables = [
            table
            for module in modules
            for table in (
                module._modules,
                module._parameters,
                {} if id(module) in native else module._buffers,
            )
        ]
        self._tables = [table for table in tables if table]
        self._copies = [dict(table) for table in self._tables]
        self._all_hooks = [getattr(module, kind) for module in modules for kind in _HOOKS]
        self._hooks = [list(table) for table in self._all_hooks]
        self._hooked = [table for table in self._all_hooks if table]
        self._counts = list(map(len, self._hooked))
        self._moded = [network, *(m for m in modules if isinstance(m, _MODED))]
        self._modes = list(map(_training, self._moded))
        self._products = [m for m in modules if isinstance(m, QuantAttention)]
        self._product_modes = [quant.mode for quant in self._products]
        self._adapted = [vars(m) for m in modules if vars(m).keys() >= _ADAPTER]
        self._adapters = list(map(_adapters, self._adapted))

    def changed(self) -> str:
        """What is different, or nothing."""
        if changes.seen() != self._seen:
            before, self._seen = self._seen, changes.count
            if reason := self._replaced():
                self._seen = before
                return reason
        if RemovableHandle.next_id != self._handles:
            if [list(table) for table in self._all_hooks] != self._hooks:
                return _HOOKED
            self._handles = RemovableHandle.next_id
        if list(map(len, self._hooked)) != self._counts:
            return _HOOKED
        if list(map(_training, self._moded)) != self._modes:
            return TRAINING if self._network.training else "a part is in another mode"
        if not all(map(is_, map(_mode, self._products), self._product_modes)):
            return "attention products are computed in another mode"
        if self._adapted and list(map(_adapters, self._adapted)) != self._adapters:
            return "an adapter was switched or has another scale"
        return ""

    def _replaced(self) -> str:
        try:
            same = self._tables == self._copies
        except RuntimeError:  # tensors of several elements that are not the same object
            same = False
        if same and all(map(is_, map(_call, self._leaves), self._calls)):
            return ""
        return "a layer or a weight was replaced"


_ADAPTER = {"scaling", "_active_adapter", "_disable_adapters", "merged_adapters"}
"""Attributes of a layer with adapters of the peft library: plain values that decide what acts."""


def _adapters(layer: dict[str, Any]) -> tuple[Any, ...]:
    """What acts of a layer's adapters, and how much."""
    active, merged = layer["_active_adapter"], layer["merged_adapters"]
    named = active if isinstance(active, str) else tuple(active)
    return named, layer["_disable_adapters"], tuple(merged), tuple(layer["scaling"].items())


_mode = attrgetter("mode")
_call = attrgetter("_call")
_training = attrgetter("training")


def surroundings() -> str:
    """Why a call must run as it is written, whatever the network; or nothing."""
    if torch.is_grad_enabled():
        return "gradients are enabled"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return "another mode watches torch's operations"
    if global_hooks._global_forward_hooks or global_hooks._global_forward_pre_hooks:
        return "hooks on all modules are registered"
    return ""


class Constants:
    """Memory that a recording reads in place, and values that it took.

    Args:
        trace: the recording.
    """

    def __init__(self, trace: Trace) -> None:
        calls = [op.native for op in trace.operations if op.native is not None]
        read = [b.tensor for b in trace.buffers if b.tensor is not None and b.input < 0]
        self._read: list[Tensor] = [*read, *_fixed(calls)]
        self._at = [tensor.data_ptr() for tensor in self._read]
        self._taken = [tensor for tensor in trace.read_values if not tensor.is_inference()]
        self._versions = [tensor._version for tensor in self._taken]

    def changed(self) -> str:
        """What is different, or nothing."""
        if list(map(Tensor.data_ptr, self._read)) != self._at:
            return "a weight lies elsewhere"
        if [tensor._version for tensor in self._taken] != self._versions:
            return "a constant that the network read has another value"
        return ""


def _fixed(calls: Sequence[NativeOperation]) -> list[Tensor]:
    return [tensor for call in calls for tensor in call.fixed if tensor is not None]


def key_of(args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]) -> Any:
    """What a recording depends on among the arguments: all but the values of tensors.

    Args:
        args: of the call.
        kwargs: of the call.
        tensors: gets the tensors, in order.

    Raises:
        TypeError: an argument that cannot be told from another.
    """
    return (_key(args, tensors), _key(kwargs, tensors))


def _key(value: Any, tensors: list[Tensor]) -> Any:
    if isinstance(value, Tensor):
        if type(value) is not Tensor or value.device.type != "cpu":
            raise TypeError(f"a {type(value).__name__} on {value.device}")
        tensors.append(value)
        return (value.shape, value.stride(), value.dtype)
    if isinstance(value, dict):
        return tuple((name, _key(part, tensors)) for name, part in value.items())
    if isinstance(value, tuple | list):
        return (type(value), *(_key(part, tensors) for part in value))
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return (type(value), value)
    raise TypeError(f"a {type(value).__name__} among its arguments")
