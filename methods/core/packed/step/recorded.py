"""A packed network whose step is recorded once and replayed, where a recording holds."""

import copy
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.kernels import native
from quantarena.methods.core.kernels.step_abi import step_library
from quantarena.methods.core.packed.pack import PackedModel
from quantarena.methods.core.packed.parity import PARITY_LIMIT
from quantarena.methods.core.packed.step.guards import (
    TRAINING,
    Constants,
    NetworkState,
    entries,
    key_of,
    surroundings,
    tables_alone,
)
from quantarena.methods.core.packed.step.plan import Plan, ReplayFailed
from quantarena.methods.core.packed.step.simplify import simplify
from quantarena.methods.core.packed.step.steps import lower
from quantarena.methods.core.packed.step.trace import NotRecordable, Recorder, Trace
from quantarena.methods.core.packed.step.twins import Signature, apart
from quantarena.methods.core.packed.step.verify import Agreement, verify
from quantarena.methods.core.record.points import CalibrationSet

MOST_PLANS = 32
"""Recordings that a network keeps; a call of one more kind runs as it is written."""
LEARNING = 8
"""Calls before the first recording: by then ``nodes.fusion`` knows what follows what."""


@dataclass(slots=True)
class _Recording:
    plan: Plan
    constants: Constants


@dataclass(slots=True)
class Told:
    """What a recorded step says of itself.

    Attributes:
        replayed: calls that were replayed.
        eager: calls that ran as they are written.
        reason: why the last of these did; empty where none did since the last recording.
        prepare_seconds: wall time of recordings.
    """

    replayed: int = 0
    eager: int = 0
    reason: str = ""
    prepare_seconds: float = 0.0


