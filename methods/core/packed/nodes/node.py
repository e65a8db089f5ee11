"""The base of all packed modules: the table entry of the sampler call, and a description.

A quantized layer packs to a tree of nodes. Its leaves hold codes; the nodes above cut inputs,
reorder outputs, add float branches. A tree is described by JSON beside its tensors, so that a
checkpoint rebuilds it.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.kernels.oracle import channels_last
from quantarena.methods.core.network import SHORT
from quantarena.methods.core.packed.nodes.fusion import Follower, Watched, plain
from quantarena.methods.core.quantizers.call_tables import bank_entry

Document = dict[str, Any]
Tensors = dict[str, Tensor]
Build = Callable[[Mapping[str, Any], Tensors], "Node"]
"""From a description and its tensors to a node; takes what it uses out of the tensors."""


class Node(nn.Module):
    """A packed module.

    Attributes:
        form: name of the class in descriptions.
        takes: number formats of inputs that are taken as they are; those of ``SHORT`` become
            float32 on the way in.
        clock: the clock of the model; None for a node outside a model, which uses the entry of
            ``set_step``.
        entries: number of entries of the activation tables in it; 0 where nothing depends on the
            sampler call.
        follower: records the functions that come after it, see ``fusion``; None outside a model.
        around: number format of the network that the node is in.
    """

    form: ClassVar[str]
    takes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32,)
    entries: int

    def __init__(self, children: tuple["Node", ...] = ()) -> None:
        super().__init__()
        self.clock: CallClock | None = None
        self.follower: Follower | None = None
        self.around = torch.float32
        self._step = 0
        sizes = {child.entries for child in children} - {0}
        if len(sizes) > 1:
            raise ValueError(f"parts have tables of {sorted(sizes)} sampler calls")
        self.entries = sizes.pop() if sizes else 0

    @property
    def in_features(self) -> int:
        """Inputs of a linear layer: pipelines read it to check their conditions."""
        return self.weight_shape[1]

    @property
    def weight(self) -> Tensor:
        """An empty tensor of the type that the network computes in, on the layer's device.

        Networks read ``layer.weight.dtype`` to convert what they give a layer. There is no float
        weight to multiply with, and a product with an empty one fails.
        """
        device = next((buffer.device for buffer in self.buffers()), None)
        return torch.empty(0, dtype=self.around, device=device)

    def set_step(self, index: int) -> None:
        """Selects the entry of the activation tables that calls without a clock use.

        Raises:
            IndexError: no such entry.
        """
        if not 0 <= index < max(1, self.entries):
            raise IndexError(f"step {index} is not in the table of {max(1, self.entries)}")
        self._step = index

    def set_clock(self, clock: CallClock | None) -> None:
        """Share the model's clock with the whole tree."""
        for module in self.modules():
            if isinstance(module, Node):
                module.clock = clock

    def forward(self, x: Tensor, step: int | None = None) -> Tensor:
        """The layer's output, in the number and memory format of the input.

        Args:
            x: ``(..., in)`` for linear, channels on axis 1 for convolutions; float32, bfloat16 or
                float16. It is computed with in float32 unless its format is one of ``takes``.
            step: entry of the activation tables; by default the clock's sampler call, for every
                batch row its own, or without a clock the entry of :meth:`set_step`.

        Raises:
            ValueError: wrong shape, type or device.
            UserError: the sampler call was not announced or is not in the tables.
        """
        x = plain(x)
        if x.dtype in SHORT and x.dtype not in self.takes:
            return self.forward(x.float(), step).to(x.dtype)
        return self.watched(self._at(x) if step is None else self.run(x, step))

    def value(self, x: Tensor) -> Tensor:
        """As ``forward``, as an ordinary tensor: for what adds to a layer's output."""
        x = plain(x)
        if x.dtype in SHORT and x.dtype not in self.takes:
            return self._at(x.float()).to(x.dtype)
        return self._at(x)

    def watched(self, y: Tensor) -> Tensor:
        """An output of the layer that sees what comes next, where that is worth it; ``fusion``."""
        if self.follower is None or torch.compiler.is_compiling() or not self.follower.watching:
            return y
        return Watched.of(y, base=y, follower=self.follower)

    def _at(self, x: Tensor) -> Tensor:
        """The output at the sampler call of each batch row."""
        if not self.entries or self.clock is None:
            return self.run(x, self._step)
        entry = bank_entry(self.clock, self.entries, x.shape[0])
        return self._by_row(x, entry) if isinstance(entry, Tensor) else self.run(x, entry)

    def _by_row(self, x: Tensor, entry: Tensor) -> Tensor:
        """Rows of one sampler call run together."""
        calls = torch.unique(entry).tolist()
        y = torch.cat([self.run(x[entry == call], call) for call in calls])
        y = y[entry.argsort(stable=True).argsort()]
        return like_input(y, x)

    def run(self, x: Tensor, step: int) -> Tensor:
        """The output with one entry for all rows; arguments as for ``forward``."""
        raise NotImplementedError

    @property
    def in_place(self) -> bool:
        """Whether outputs lie as the kernels lay them, so that they can add to one another's."""
        return False

    def add_to(self, y: Tensor, x: Tensor, step: int | None = None) -> Tensor:
        """Adds the output to ``y`` in place, where :attr:`in_place`; else as ``forward``."""
        raise NotImplementedError

    def below(self, child: "Node", x: Tensor, step: int) -> Tensor:
        """A child's output; one without tables has no entry but the first."""
        return child.run(x, step if child.entries else 0)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight that the node stands for."""
        raise NotImplementedError

    def describe(self) -> Document:
        """JSON-able description; tensors are in ``state_dict``."""
        raise NotImplementedError

    @classmethod
    def rebuild(cls, document: Mapping[str, Any], tensors: Tensors, build: Build) -> "Node":
        """The inverse of ``describe`` and ``state_dict``.

        Raises:
            KeyError: something is missing.
            ValueError: something does not fit.
        """
        raise NotImplementedError


def take(tensors: Tensors, prefix: str) -> Tensors:
    """Take the tensors under a prefix out; names without it."""
    names = [name for name in tensors if name.startswith(prefix)]
    return {name[len(prefix) :]: tensors.pop(name) for name in names}


def like_input(y: Tensor, x: Tensor) -> Tensor:
    """``y`` in the memory format of ``x``."""
    if y.dim() == 4 and channels_last(x):
        return y.contiguous(memory_format=torch.channels_last)
    return y


def node_of(module: nn.Module) -> Node:
    """A child module, typed."""
    assert isinstance(module, Node)
    return module
