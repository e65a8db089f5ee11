"""What diffusers does with a network's float weights, which a packed network refuses in one line.

``save_pretrained`` would write a folder that loads without a word and draws noise;
``fuse_qkv_projections`` would put projections side by side that are no matrices of numbers. Every
pipeline around the network comes here too, also one that a user builds from its components.
"""

from collections.abc import Callable
from typing import Any, NoReturn

from torch import nn

from quantarena.methods.core.errors import UserError


def refuse_float_tools(module: nn.Module) -> nn.Module:
    """Give a packed network, and every module in it, the refusals; copies of it keep them.

    Args:
        module: the network; changed in place. Its own loading and saving is ``checkpoint``'s.
    """
    for part in module.modules():
        for name, refusal in _REFUSALS.items():
            if hasattr(type(part), name):
                setattr(part, name, refusal)
    return module


def _no_saving(*args: Any, **kwargs: Any) -> NoReturn:
    raise UserError(
        "a packed network cannot be saved by diffusers: copy the folder that it was loaded from, "
        "or write another one with quantarena quantize"
    )


def _no_fusing(*args: Any, **kwargs: Any) -> NoReturn:
    raise UserError(
        "a packed pipeline's projections cannot be fused: their integers are already packed, each "
        "projection with its own scales"
    )


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Undoing what was refused: diffusers would look for what it kept aside."""


_REFUSALS: dict[str, Callable[..., None]] = {
    "save_pretrained": _no_saving,
    "fuse_qkv_projections": _no_fusing,
    "fuse_projections": _no_fusing,
    "unfuse_qkv_projections": _nothing,
}
"""By the method's name, what a packed network does instead."""