class RecordedStep(nn.Module):
    """Runs a network's recorded step; whatever a recording cannot hold runs as it is written.

    Each call is compared with what was recorded: shapes, strides, types, constants, the network's
    parts and hooks, the place of its weights. A recording is made on the first call of a kind. It
    is made twice, on other values, and dropped where the two differ.

    Several threads may call it at once: each has memory of its own.

    Args:
        network: a packed network on the CPU.
        clock: its clock.
        exact: leave operations to torch that kernels compute with other last bits, so that results
            equal those of the network bit for bit.
        limit: largest number of recordings.

    Attributes:
        told: what happened so far.
    """

    def __init__(
        self,
        network: nn.Module,
        clock: CallClock | None = None,
        *,
        exact: bool = False,
        limit: int = MOST_PLANS,
    ) -> None:
        super().__init__()
        self.network = network
        self.exact = exact
        self.told = Told()
        self._clock, self._limit = clock or CallClock(), limit
        self._lock = threading.RLock()
        self._forget()

    def _forget(self) -> None:
        self._state: NetworkState | None = None
        self._shared, self._entries = False, 0
        self._recordings: dict[Any, _Recording | str] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "RecordedStep":
        """A copy of the network with nothing recorded, on the copied clock if that is copied."""
        network = copy.deepcopy(self.network, memo)
        clock = memo.get(id(self._clock), self._clock)
        return RecordedStep(network, clock, exact=self.exact, limit=self._limit)

    def __getattr__(self, name: str) -> Any:
        """What this module lacks is the network's: pipelines read ``config`` and ``dtype``."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            network = self.__dict__.get("_modules", {}).get("network")
            if network is None:
                raise
            return getattr(network, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's result."""
        tensors: list[Tensor] = []
        found = self._ready(args, kwargs, tensors)
        if isinstance(found, _Recording):
            try:
                result = found.plan(tensors, self._call())
            except ReplayFailed as error:
                found = str(error)
            else:
                self.told.replayed += 1
                return result
        self.told.eager += 1
        self.told.reason = found
        return self.network(*args, **kwargs)

    @torch.no_grad()
    def plan(self, *args: Any, **kwargs: Any) -> Plan:
        """The plan of a call, recorded if need be.

        Raises:
            NotRecordable: it has none.
        """
        found = self._ready(args, kwargs, [])
        if isinstance(found, str):
            raise NotRecordable(found)
        return found.plan

    @torch.no_grad()
    def agreement(self, *args: Any, **kwargs: Any) -> Agreement:
        """How the recording of a call compares with the network.

        Raises:
            NotRecordable: it has none.
        """
        tensors: list[Tensor] = []
        found = self._ready(args, kwargs, tensors)
        if isinstance(found, str):
            raise NotRecordable(found)
        return verify(found.plan, tensors, self._call(), self.network(*args, **kwargs))

    def _call(self) -> int:
        """The sampler call; -1 where none is announced."""
        index = self._clock._index
        if isinstance(index, Tensor):
            return int(index[0])
        return -1 if index is None else index

    def _ready(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]
    ) -> _Recording | str:
        """The recording for a call, or why there is none."""
        if reason := surroundings():
            return reason
        if self._state is not None and (reason := self._state.changed()):
            if reason == TRAINING:
                return reason
            with self._lock:
                self._forget()  # what was recorded belongs to another network
        index, call = self._clock._index, self._call()
        if isinstance(index, Tensor) and bool((index != call).any()):
            return "rows of one call are at different sampler calls"
        if self._entries and not 0 <= call < self._entries:
            return "no sampler call is announced, or one that the tables have not"
        try:
            arguments = key_of(args, kwargs, tensors)
        except TypeError as error:
            return str(error)
        found = self._found(arguments, call)
        if found is None:
            with self._lock:
                found = self._found(arguments, call)
                if found is None:
                    found = self._record(args, kwargs)
                    if found != TRAINING:
                        self._recordings[arguments, None if self._shared else call] = found
        return found

    def _found(self, arguments: Any, call: int) -> _Recording | str | None:
        """A recording that still holds, and holds for this call."""
        found = self._recordings.get((arguments, None if self._shared else call))
        if isinstance(found, _Recording) and found.constants.changed():
            return None
        return found

    def _record(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Recording | str:
        started = time.perf_counter()
        try:
            with torch.inference_mode(False), torch.no_grad(), ExitStack() as stack:
                if isinstance(self._clock._index, Tensor):  # one call in all rows
                    stack.enter_context(self._clock.at(self._call()))
                return self._recorded(args, kwargs)
        except NotRecordable as error:
            return error.message
        except Exception as error:  # a network's own error comes again when it runs as written
            return (
                f"recording it failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            )
        finally:
            self.told.prepare_seconds += time.perf_counter() - started

    def _recorded(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Recording:
        library = step_library(native.status().isa)
        if library is None:
            raise NotRecordable("there are no native kernels")
        if len(self._recordings) >= self._limit:
            raise NotRecordable(f"there are more than {self._limit} kinds of calls")
        if self._state is None:
            if self.network.training:
                raise NotRecordable(TRAINING)
            for _ in range(LEARNING):
                own = apart((args, kwargs), [])
                self.network(*own[0], **own[1])
            self._entries = entries(self.network)
            self._shared = tables_alone(self.network, self._clock)
            self._state = NetworkState(self.network)
        trace, twin = (self._traced(args, kwargs, turned=turned) for turned in (False, True))
        signatures = [Signature(each, shared=self._shared) for each in (trace, twin)]
        if reason := signatures[0].differs(signatures[1]):
            raise NotRecordable(reason)
        constants = Constants(trace)
        simplify(trace)
        steps = lower(trace, library, exact=self.exact, shared=self._shared)
        return _Recording(Plan(trace, steps, library), constants)

    def _traced(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, turned: bool) -> Trace:
        tensors: list[Tensor] = []
        own = apart((args, kwargs), tensors, turned=turned)
        with Recorder(tensors) as recorder:
            result = self.network(*own[0], **own[1])
        return recorder.done(result)


@torch.no_grad()
def step_parity(packed: PackedModel, points: CalibrationSet) -> Agreement | None:
    """The parity gate of recorded steps; None where a step of this network is not recorded.

    Args:
        packed: the network, its layers on the CPU.
        points: a few calls at one sampler call.

    Raises:
        QuantArenaError: the recording computes something else than the network.
    """
    if packed.backend != "packed":
        return None
    given = {"timestep": points.timestep, "return_dict": False, **points.conditions}
    with packed.clock.at(int(points.step[0])):
        try:
            found = RecordedStep(packed.module, packed.clock).agreement(points.sample, **given)
        except NotRecordable:
            return None
    found.require(PARITY_LIMIT)
    return found
