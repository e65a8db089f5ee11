"""Follows the channels of a network through one forward pass, from the layers that make them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from quantarena.bench.workloads.outliers.labels import by_channel, channelwise
from quantarena.bench.workloads.outliers.rules import Rules
from quantarena.bench.workloads.outliers.ties import Ties
from quantarena.methods.core.trace.operation import function_name
from quantarena.methods.core.trace.operations import QuantizableModule

MOST_FELT = 2e-5
"""Largest part of a normed value, ``eps / (2 variance)``, that a norm's epsilon may take away."""
Norm = nn.GroupNorm | nn.LayerNorm | nn.RMSNorm


class Channels(TorchFunctionMode):
    """The channels of a network, followed while it is active as a context.

    Attributes:
        ties: which channels are rescaled together.
        rules: what the operations between the layers found.
        made: numbers of the channels that each layer and norm makes, by module path.
        read: numbers of the channels that each layer reads, by module path.
        normed: channels that a norm reads.
        faint: those of them whose group is so small that the norm's epsilon is felt: a factor would
            change what the norm makes of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ties = Ties()
        self.made: dict[str, Tensor] = {}
        self.read: dict[str, Tensor] = {}
        self.normed: set[int] = set()
        self.faint: set[int] = set()
        self._biased: set[int] = set()
        self.rules = Rules(self.ties, self.labels, self._biased)
        self._known: Any = WeakTensorKeyDictionary()  # tensor -> labels
        self._inside = False

    def labels(self, tensor: Tensor) -> Tensor:
        """The labels of a tensor; one from outside of the network is fixed."""
        found: Tensor | None = self._known.get(tensor)
        if found is None:
            return torch.zeros((), dtype=torch.int32).expand(tensor.shape)
        return found

    def enter(self) -> None:
        """Note that the forward of a layer or norm begins: its own operations are skipped.

        So are those on labels, until the layer or norm is followed.
        """
        self._inside = True

    def layer(self, path: str, layer: QuantizableModule, x: Tensor, output: Tensor) -> None:
        """Follow a convolution or linear: it reads the channels of x and makes new ones."""
        axes = 1 if isinstance(layer, nn.Linear) else 1 + len(layer.kernel_size)
        self._reads(path, by_channel(self.labels(x), -axes), self.labels(x))
        self._makes(path, layer, layer.weight.shape[0], output, -axes)
        self._inside = False

    def norm(self, path: str, norm: Norm, x: Tensor, output: Tensor) -> None:
        """Follow a norm: one factor for all channels of a group changes nothing but its epsilon."""
        axis = 1 if isinstance(norm, nn.GroupNorm) else x.dim() - 1
        channels = by_channel(self.labels(x), axis)
        if channels is None or not _channelwise(norm):
            self.rules.fix(self.labels(x))
        else:
            groups = channels.reshape(norm.num_groups if isinstance(norm, nn.GroupNorm) else 1, -1)
            self.rules.tie(groups, groups[:, :1].expand(groups.shape))
            self.normed |= set(channels.tolist())
            if isinstance(norm, nn.GroupNorm):
                least = x.reshape(x.shape[0], len(groups), -1).var(-1).amin(0)
                self.faint |= set(groups[norm.eps / 2 > MOST_FELT * least].flatten().tolist())
        if norm.weight is not None and _channelwise(norm):
            self._makes(path, norm, norm.weight.numel(), output, axis)
        self._inside = False

    def _reads(self, path: str, channels: Tensor | None, labels: Tensor) -> None:
        if channels is None:
            self.rules.fix(labels)
            channels = torch.zeros(0, dtype=torch.int32)
        else:
            self.rules.use(channels)
        before = self.read.setdefault(path, channels)
        if before is not channels:  # a layer that runs twice has one weight
            if before.shape == channels.shape:
                self.rules.tie(before, channels)
            else:
                self.rules.fix(channels)
                self.rules.fix(before)

    def _makes(
        self, path: str, module: QuantizableModule | Norm, count: int, output: Tensor, axis: int
    ) -> None:
        if path not in self.made:
            self.made[path] = self.ties.fresh(count)
            if getattr(module, "bias", None) is not None and isinstance(module, QuantizableModule):
                self._biased |= set(self.made[path].tolist())
        self._known[output] = channelwise(self.made[path], axis, output.shape)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self._inside:
            self._follow(func, args, kwargs, result)
        return result

    def _follow(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any,
    ) -> None:
        read = [t for t in tensors((args, kwargs)) if t in self._known]
        name = function_name(func)
        results = list(tensors(result if name != "__setitem__" else args[0]))
        if not read or not results:
            return
        made = list(tensors(self._labels_of_result(func, name, args, kwargs, result)))
        if [t.shape for t in made] != [t.shape for t in results]:
            for tensor in read:
                self.rules.fix(self.labels(tensor))
            for tensor in results:  # from here on they are as tensors from outside
                self._known.pop(tensor, None)
            return
        for tensor, labels in zip(results, made, strict=True):
            self._known[tensor] = labels

    def _labels_of_result(
        self,
        func: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any,
    ) -> Any:
        try:
            return self.rules(func, name, args, kwargs, result)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None  # an unusual call of a known operation: the caller fixes what it reads


def _channelwise(norm: Norm) -> bool:
    """Whether the norm has one weight a channel."""
    return isinstance(norm, nn.GroupNorm) or len(tuple(norm.normalized_shape)) == 1


def follow(model: nn.Module, run: Callable[[], Any]) -> Channels:
    """Follow the channels of a network through one run.

    Args:
        model: the network.
        run: runs one forward pass and returns its output.
    """
    channels = Channels()
    with torch.no_grad(), _watching(model, channels), channels:
        output = run()
    for tensor in tensors(output):
        channels.rules.fix(channels.labels(tensor))
    for path in _sharing(model) & (channels.made.keys() | channels.read.keys()):
        for table in (channels.made, channels.read):
            if path in table:
                channels.rules.fix(table[path])
    for gain, total in channels.rules.gains.items():
        if gain in channels.rules.used:  # it is more than a gain, so the layer must not change
            channels.ties.fix(total)
        channels.ties.fix(gain)
    return channels


@contextmanager
def _watching(model: nn.Module, channels: Channels) -> Iterator[None]:
    """Tell ``channels`` of every run of a layer or norm."""

    def layer(path: str) -> Any:
        return lambda module, args, output: channels.layer(path, module, args[0], output)

    def norm(path: str) -> Any:
        return lambda module, args, output: channels.norm(path, module, args[0], output)

    handles = []
    for path, module in model.named_modules():
        if isinstance(module, QuantizableModule | Norm):
            hook = layer if isinstance(module, QuantizableModule) else norm
            handles.append(module.register_forward_pre_hook(lambda *_: channels.enter()))
            handles.append(module.register_forward_hook(hook(path)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _sharing(model: nn.Module) -> set[str]:
    """Paths of modules whose parameters belong to other modules too."""
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(path)
    return {path for paths in owners.values() if len(paths) > 1 for path in paths}


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
