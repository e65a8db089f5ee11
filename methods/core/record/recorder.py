"""Records what a sampler feeds a network, to be used by all methods."""

import inspect
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.clock import CallClock, CallSchedule
from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.nested import map_leaves
from quantarena.methods.core.record import tensor_file
from quantarena.methods.core.record.announce import can_announce, counting
from quantarena.methods.core.record.assembly import (
    NetworkCall,
    StoredTensor,
    assemble,
    by_sampler_call,
)
from quantarena.methods.core.record.features import FeatureTap, require_rows
from quantarena.methods.core.record.spill import Spool
from quantarena.methods.core.record.tensor_file import Column
from quantarena.methods.core.record.trajectory import Trajectory, build

MEMORY = 1 << 30
"""Bytes of memory that a recording may use; a larger one goes to disk."""


@contextmanager
def recording(
    denoiser: nn.Module,
    scheduler: Any = None,
    *,
    tap: FeatureTap | None = None,
    memory: int = MEMORY,
    folder: Path | None = None,
) -> Iterator["Recorder"]:
    """Record every call of ``denoiser`` made inside the block.

    The sampler may be run several times (batches of images), always with the same timesteps.

    Args:
        denoiser: the network. Its first parameter is the sample, and one is called ``timestep``.
        scheduler: announces sampler calls, see ``record.announce``; ``set_timesteps`` has to be
            called inside the block. Without a scheduler, or with one that cannot announce, calls
            are told apart by their timesteps, and the batch of one sampler call must not be split.
        tap: features to record; needs the scheduler.
        memory: bytes of memory to use; a larger recording goes to disk.
        folder: folder on disk; None for that of temporary files.

    Yields:
        The recorder; calling it after the runs gives the trajectory.

    Raises:
        BrokenModel: from inside the block, where a call of the network cannot be repeated.
    """
    if not can_announce(scheduler):
        scheduler = None
    if tap is not None and scheduler is None:
        raise ValueError("features need the scheduler: recording(denoiser, scheduler, tap=...)")
    recorder = Recorder(denoiser, scheduler, tap, Spool(memory // 2, folder), folder)
    with ExitStack() as stack:
        if scheduler is not None:
            recorder.ran = stack.enter_context(counting(scheduler, recorder.clock))
        handle = denoiser.register_forward_pre_hook(recorder.note, with_kwargs=True)
        stack.callback(handle.remove)
        if tap is not None:
            stack.enter_context(tap.watching(denoiser, recorder.note_feature))
        yield recorder


class Recorder:
    """The calls recorded so far; made by ``recording``."""

    def __init__(
        self,
        denoiser: nn.Module,
        scheduler: Any,
        tap: FeatureTap | None,
        spool: Spool,
        folder: Path | None,
    ) -> None:
        self.clock = CallClock()
        self.ran: Callable[[], CallSchedule | None] = lambda: None
        """Says which calls the last run has made; ``recording`` sets it."""
        self._scheduler, self._tap, self._spool, self._folder = scheduler, tap, spool, folder
        self._calls: list[NetworkCall] = []
        self._taken: dict[int, int] = {}
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = inspect.signature(denoiser.forward).parameters.values()
        self._names = [p.name for p in parameters if p.kind in kinds]

    def note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record one call of the network."""
        index = None
        if self._scheduler is not None:
            index = self._announced()
        if len(args) > len(self._names):
            raise BrokenModel(f"{type(module).__name__} takes inputs that have no name")
        named = dict(zip(self._names, args, strict=False)) | kwargs
        named.pop("return_dict", None)
        sample, timestep = named.pop(self._names[0], None), named.pop("timestep", None)
        if not isinstance(sample, Tensor) or timestep is None:
            raise BrokenModel(
                f"{type(module).__name__} was not given a tensor {self._names[0]!r} and a "
                "'timestep': its calls cannot be recorded"
            )
        times = torch.as_tensor(timestep).detach().cpu().reshape(-1)
        if bool((times != times[0]).any()):
            raise BrokenModel("the sampler gives rows of one call different timesteps")
        rows = sample.shape[0]

        def store(path: str, leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                by_row = leaf.dim() > 0 and leaf.shape[0] == rows
                return StoredTensor(self._spool.put(leaf), by_row)
            if leaf is None or isinstance(leaf, bool | int | float | str):
                return leaf
            raise BrokenModel(
                f"network input {path} is a {type(leaf).__name__}: only tensors, numbers, strings "
                "and None can be given again"
            )

        inputs = map_leaves(store, named)
        number = self._spool.put(sample)
        self._calls.append(NetworkCall(index, rows, times[:1].clone(), number, inputs))

    def note_feature(self, value: Tensor) -> None:
        """Record the features of the tapped module's first run in each call of the network."""
        assert self._tap is not None
        call = self._calls[-1]
        assert call.index is not None
        left = self._tap.rows - self._taken.get(call.index, 0)
        if call.feature is None and left > 0:
            part = require_rows(value, call.rows, self._tap)[:left]
            call.feature = self._spool.put(part)
            self._taken[call.index] = self._taken.get(call.index, 0) + len(part)

    def _announced(self) -> int:
        if not self.clock.is_set:
            raise BrokenModel(
                "the network was called outside of the sampler's steps: set_timesteps has to be "
                "called inside the recording, before the first call"
            )
        assert isinstance(self.clock.index, int)
        return self.clock.index

    @property
    def rows(self) -> int:
        """Points recorded at each sampler call: images times guidance halves."""
        return sum(call.rows for call in by_sampler_call(self._calls, self.ran())[0])

    def __call__(self, halves: int = 1) -> Trajectory:
        """The trajectory; a mapped file where it is larger than the allowed memory.

        Args:
            halves: guidance halves of every batch, one after the other.

        Raises:
            BrokenModel: nothing was recorded, or runs differ in more than their values.
            OSError: the disk is full.
        """
        columns, notes = self._assemble(halves)
        if not self._spool.spilled and sum(c.bytes for c in columns.values()) <= self._spool.limit:
            return build({name: column.tensor() for name, column in columns.items()}, notes)
        with tempfile.TemporaryDirectory(dir=self._folder, ignore_cleanup_errors=True) as folder:
            file = Path(folder) / "trajectory.safetensors"
            tensor_file.write(file, columns, notes)
            return Trajectory.load(file)  # the mapped file outlives its name

    def save(self, path: Path, halves: int = 1) -> None:
        """Write the trajectory without holding it in memory; ``Trajectory.load`` reads it.

        Raises:
            BrokenModel, OSError: as of ``__call__``.
        """
        tensor_file.write(path, *self._assemble(halves))

    def _assemble(self, halves: int) -> tuple[dict[str, Column], dict[str, str]]:
        steps = by_sampler_call(self._calls, self.ran())
        if self._tap is not None and steps[0] and steps[0][0].feature is None:
            raise BrokenModel(f"{self._tap.module} did not run: no features of it")
        return assemble(steps, self._spool, halves, self.ran())
