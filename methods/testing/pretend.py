"""A CUDA device for machines without one: real values, computed on the CPU, under CUDA's rules.

``FakeTensorMode`` finds every operation that mixes devices, but its tensors have no values, and
calibration branches on values everywhere. Here a tensor "on the GPU" is a wrapper that says
``cuda:0`` and holds an ordinary tensor. Operations compute on what it holds, so results can be
compared bit for bit with a run on the CPU, and ``device_rules`` raises where a real GPU would.

    with pretended_cuda():
        network = copy.deepcopy(network).to("cuda")
        ...

For torch itself (autograd, the choice of a kernel) the wrapper is on the CPU, so that it takes the
same path. Only what Python is told differs.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from quantarena.methods.testing.device_memory import Counted, DeviceMemory
from quantarena.methods.testing.device_rules import (
    CPU,
    CUDA,
    DeviceFault,
    common_device,
    draws,
    require_no_draw,
    require_place,
)


class Pretended(Tensor):
    """A tensor that says it is on a GPU.

    Attributes:
        held: its values, an ordinary tensor on the CPU.
    """

    held: Tensor
    _counted: Counted | None

    @staticmethod
    def of(held: Tensor) -> "Pretended":
        """A wrapper of ``held``, which is not copied."""
        tensor: Pretended = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            Pretended,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
        )
        tensor.held = held
        memory = _Pretending.memory
        tensor._counted = None if memory is None else Counted(memory, held)
        return tensor

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The GPU."""
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        """That it is on one."""
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        """That it is on one."""
        return False

    def get_device(self) -> int:
        """Number of the GPU."""
        return 0

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Pretended({self.held!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Pretended":
        if id(self) not in memo:
            if not self.is_leaf:
                raise RuntimeError("only leaves of an autograd graph can be copied deeply")
            twin = Pretended.of(self.held.detach().clone()).requires_grad_(self.requires_grad)
            twin.__dict__.update({k: v for k, v in vars(self).items() if k not in _OWN})
            memo[id(self)] = twin
        found: Pretended = memo[id(self)]
        return found

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise DeviceFault("a tensor on a GPU is written to a file: move it to the CPU first")

    # the mode below has it all
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Check the devices of one operation, and compute it on the values."""
        kwargs = kwargs or {}
        if any(kind not in _KNOWN for kind in types):
            return NotImplemented  # another wrapper, which first has to say what it stands for
        if _Pretending.depth == 0:
            raise DeviceFault(f"{func}: a pretended tensor outside of pretended_cuda()")
        given: list[Tensor] = []
        held = _held(args, given)
        held_named = {name: _held(value, given) for name, value in kwargs.items()}
        if held_named.get("device") is not None:
            held_named["device"] = CPU  # where torch, for which all are there, asks for the other
        device = CUDA
        if any(type(tensor) is not Pretended for tensor in given):
            kinds = [(type(tensor) is Pretended, tensor) for tensor in given]
            device = common_device(func, kinds, (*args, *kwargs.values()))
            require_place(func, args, kwargs, device)
        if draws(func):
            require_no_draw(str(func), kwargs.get("generator"))
        result = func(*held, **held_named)
        return _wrapped(result, given) if device == CUDA else result


_KNOWN = frozenset({Pretended, nn.Parameter, Tensor})
_OWN = frozenset({"held", "_counted"})
"""Attributes of a pretended tensor that a copy has of its own."""


def _held(tree: Any, given: list[Tensor]) -> Any:
    """The arguments with values in place of wrappers; the tensors among them go to ``given``."""
    if isinstance(tree, Tensor):
        given.append(tree)
        return tree.held if isinstance(tree, Pretended) else tree
    if isinstance(tree, tuple):
        return tuple([_held(item, given) for item in tree])
    if isinstance(tree, list):
        return [_held(item, given) for item in tree]
    return tree


def _wrapped(result: Any, given: list[Tensor]) -> Any:
    """Results as wrappers; one that was written in place is the argument itself."""
    if isinstance(result, Tensor):
        for tensor in given:
            if isinstance(tensor, Pretended) and tensor.held is result:
                if result.shape != tensor.shape or result.stride() != tensor.stride():
                    raise NotImplementedError("an operation gave a pretended tensor another shape")
                return tensor
        return Pretended.of(result)
    if isinstance(result, (list, tuple)):
        return type(result)(_wrapped(item, given) for item in result)
    return result


class _Move(torch.autograd.Function):
    """A copy on the other device, through which gradients go back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        return _moved(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _moved(gradient)


def _moved(x: Tensor) -> Tensor:
    return x.held.clone() if isinstance(x, Pretended) else Pretended.of(x.detach().clone())


def _kind(device: torch.device | str | int | None) -> str:
    return CUDA.type if isinstance(device, int) else torch.device(device or CPU).type


def _move(x: Tensor, device: torch.device | str | int | None) -> Tensor:
    """``x`` on a device: itself where it is there, else a copy."""
    kind = _kind(device)
    if kind not in (CPU.type, CUDA.type):
        return (x.held if isinstance(x, Pretended) else x).to(kind)
    if isinstance(x, Pretended) == (kind == CUDA.type):
        return x
    moved: Tensor = _Move.apply(x)  # type: ignore[no-untyped-call]
    return moved


# ---- what Python calls ---------------------------------------------------------------------------


def _to(x: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
    if args and isinstance(args[0], Tensor):
        other, *args_left = args
        args, kwargs = (other.device, other.dtype, *args_left), kwargs
    elif isinstance(kwargs.get("other"), Tensor):
        other = kwargs.pop("other")
        args = (other.device, other.dtype, *args)
    device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
    moved = x if device is None else _move(x, device)
    dtype = x.dtype if dtype is None else dtype
    copy = copy and moved is x
    if layout is None:
        return moved.to(dtype, copy=copy)
    return moved.to(dtype, copy=copy, memory_format=layout)


def _cpu(x: Tensor, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
    return _move(x, CPU)


def _cuda(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _move(x, CUDA)


def _type_as(x: Tensor, other: Tensor) -> Tensor:
    return _move(x, other.device).to(other.dtype)


def _tolist(x: Tensor) -> Any:
    return (x.held if isinstance(x, Pretended) else x).tolist()


def _set_data(x: Tensor, value: Tensor) -> None:
    if not isinstance(x, Pretended) and not isinstance(value, Pretended):
        x.data = value
        return
    # x becomes the other kind of tensor and stays the same object, as a real one stays itself
    twin = Pretended.of(value.held.detach()) if isinstance(value, Pretended) else value.detach()
    if isinstance(x, nn.Parameter):
        twin = nn.Parameter(twin, requires_grad=False)
    twin.requires_grad_(x.requires_grad)
    torch.utils.swap_tensors(x, twin)  # type: ignore[no-untyped-call]


def _on_host_only(name: str) -> Callable[..., Any]:
    """A method of tensors that reads the memory of the CPU."""
    method = getattr(Tensor, name)

    def ask(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if isinstance(x, Pretended):
            raise DeviceFault(
                f"Tensor.{name} of a tensor on {CUDA}: its memory is not the CPU's; move it with "
                ".cpu() first"
            )
        return method(x, *args, **kwargs)

    return ask


def _new(function: Callable[..., Any]) -> Callable[..., Any]:
    """A constructor from values, which may be tensors on the GPU."""

    def make(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if isinstance(data, Pretended):
            made = data if function is not torch.tensor else data.detach().clone()
            made = made if kwargs.get("dtype") is None else made.to(kwargs["dtype"])
            return _move(made, CUDA if device is None else device)
        plain = tree_map(lambda v: v.item() if isinstance(v, Pretended) else v, data)
        return _move(function(plain, *args, **kwargs), device)

    return make


def _new_tensor(x: Tensor, data: Any, *, device: Any = None, **kwargs: Any) -> Tensor:
    dtype = kwargs.pop("dtype", None) or x.dtype
    return _move(torch.tensor(data, dtype=dtype, **kwargs), x.device if device is None else device)


def _generator_free(function: Callable[..., Any], device: Any, kwargs: dict[str, Any]) -> None:
    name = getattr(function, "__name__", "")
    if torch.device(device).type == CUDA.type and name in _DRAWING:
        require_no_draw(f"torch.{name}", kwargs.get("generator"))


_DRAWING = frozenset({"rand", "randn", "randint", "randperm", "normal"} | {
    "rand_like", "randn_like", "randint_like"
})  # fmt: skip

_CALLS: dict[Any, Callable[..., Any]] = {
    Tensor.to: _to,
    Tensor.cpu: _cpu,
    Tensor.cuda: _cuda,
    Tensor.type_as: _type_as,
    Tensor.tolist: _tolist,
    Tensor.new_tensor: _new_tensor,
    Tensor.data.__set__: _set_data,  # type: ignore[attr-defined]
    torch.tensor: _new(torch.tensor),
    torch.as_tensor: _new(torch.as_tensor),
    torch.asarray: _new(torch.asarray),
    **{
        getattr(Tensor, name): _on_host_only(name)
        for name in (
            "numpy",
            "__array__",
            "data_ptr",
            "storage",
            "__dlpack__",
            "share_memory_",
        )
    },
}


class _Pretending(TorchFunctionMode):
    """Sees every function that Python calls while the device is there."""

    depth = 0
    memory: DeviceMemory | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        call = _CALLS.get(func)
        if call is not None:
            kind = type(args[0]) if args else Tensor
            if issubclass(kind, Tensor) and kind not in _KNOWN:
                with self:  # another wrapper's rule first, which asks again with what is in it
                    return kind.__torch_function__(func, (kind,), args, kwargs)
            return call(*args, **kwargs)
        device = kwargs.get("device")
        if device is None or _kind(device) not in (CPU.type, CUDA.type):
            return func(*args, **kwargs)
        _generator_free(func, device, kwargs)
        rest = {n: v for n, v in kwargs.items() if n != "requires_grad"} | {"device": CPU}
        learns = bool(kwargs.get("requires_grad"))
        with torch.no_grad():  # a constructor: what it makes is a leaf wherever it goes
            made = func(*args, **rest)
        return _move(made, device).requires_grad_(learns) if isinstance(made, Tensor) else made


@contextmanager
def pretended_cuda() -> Iterator[DeviceMemory]:
    """Let ``cuda`` be a device inside the block, whatever the machine has.

    Tensors that were moved there are of no use outside of it.

    Yields:
        What counts the device's bytes.

    Raises:
        DeviceFault: from inside, where an operation mixes devices, where memory of the GPU is read
            as if it were the CPU's, or where random numbers are drawn on the GPU.
    """
    run, start_cuda = threading.Thread.run, torch.cuda._lazy_init
    outer, memory = _Pretending.memory, DeviceMemory()

    def run_there(thread: threading.Thread) -> None:
        with _Pretending():  # a mode of torch is a thread's own
            run(thread)

    _Pretending.depth += 1
    _Pretending.memory = memory
    threading.Thread.run = run_there  # type: ignore[method-assign, assignment]
    if not torch.cuda.is_available():  # torch looks for a driver wherever a device is named
        torch.cuda._lazy_init = lambda: None
    try:
        with _Pretending():
            yield memory
    finally:
        _Pretending.memory = outer
        threading.Thread.run = run  # type: ignore[method-assign]
        torch.cuda._lazy_init = start_cuda
        _Pretending.depth -= 1
