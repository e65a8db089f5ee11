"""Record what any sampler feeds a network, once."""

import inspect
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.nested import map_leaves
from quantarena.methods.core.record import tensor_file
from quantarena.methods.core.record.announce import announcing, can_announce, schedule_of
from quantarena.methods.core.record.assembly import Call, Kept, assemble, by_step
from quantarena.methods.core.record.features import FeatureTap, require_rows
from quantarena.methods.core.record.spill import Spool
from quantarena.methods.core.record.tensor_file import Column
from quantarena.methods.core.record.trajectory import Trajectory, build

MEMORY = 1 << 30
"""Bytes of memory that a recording may take; beyond, it goes to disk."""


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
        scheduler: announces sampler calls, see ``core.announce``; ``set_timesteps`` has to be
            called inside the block. Without one, or with one that cannot announce, calls are told
            apart by their timesteps, and a batch must not be split within a step.
        tap: features to keep; needs the scheduler.
        memory: bytes of memory to take; what goes beyond is kept on disk.
        folder: where on disk; None for the system's temporary files.

    Yields:
        To be called, once the runs are done, for the trajectory.

    Raises:
        BrokenModel: from inside the block, where the network is called in a way that cannot be
            repeated: one line.
    """
    if not can_announce(scheduler):
        scheduler = None
    if tap is not None and scheduler is None:
        raise ValueError("features need the scheduler: recording(denoiser, scheduler, tap=...)")
    recorder = Recorder(denoiser, scheduler, tap, Spool(memory // 2, folder), folder)
    with ExitStack() as stack:
        if scheduler is not None:
            stack.enter_context(announcing(scheduler, recorder.clock))
        handle = denoiser.register_forward_pre_hook(recorder.note, with_kwargs=True)
        stack.callback(handle.remove)
        if tap is not None:
            stack.enter_context(tap.watching(denoiser, recorder.note_feature))
        yield recorder


class Recorder:
    """What has been recorded so far; made by ``recording``."""

    def __init__(
        self,
        denoiser: nn.Module,
        scheduler: Any,
        tap: FeatureTap | None,
        spool: Spool,
        folder: Path | None,
    ) -> None:
        self.clock = CallClock()
        self._scheduler, self._tap, self._spool, self._folder = scheduler, tap, spool, folder
        self._calls: list[Call] = []
        self._taken: dict[int, int] = {}
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = inspect.signature(denoiser.forward).parameters.values()
        self._names = [p.name for p in parameters if p.kind in kinds]

    def note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """One call of the network."""
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

        def keep(path: str, leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                by_row = leaf.dim() > 0 and leaf.shape[0] == rows
                return Kept(self._spool.put(leaf), by_row)
            if leaf is None or isinstance(leaf, bool | int | float | str):
                return leaf
            raise BrokenModel(
                f"network input {path} is a {type(leaf).__name__}: only tensors, numbers, strings "
                "and None can be given again"
            )

        inputs = map_leaves(keep, named)
        number = self._spool.put(sample)
        self._calls.append(Call(index, rows, times[:1].clone(), number, inputs))

    def note_feature(self, value: Tensor) -> None:
        """The tapped module ran; its first run in each call of the network counts."""
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
        if self.clock.schedule is None:  # later runs must have the same: the clock sees to it
            self.clock.schedule = schedule_of(self._scheduler)
        assert isinstance(self.clock.index, int)
        return self.clock.index

    @property
    def rows(self) -> int:
        """Points at each call so far: images times guidance halves."""
        return sum(call.rows for call in by_step(self._calls, self.clock.schedule)[0])

    def __call__(self, halves: int = 1) -> Trajectory:
        """The trajectory; on disk, and mapped, where it is larger than the memory allowed.

        Args:
            halves: guidance halves that every batch is made of, one after the other.

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
            return Trajectory.load(file)  # mapped: it outlives its name

    def save(self, path: Path, halves: int = 1) -> None:
        """Write the trajectory without holding it in memory, for ``Trajectory.load``.

        Raises:
            BrokenModel, OSError: as when called.
        """
        tensor_file.write(path, *self._assemble(halves))

    def _assemble(self, halves: int) -> tuple[dict[str, Column], dict[str, str]]:
        steps = by_step(self._calls, self.clock.schedule)
        if self._tap is not None and steps[0] and steps[0][0].feature is None:
            raise BrokenModel(f"{self._tap.module} did not run: no features of it")
        return assemble(steps, self._spool, halves, self.clock.schedule)
