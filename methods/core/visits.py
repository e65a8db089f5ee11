"""Networks that do not fit the device: they stay on the host, and their islands visit it in turn.

An *island* is a module that is moved as a whole: a residual block, a transformer block, or a layer
outside of these. What lies between islands (sums of streams, skip concatenations, the sampler) runs
on the host. So the device holds one island and its activations at a time:

    visiting(network, torch.device("cuda"))
    network(sample, timestep)        # all of it on the host, each island computed on the device

A forward pass that computes gradients needs its weights again on the way back, so it is refused,
except for a module that is held on the device meanwhile:

    with resident(block):
        block(x).square().mean().backward()

Moving is done by ``module.forward``, which is replaced in the instance. So hooks of an island see
what the host sees, and copies of the network (``copy.deepcopy``) visit as it does.
"""

import inspect
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from quantarena.methods.core.errors import Unsupported

HOST = torch.device("cpu")

_inside = threading.local()
"""How many visits each thread is inside of, and whether it is on the host alone. Each thread has a
stack of its own, also one that stands for a paused pass."""


@dataclass(slots=True)
class _Moved:
    """A tensor on the device that has its memory on the host.

    Attributes:
        home: the tensor on the host.
        there: the tensor on the device, which is a parameter itself.
        storage: memory on the device, and how often it was written, when it had just been moved.
        version: see ``storage``.
    """

    home: Tensor
    there: Tensor
    storage: Any = None
    version: int = 0

    def mark(self) -> None:
        """Remember what it is now."""
        self.storage, self.version = self.there.untyped_storage(), self.there._version

    @property
    def unchanged(self) -> bool:
        """Whether the host's values are still the device's."""
        same = self.there.untyped_storage()._cdata == self.storage._cdata
        return same and self.there._version == self.version


class Visit:
    """Stands for a module's ``forward``: runs it on the device, with the module's tensors there.

    Args:
        module: the module.
        device: where it computes.
        island: whether it is one.
        around: whether islands are inside it, or it has nothing to move: then it stays on the host,
            unless it is held (``resident``) or an island calls it.
    """

    def __init__(
        self, module: nn.Module, device: torch.device, *, island: bool, around: bool
    ) -> None:
        self._module = ref(module)  # which holds this: a large network must not wait for a cycle
        self.device, self.island, self.around = device, island, around
        self.held = 0
        self._visits = 0
        self._moved: dict[int, _Moved] | None = None
        self._others: list[Tensor] = []  # there already when the module arrived

    @property
    def module(self) -> nn.Module:
        """The module.

        Raises:
            ReferenceError: it is gone.
        """
        module = self._module()
        if module is None:
            raise ReferenceError("the module of this forward is gone")
        return module

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the module's own ``forward``, which names the inputs of a denoiser."""
        return inspect.signature(type(self.module).forward.__get__(self.module))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Visit":
        if id(self) not in memo:
            twin = memo[id(self)] = object.__new__(Visit)
            owner = memo.get(id(self.module))
            if owner is None:  # the copy of a module asks for this after it has made itself known
                raise RuntimeError("a visit is copied with its module")
            kind = {"island": self.island, "around": self.around}
            twin.__init__(owner, self.device, **kind)  # type: ignore[misc]
        found: Visit = memo[id(self)]
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output: on the host, or on the device while held or inside an island."""
        module = self.module
        forward = type(module).forward
        depth = getattr(_inside, "depth", 0)
        if getattr(_inside, "on_host", False) or (self.around and not self.held and not depth):
            return forward(module, *args, **kwargs)
        if not self.held and not depth:
            self._refuse_gradient(args, kwargs)
        with self.here():
            args, kwargs = tree_map(self._there, (args, kwargs))
            _inside.depth = depth + 1
            try:
                output = forward(module, *args, **kwargs)
            finally:
                _inside.depth = depth
        return output if self.held or depth else tree_map(_home, output)

    @contextmanager
    def here(self) -> Iterator[None]:
        """Have the module's tensors on the device inside the block."""
        self._visits += 1
        try:
            if self._visits == 1 and not self._is_there():
                self._arrive()
            yield
        finally:
            self._visits -= 1
            if not self._visits and self._moved is not None:
                self._leave(self._moved)

    def _is_there(self) -> bool:
        return all(tensor.device.type == self.device.type for tensor in _tensors(self.module))

    def _arrive(self) -> None:
        moved: list[_Moved] = []

        def arrive(tensor: Tensor) -> Tensor:
            if tensor.device.type == self.device.type:
                self._others.append(tensor)
                return tensor
            there = tensor.detach().to(self.device)
            # a parameter stays the same object; a buffer becomes the copy
            kept = tensor if isinstance(tensor, nn.Parameter) else there
            moved.append(_Moved(tensor.detach(), kept))
            return there

        try:
            with torch.inference_mode(False), torch.no_grad():
                self.module._apply(arrive)  # type: ignore[no-untyped-call]
        finally:  # where memory ran out, some are there, and have to leave again
            for each in moved:
                each.mark()
            self._moved = {id(each.there): each for each in moved}

    def _leave(self, known: dict[int, _Moved]) -> None:
        others = {id(tensor) for tensor in self._others}
        # the statistics of a norm that trains are written without a trace
        writes = any(
            module.training and getattr(module, "track_running_stats", False)
            for module in self.module.modules()
        )
        for parameter in self.module.parameters():
            if id(parameter) not in others:
                parameter.grad = None

        def leave(tensor: Tensor) -> Tensor:
            if id(tensor) in others or tensor.device.type == HOST.type:
                return tensor
            before = known.get(id(tensor))
            same = before is not None and before.there is tensor and before.unchanged
            if before is not None and same and not writes:
                return before.home
            return tensor.detach().to(HOST)

        with torch.inference_mode(False), torch.no_grad():
            self.module._apply(leave)  # type: ignore[no-untyped-call]
        self._moved, self._others = None, []

    def _there(self, value: Any) -> Any:
        return value.to(self.device) if isinstance(value, Tensor) else value

    def _refuse_gradient(self, args: Any, kwargs: Any) -> None:
        if not torch.is_grad_enabled():
            return
        given = (x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
        if any(x.requires_grad for x in chain(given, self.module.parameters())):
            raise Unsupported(
                f"a gradient through {type(self.module).__name__}, whose weights only visit "
                f"{self.device}: blocks are learned one by one there; to learn the whole network "
                "at once, run where it fits, without --offload"
            )


def _home(value: Any) -> Any:
    return value.to(HOST) if isinstance(value, Tensor) else value


def islands(network: nn.Module) -> tuple[str, ...]:
    """Paths of the modules that visit as a whole, in the order of the modules.

    A module is not moved as a whole where it repeats itself: somewhere inside is a list of several
    modules of one class, each made of modules. Nor is the network itself. So a level of a U-Net, or
    a stack of transformer blocks, comes apart into its blocks.
    """
    return _cut(network, lambda path, module: _repeats(module))


def _cut(network: nn.Module, apart: Callable[[str, nn.Module], bool]) -> tuple[str, ...]:
    """Paths of the outermost modules with tensors that ``apart`` does not take apart."""
    found: list[str] = []

    def look(module: nn.Module, path: str) -> None:
        for name, child in module.named_children():
            inner = f"{path}.{name}" if path else name
            if isinstance(child, nn.ModuleList | nn.ModuleDict) or apart(inner, child):
                look(child, inner)
            elif _has_tensors(child):
                found.append(inner)

    look(network, "")
    return tuple(found) if found or not _has_tensors(network) else ("",)


def _repeats(module: nn.Module) -> bool:
    for inner in module.modules():
        if isinstance(inner, nn.ModuleList | nn.Sequential):
            kinds = [type(item) for item in inner if any(map(_has_tensors, item.children()))]
            if len(kinds) > len(set(kinds)):
                return True
    return False


def _has_tensors(module: nn.Module) -> bool:
    return next(_tensors(module), None) is not None


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())


