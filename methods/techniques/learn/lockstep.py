"""Forward passes over several chunks of points that stop together at every block.

Each chunk travels in a thread of its own, but only one of them runs at a time: a thread is used as
a coroutine that can stop in the middle of a network it knows nothing of. So every block's prefix is
computed once, whatever the number of blocks, and what is alive between blocks is the network's own
streams. Those can live in files, see ``PausedPasses``.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.trace.blocks import Block
from quantarena.methods.techniques.learn.block_rows import Given, mapped


class _Abandoned(BaseException):
    """Ends a traveller whose remaining way nobody needs."""


class _Traveller:
    """One forward pass that stops where it is told to."""

    def __init__(self, journey: Callable[[], Any]) -> None:
        self.held: Any = None  # what it stopped with
        self.visited: set[str] = set()
        self._journey = journey
        self._error: BaseException | None = None
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._abandoned = self._done = False
        self.thread = threading.Thread(target=self._travel, daemon=True)
        self.thread.start()

    def _travel(self) -> None:
        self._go.acquire()
        try:
            if not self._abandoned:
                with torch.no_grad():
                    self._journey()
        except _Abandoned:
            pass
        except BaseException as error:  # raised again where the convoy was asked to go on
            self._error = error
        self._done = True
        self._stopped.release()

    def advance(self) -> None:
        """Travel to the next stop or the end."""
        self._go.release()
        self._stopped.acquire()
        if self._error is not None:
            raise self._error

    def stop(self, held: Any) -> None:
        """In its own thread: wait until told to go on."""
        self.held = held
        self._stopped.release()
        self._go.acquire()
        self.held = None
        if self._abandoned:
            raise _Abandoned

    def abandon(self) -> None:
        """End it."""
        if not self._done:
            self._abandoned = True
            self._go.release()
            self.thread.join()


class PausedPasses:
    """Chunks of points on their way through one network, stopping at its blocks.

    Args:
        model: the network.
        blocks: where to stop, in execution order; each at its first call.
        chunks: the points.
        state: how the quantizers are set while it travels, a new context for every leg.
        folder: where streams between blocks live in files; None keeps them in memory.
        departures: also stop when blocks are left.
    """

    def __init__(
        self,
        model: QuantizedModel,
        blocks: Sequence[Block],
        chunks: Sequence[CalibrationSet],
        state: Callable[[], AbstractContextManager[None]],
        folder: Path | None = None,
        *,
        departures: bool = False,
    ) -> None:
        self._clock, self._chunks = model.clock, list(chunks)
        self._state, self._folder, self._departures = state, folder, departures
        self._arrived = False
        self._names = [block.name for block in blocks]
        self._handles: list[Any] = []
        module = model.module
        for name in self._names:
            self._watch(module.get_submodule(name), name)
        if folder is not None:  # streams also come out of the modules around blocks
            for name in _around(self._names):
                handle = module.get_submodule(name).register_forward_hook(self._spill)
                self._handles.append(handle)
        self._travellers = [_Traveller(partial(chunk.call, module)) for chunk in self._chunks]
        self._by_thread = {t.thread.ident: t for t in self._travellers}

    def _watch(self, module: nn.Module, name: str) -> None:
        def arrive(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            traveller = self._by_thread.get(threading.get_ident())
            if traveller is not None and name not in traveller.visited:
                traveller.stop((args, kwargs))

        def leave(module: nn.Module, args: Any, output: Any) -> Any:
            traveller = self._by_thread.get(threading.get_ident())
            if traveller is None:
                return None
            kept = self._spill(module, args, output)
            if name not in traveller.visited:
                traveller.visited.add(name)
                if self._departures:
                    traveller.stop(output if kept is None else kept)
            return kept

        self._handles.append(module.register_forward_pre_hook(arrive, with_kwargs=True))
        self._handles.append(module.register_forward_hook(leave))

    def _spill(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Let a stream's memory be a file from here on."""
        ours = threading.get_ident() in self._by_thread
        if self._folder is None or not ours or not isinstance(output, Tensor):
            return None
        kept = mapped(output.shape, output.dtype, self._folder)
        return kept.copy_(output)

    def arrive(self) -> list[Given]:
        """Go on to the next block; its arguments, chunk by chunk."""
        if self._departures and self._arrived:
            self.leave()
        self._arrived = True
        return self._advance()

    def leave(self) -> list[Any]:
        """Go through the block; its outputs, chunk by chunk. Only with ``departures``."""
        self._arrived = False
        return self._advance()

    def _advance(self) -> list[Any]:
        for traveller, chunk in zip(self._travellers, self._chunks, strict=True):
            with self._state(), self._clock.at(chunk.step):
                traveller.advance()
        return [traveller.held for traveller in self._travellers]

    def close(self) -> None:
        """Stop travelling and take the hooks away."""
        for traveller in self._travellers:
            traveller.abandon()
        for handle in self._handles:
            handle.remove()


def _around(names: Sequence[str]) -> set[str]:
    """The modules that hold blocks, the network itself excepted."""
    parts = [name.split(".") for name in names]
    return {".".join(path[:k]) for path in parts for k in range(1, len(path))}
