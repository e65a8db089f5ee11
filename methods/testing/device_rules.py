"""Which devices may meet in one operation of torch: the rules of a real CUDA device.

They are those of ``FakeTensorMode``, whose own function decides about mixed operands. Where CUDA is
stricter (an index on the GPU into a tensor on the CPU, a generator of another device, a result that
cannot go where it was asked to) its rule is added.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorDeviceMismatchError, FakeTensorMode

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")

_aten = torch.ops.aten
_COPIES = frozenset(
    {
        _aten.copy_.default,
        _aten.copy.default,
        _aten._to_copy.default,
        _aten.slice_scatter.default,
        _aten.diagonal_scatter.default,
    }
)
"""Operations that take a second tensor from wherever it is."""
_INDEXING = frozenset({_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default})
"""Operations whose index tensors may also lie on the CPU."""
_DRAWS_IF_ASKED = frozenset(
    {"_fused_sdp_choice", "_scaled_dot_product_flash_attention_for_cpu", "native_dropout"}
)
"""Operations that torch marks as random, and that draw nothing in evaluation."""


class DeviceFault(RuntimeError):
    """What a real CUDA device would refuse, or what would make its numbers another device's."""


def common_device(
    func: OpOverload, tensors: Sequence[tuple[bool, Tensor]], args: Sequence[Any]
) -> torch.device:
    """The device that an operation runs on.

    Args:
        func: the operation.
        tensors: for each tensor among the arguments whether it is on the GPU, and a value.
        args: the arguments as given.

    Raises:
        DeviceFault: the tensors are on several devices, and the operation does not take that.
    """
    first = CUDA if tensors[0][0] else CPU
    if func in _COPIES or all(on_cuda == tensors[0][0] for on_cuda, _ in tensors):
        return first
    if func in _INDEXING:
        return _indexed(func, tensors, args)
    try:
        found, _ = FakeTensor._find_common_device(
            func, [_stand_in(on_cuda, value.dim() == 0) for on_cuda, value in tensors]
        )
    except FakeTensorDeviceMismatchError as error:
        raise DeviceFault(f"{func}: {error}") from None
    return found


def _indexed(
    func: OpOverload, tensors: Sequence[tuple[bool, Tensor]], args: Sequence[Any]
) -> torch.device:
    """Index tensors lie on the CPU or beside the tensor; what is put there beside it, or is ()."""
    indices = sum(isinstance(index, Tensor) for index in args[1])
    owner, among = tensors[0][0], tensors[1 : 1 + indices]
    if not owner and any(on_cuda for on_cuda, _ in among):
        raise DeviceFault(f"{func}: an index on {CUDA} into a tensor on {CPU}")
    for on_cuda, value in tensors[1 + indices :]:
        if on_cuda != owner and value.dim():
            raise DeviceFault(f"{func}: puts values on another device than the tensor")
    return CUDA if owner else CPU


def require_place(
    func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device
) -> None:
    """Refuse an operation that would write a result to a tensor on another device."""
    for position, name in written(func):
        target = args[position] if position < len(args) else kwargs.get(name)
        if isinstance(target, Tensor) and target.device.type != device.type:
            raise DeviceFault(
                f"{func}: writes a result of {device} to a tensor on {target.device.type}"
            )


@cache
def written(func: OpOverload) -> tuple[tuple[int, str], ...]:
    """Position and name of the arguments that an operation writes to."""
    arguments = func._schema.arguments
    return tuple(
        (position, argument.name)
        for position, argument in enumerate(arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


@cache
def draws(func: OpOverload) -> bool:
    """Whether an operation draws random numbers."""
    name = func._schema.name.partition("::")[2]
    return torch.Tag.nondeterministic_seeded in func.tags and name not in _DRAWS_IF_ASKED


def require_no_draw(name: str, generator: torch.Generator | None) -> None:
    """Refuse random numbers on the GPU: its generator has others than the CPU's.

    Raises:
        DeviceFault: always; what it says depends on whether a generator was given.
    """
    if generator is not None and generator.device.type != CUDA.type:
        raise DeviceFault(
            f"{name}: expected a 'cuda' device type for generator but found "
            f"'{generator.device.type}': draw on the CPU and move the numbers"
        )
    raise DeviceFault(
        f"{name} draws on {CUDA}, whose generator gives other numbers than the CPU's: draw on the "
        "CPU and move the numbers"
    )


@cache
def _stand_in(on_cuda: bool, scalar: bool) -> Tensor:
    """A fake tensor of that device: torch's rule looks at nothing else of it."""
    shape = () if scalar else (1,)
    fake: Tensor = FakeTensor(  # type: ignore[no-untyped-call]
        _fake_mode(), torch.empty(shape, device="meta"), CUDA if on_cuda else CPU
    )
    return fake


@cache
def _fake_mode() -> FakeTensorMode:
    return FakeTensorMode()