def visiting(network: nn.Module, device: torch.device) -> nn.Module:
    """Let the islands of a network on the host visit the device; changes it in place.

    A module that is put into an island later is moved with it.

    Args:
        network: on the host.
        device: where its islands compute.

    Raises:
        Unsupported: a module whose ``forward`` is its own, not that of its class.
        ValueError: a parameter or buffer of the network is not on the host.
    """
    _place(network, islands(network), device)
    return network


def visiting_as(network: nn.Module, original: nn.Module) -> nn.Module:
    """Let a changed copy of a network visit the device as the original does; changes it in place.

    Its islands have the paths of the original's; what the copy has beside them is an island too.
    Nothing happens where the original does not visit a device.

    Raises:
        ValueError: a parameter or buffer of the network is not on the host.
    """
    device = visited_device(original)
    if device is not None:
        visits = {name: visit_of(module) for name, module in original.named_modules()}
        known = [name for name, visit in visits.items() if visit is not None and visit.island]

        def apart(path: str, _: nn.Module) -> bool:
            return any(name.startswith(f"{path}.") for name in known)

        _place(network, _cut(network, apart), device)
    return network


def _place(network: nn.Module, alone: Collection[str], device: torch.device) -> None:
    tensors = chain(network.named_parameters(), network.named_buffers())
    if away := [name for name, tensor in tensors if tensor.device.type != HOST.type]:
        raise ValueError(f"{away[0]} is not on the host: only a network that is there can visit")
    for name, module in network.named_modules():
        if visit_of(module) is None and "forward" in vars(module):
            raise Unsupported(f"{name}: its forward was replaced, so it cannot visit {device}")
        path = name.split(".")
        inside = any(".".join(path[:end]) in alone for end in range(1, len(path) + 1))
        island = name in alone
        module.__dict__["forward"] = Visit(
            module, device, island=island, around=not (island or inside)
        )


def visit_of(module: nn.Module) -> Visit | None:
    """What moves a module to the device; None for one that does not visit any."""
    found = module.__dict__.get("forward")
    return found if isinstance(found, Visit) else None


def visited_device(network: nn.Module) -> torch.device | None:
    """The device that a network's islands visit; None where it is in one place."""
    visits = (visit_of(module) for module in network.modules())
    return next((visit.device for visit in visits if visit is not None), None)


@contextmanager
def resident(*modules: nn.Module) -> Iterator[None]:
    """Keep modules on the device inside the block: what they return stays there too.

    A module that does not visit a device stays where it is. Gradients of its parameters are gone
    after the block: use them inside.
    """
    with ExitStack() as stack:
        for module in modules:
            visit = visit_of(module)
            if visit is not None:
                stack.enter_context(visit.here())
        inner = [visit_of(part) for module in modules for part in module.modules()]
        held = [visit for visit in inner if visit is not None]
        for visit in held:
            visit.held += 1
        try:
            yield
        finally:
            for visit in held:
                visit.held -= 1


@contextmanager
def on_host() -> Iterator[None]:
    """Let no module visit its device inside the block, in this thread.

    For passes that look at how a network is made, on a row or two: they follow tensors from layer
    to layer, and a tensor that is moved is another one.
    """
    before = getattr(_inside, "on_host", False)
    _inside.on_host = True
    try:
        yield
    finally:
        _inside.on_host = before


def at_home(x: Tensor, module: nn.Module) -> Tensor:
    """A tensor where the module is between visits: on the host, or as it is where none visits."""
    return x if visit_of(module) is None else x.to(HOST)
