"""Normalizations and activations of a packed network run as one native pass each.

Nothing here knows a model: the tensors that a group normalization or a packed layer returns are
:class:`Watched` for a few calls, and see which torch function comes next. Where it is an activation
(also after a ``chunk``, and multiplied with a gate), later calls compute it in the same pass.
Whatever else is done to a watched tensor happens to its plain value, so results never depend on
what was learned.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from quantarena.methods.core.kernels import native
from quantarena.methods.core.kernels.float_ops import Activation, activate, normalize

PATIENCE = 6
"""Calls without an activation after which an output is no longer watched."""


class Follower:
    """A record of the functions that came after one module so far.

    Attributes:
        activation: the activation that came first after it; PLAIN where none did.
        misses: number of calls after which something else came.
    """

    def __init__(self) -> None:
        self.activation = Activation.PLAIN
        self.misses = 0

    @property
    def watching(self) -> bool:
        """Whether it is worth looking at the next output."""
        return self.activation is not Activation.PLAIN or self.misses < PATIENCE

    def hit(self, activation: Activation) -> None:
        """An activation came next."""
        self.activation = activation

    def miss(self) -> None:
        """Something else came next; once is enough where an activation was expected."""
        if self.activation is not Activation.PLAIN:
            self.misses = PATIENCE
        self.activation = Activation.PLAIN
        self.misses += 1


class Watched(Tensor):
    """A tensor that knows what to do with an activation; anything else meets its plain value.

    Attributes:
        base: without ``pending``; None where only ``plain`` can give it.
        pending: activation still to be applied to ``base`` (then ``base`` is the plain value's
            argument), or already applied in ``done``.
        done: the value with the expected activation applied, or None.
        plain: makes the plain value anew where only ``done`` was computed.
        follower: told what came next.
    """

    base: Tensor | None
    pending: Activation
    done: Tensor | None
    plain: Callable[[], Tensor] | None
    follower: Follower | None

    @staticmethod
    def of(
        like: Tensor,
        *,
        base: Tensor | None = None,
        pending: Activation = Activation.PLAIN,
        done: Tensor | None = None,
        plain: Callable[[], Tensor] | None = None,
        follower: Follower | None = None,
    ) -> "Watched":
        """A watched tensor of the shape, strides and type of ``like``."""
        tensor: Watched = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            Watched, like.shape, strides=like.stride(), dtype=like.dtype, device=like.device
        )
        tensor.base, tensor.pending, tensor.done = base, pending, done
        tensor.plain, tensor.follower = plain, follower
        return tensor

    def value(self) -> Tensor:
        """The tensor that it stands for."""
        if self.base is None:
            assert self.plain is not None
            self.base = self.plain()
        if self.pending is not Activation.PLAIN:
            self.base = _activated(self.base, self.pending, None)
            self.pending = Activation.PLAIN
        return self.base

    def _missed(self) -> None:
        if self.follower is not None:
            self.follower.miss()
            self.follower = None

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Activations, chunks and gates are followed; the rest sees plain values."""
        if func in _ASKING:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        rule = _RULES.get(func)
        if rule is not None:
            result = rule(*args, **(kwargs or {}))
            if result is not None:
                return result
        return func(*_values(args), **_values(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Operations that reach torch without a torch function get plain values too."""
        return func(*_values(args), **_values(kwargs or {}))


def plain(x: Tensor) -> Tensor:
    """The value of a watched tensor; any other tensor as it is."""
    if type(x) is not Watched:
        return x
    x._missed()
    return x.value()


def _values(tree: Any) -> Any:
    return tree_map(lambda leaf: plain(leaf) if type(leaf) is Watched else leaf, tree)


def _activated(x: Tensor, activation: Activation, gate: Tensor | None) -> Tensor:
    y = activate(native.library(), x, activation, gate)
    if y is None:
        y = _TORCH[activation](x)
        y = y if gate is None else y * gate
    return y


_TORCH: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.SILU: F.silu,
    Activation.GELU: F.gelu,
    Activation.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
}


def _follow(x: Any, activation: Activation) -> Tensor | None:
    """``activation(x)``: already there, or pending; None where it cannot be told."""
    if type(x) is not Watched or x.pending is not Activation.PLAIN:
        return None
    follower, x.follower = x.follower, None
    if follower is not None:
        if x.done is not None and follower.activation is activation:
            return x.done
        if x.done is not None:
            follower.miss()
        else:
            follower.hit(activation)
    base = x.value()
    return Watched.of(base, base=base, pending=activation)


def _silu(input: Any, inplace: bool = False) -> Tensor | None:
    return None if inplace else _follow(input, Activation.SILU)


def _gelu(input: Any, approximate: str = "none") -> Tensor | None:
    kind = Activation.GELU if approximate == "none" else Activation.GELU_TANH
    return _follow(input, kind)


def _dropout(
    input: Any, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor | None:
    return None if training else input


def _chunk(input: Any, chunks: int, dim: int = 0) -> tuple[Tensor, ...] | None:
    if type(input) is not Watched or input.done is not None or input.pending:
        return None
    pieces = input.value().chunk(chunks, dim)
    follower, input.follower = input.follower, None
    return tuple(Watched.of(piece, base=piece, follower=follower) for piece in pieces)


def _mul(input: Any, other: Any) -> Tensor | None:
    """A gate, where one side is a pending activation and the other a plain value."""
    for x, gate in ((input, other), (other, input)):
        if type(x) is Watched and x.pending and isinstance(gate, Tensor):
            if gate.shape != x.shape or (type(gate) is Watched and gate.pending):
                return None
            if type(gate) is Watched:
                gate.follower = None  # shared with the other chunk, which was a hit
                gate = gate.value()
            assert x.base is not None
            return _activated(x.base, x.pending, gate)
    return None


_RULES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.silu: _silu,
    F.gelu: _gelu,
    F.dropout: _dropout,
    Tensor.chunk: _chunk,
    torch.chunk: _chunk,
    Tensor.mul: _mul,
    Tensor.__mul__: _mul,
    torch.mul: _mul,
}
_ASKING = frozenset(
    {
        Tensor.dim,
        Tensor.size,
        Tensor.stride,
        Tensor.numel,
        Tensor.is_contiguous,
        *(
            getattr(Tensor, name).__get__
            for name in ("shape", "dtype", "device", "ndim", "requires_grad", "layout", "is_cpu")
        ),
    }
)
"""Questions that the wrapper itself answers."""


class FusedGroupNorm(nn.GroupNorm):
    """A group normalization that computes the activation after it in the same pass."""

    follower: Follower

    def forward(self, x: Tensor) -> Tensor:
        """The normalized input; see ``torch.nn.GroupNorm``."""
        if torch.compiler.is_compiling():  # which fuses by itself
            return super().forward(x)
        x = plain(x)
        expected = self.follower.activation
        y = self._native(x, expected)
        if y is None:
            return super().forward(x)
        if not self.follower.watching:
            return y
        if expected is Activation.PLAIN:
            return Watched.of(y, base=y, follower=self.follower)
        version = None if x.is_inference() else x._version
        return Watched.of(y, done=y, plain=lambda: self._plain(x, version), follower=self.follower)

    def _plain(self, x: Tensor, version: int | None) -> Tensor:
        if version is not None and x._version != version:
            raise RuntimeError(
                "the input of a group normalization changed before its result was used"
            )
        y = self._native(x, Activation.PLAIN)
        assert y is not None
        return y

    def _native(self, x: Tensor, activation: Activation) -> Tensor | None:
        library = native.library()
        if library.norm is None:
            return None
        return normalize(library, x, self.num_groups, self.weight, self.bias, self.eps, activation)


def fuse(module: nn.Module, layers: Iterable[nn.Module]) -> None:
    """Let a packed network compute what lies between its layers natively.

    Group normalizations and packed layers watch what comes after them, and packed convolutions
    write channels_last, which is faster to read for all that follows. Only ``torch.nn.GroupNorm``
    itself is changed, not classes derived from it. Without native kernels nothing is.

    Args:
        module: the network; its outputs stay ordinary tensors.
        layers: the packed layers in it.
    """
    if native.library().norm is None:
        return
    for norm in _norms(module.modules()):
        norm.__class__ = FusedGroupNorm
        norm.follower = Follower()
    for layer in layers:
        setattr(layer, "follower", Follower())  # noqa: B010  (typed as a module)
        for part in layer.modules():
            if hasattr(part, "writes_last"):
                setattr(part, "writes_last", True)  # noqa: B010
    module.register_forward_hook(_ordinary)


def _norms(modules: Iterable[nn.Module]) -> list[Any]:
    return [module for module in modules if type(module) is nn.GroupNorm]


def _ordinary(module: nn.Module, args: Any, output: Any) -> Any:
    """Outputs without watched tensors, in whatever container; others as they are."""
    if isinstance(output, Tensor):
        return plain(output)
    if isinstance(output, dict):  # model outputs are dictionaries with attributes
        for name, value in output.items():
            output[name] = _ordinary(module, args, value)
        return output
    return _values(output) if isinstance(output, tuple | list) else output
