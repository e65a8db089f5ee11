"""Forward passes over several chunks of points that pause together at every block.

Each chunk's pass runs in a thread of its own, but only one of them runs at a time: a thread is used
as a coroutine that can pause in the middle of a network it knows nothing of. So every block's
prefix is computed once, whatever the number of blocks, and between blocks only the network's own
streams are in memory. Those may live in files, see ``PausedPasses``.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.trace.blocks import Block
from quantarena.methods.techniques.learn.block_rows import CallArguments, mapped
from quantarena.methods.techniques.learn.paused_pass import PausedPass


class PausedPasses:
    """One forward pass for each chunk of points, all paused at the same block of one network.

    Args:
        model: the network.
        blocks: where to pause, in execution order; each at its first call.
        chunks: the points.
        state: makes the context that sets the quantizers while the passes run; it is entered anew
            after every pause.
        folder: where streams between blocks live in files; None keeps them in memory.
        pause_after: pause after each block too, so that its outputs can be read.
    """

    def __init__(
        self,
        model: QuantizedModel,
        blocks: Sequence[Block],
        chunks: Sequence[CalibrationSet],
        state: Callable[[], AbstractContextManager[None]],
        folder: Path | None = None,
        *,
        pause_after: bool = False,
    ) -> None:
        self._clock, self._chunks = model.clock, list(chunks)
        self._state, self._folder, self._pause_after = state, folder, pause_after
        self._inside_block = False
        self._handles: list[Any] = []
        names = [block.name for block in blocks]
        module = model.module
        for name in names:
            self._hook(module.get_submodule(name), name)
        if folder is not None:  # streams also come out of the modules around blocks
            for name in _around(names):
                handle = module.get_submodule(name).register_forward_hook(self._to_file)
                self._handles.append(handle)
        self._passes = [PausedPass(partial(chunk.call, module)) for chunk in self._chunks]
        self._by_thread = {each.thread.ident: each for each in self._passes}

    def _hook(self, module: nn.Module, name: str) -> None:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            current = self._by_thread.get(threading.get_ident())
            if current is not None and name not in current.finished:
                current.pause((args, kwargs))

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            current = self._by_thread.get(threading.get_ident())
            if current is None:
                return None
            replaced = self._to_file(module, args, output)
            if name not in current.finished:
                current.finished.add(name)
                if self._pause_after:
                    current.pause(output if replaced is None else replaced)
            return replaced

        self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(module.register_forward_hook(after))

    def _to_file(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Move a stream's memory into a file; None where it stays as it is, as on a GPU."""
        ours = threading.get_ident() in self._by_thread
        if self._folder is None or not ours or not isinstance(output, Tensor) or not output.is_cpu:
            return None
        return mapped(output.shape, output.dtype, self._folder).copy_(output)

    def enter_block(self) -> list[CallArguments]:
        """Run on to the next block; returns its arguments, one item for each chunk."""
        if self._pause_after and self._inside_block:
            self.finish_block()
        self._inside_block = True
        return self._resume()

    def finish_block(self) -> list[Any]:
        """Run through the block; returns its outputs, chunk by chunk. Needs ``pause_after``."""
        self._inside_block = False
        return self._resume()

    def _resume(self) -> list[Any]:
        for each, chunk in zip(self._passes, self._chunks, strict=True):
            with self._state(), self._clock.at(chunk.step):
                each.resume()
        return [each.paused_with for each in self._passes]

    def close(self) -> None:
        """End all passes and remove the hooks."""
        for each in self._passes:
            each.abandon()
        for handle in self._handles:
            handle.remove()


def _around(names: Sequence[str]) -> set[str]:
    """Paths of the modules that hold blocks, without the network itself."""
    parts = [name.split(".") for name in names]
    return {".".join(path[:k]) for path in parts for k in range(1, len(path))}
