"""The state of a quantized model: tensors by module, and a refusal of states that do not fit."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.quantizers.part import under


def by_module(state: Mapping[str, Tensor], prefix: str) -> dict[str, dict[str, Tensor]]:
    """Tensors under ``prefix`` by the module path that their names begin with."""
    states: dict[str, dict[str, Tensor]] = {}
    for name, tensor in under(state, prefix).items():
        path, _, leaf = name.partition("/")
        states.setdefault(path, {})[leaf] = tensor
    return states


def require_same(kind: str, ours: Collection[str], theirs: Collection[str]) -> None:
    """Refuse a state of other modules than the model quantizes.

    Args:
        kind: the kind of module, for the message.
        ours: paths that the state has.
        theirs: paths that the model has.

    Raises:
        BrokenModel: naming the first one, and how many there are.
    """
    lost = [name for name in theirs if name not in ours]
    unknown = [name for name in ours if name not in theirs]
    for names, what in (
        (unknown, "has {}, which the model does not quantize"),
        (lost, "lacks {}, which the model quantizes"),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise BrokenModel(
                f"quantized state {what.format(f'{kind} {names[0]}{more}')}: it was made under "
                "another policy, quantize again"
            )


def require_tensors(ours: Collection[str], theirs: Collection[str]) -> None:
    """Refuse a state with tensors too few or too many.

    Args:
        ours: names that the state has.
        theirs: names of the tensors of layers, attention products and tables that it must have.

    Raises:
        BrokenModel: naming the first one.
    """
    free = ("float:", "schedule")
    unknown = sorted(n for n in ours if n not in theirs and not n.startswith(free))
    lost = sorted(n for n in theirs if n not in ours)
    for names, what in ((unknown, "has an unknown tensor"), (lost, "lacks the tensor")):
        if names:
            raise BrokenModel(f"quantized state {what} {names[0]}: quantize again")


def changed_tensors(
    module: nn.Module, original: nn.Module, outside: Collection[str]
) -> dict[str, Tensor]:
    """Floating-point tensors of a network that are no longer those of the original.

    Args:
        module: the network.
        original: the network that it is a copy of.
        outside: paths of submodules to leave out, which keep a state themselves.
    """
    before = original.state_dict()
    return {
        name: value
        for name, value in module.state_dict().items()
        if not any(name.startswith(f"{path}.") for path in outside)
        and not (name in before and torch.equal(value, before[name]))
    }


def put_tensor(root: nn.Module, name: str, value: Tensor) -> None:
    """Give a floating-point tensor its changed value, also one that a fold added (a norm's bias).

    Raises:
        BrokenModel: the network has no such place, or another shape there.
    """
    path, _, leaf = name.rpartition(".")
    try:
        owner = root.get_submodule(path)
        old = getattr(owner, leaf)
    except AttributeError:
        raise BrokenModel(f"quantized state does not fit the model: it has no {name}") from None
    if old is not None and old.shape != value.shape:
        raise BrokenModel(
            f"quantized state does not fit the model: {name} is {tuple(old.shape)}, the state's "
            f"is {tuple(value.shape)}"
        )
    if isinstance(old, nn.Parameter) or leaf in owner._parameters:
        owner.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
    else:
        owner.register_buffer(leaf, value)
