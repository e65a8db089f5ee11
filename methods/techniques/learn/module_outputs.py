"""Outputs of chosen modules during a forward pass."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from quantarena.methods.core.errors import Unsupported


@contextmanager
def module_outputs(root: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect what the named modules return in the passes inside the block.

    Args:
        root: network that holds the modules.
        paths: their paths in ``root``.

    Yields:
        The outputs by path, with their graph; a later pass overwrites an earlier one. Of a module
        that returns a tuple this is the first item.

    Raises:
        Unsupported: from inside the block, where a module returns no tensor.
    """
    outputs: dict[str, Tensor] = {}

    def note(path: str, module: nn.Module, args: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if not isinstance(first, Tensor):
            raise Unsupported(f"{path} gives a {type(first).__name__}, features are tensors")
        outputs[path] = first

    handles = [root.get_submodule(p).register_forward_hook(partial(note, p)) for p in paths]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
