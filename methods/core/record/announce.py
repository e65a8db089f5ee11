"""The sampler says which call comes next: a scheduler's steps move a model's clock.

A scheduler is whatever has ``set_timesteps``, ``timesteps`` and ``step``. The clock's index is the
number of steps since ``set_timesteps``, which is the place in ``timesteps`` of the next network
call. It does not matter how often the network is called for one step (guidance halves, split
batches), nor whether a timestep comes twice (PLMS, Heun).
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

from torch import Tensor

from quantarena.methods.core.clock import CallClock, CallSchedule
from quantarena.methods.core.errors import UserError

Hook = Callable[[tuple[Any, ...], dict[str, Any]], None]
"""Called with a method's arguments after it has run."""


def schedule_of(scheduler: Any) -> CallSchedule:
    """The calls that the scheduler is set to, named after its class."""
    times = scheduler.timesteps
    values = times.tolist() if hasattr(times, "tolist") else list(times)
    return CallSchedule(type(scheduler).__name__, tuple(float(t) for t in values))


def require_same(calibrated: CallSchedule, found: CallSchedule) -> None:
    """Refuse to sample with settings of other calls.

    Timesteps decide; another sampler over the same timesteps feeds the network the same way.

    Raises:
        UserError: number or timesteps of the calls differ.
    """
    ours, theirs = calibrated.timesteps, found.timesteps
    differ = [k for k, (a, b) in enumerate(zip(ours, theirs, strict=False)) if not _same(a, b)]
    if len(ours) == len(theirs) and not differ:
        return
    where = ""
    if len(ours) == len(theirs):
        k = differ[0]
        where = f" (call {k} is at {theirs[k]:g}, not {ours[k]:g})"
    raise UserError(
        f"calibrated for {calibrated}, the sampler has {found}{where}: sample with the calibrated "
        "calls, or calibrate on these"
    )


def can_announce(scheduler: Any) -> bool:
    """Whether it is a scheduler as this module knows them."""
    return all(hasattr(scheduler, name) for name in ("set_timesteps", "timesteps", "step"))


def attach(scheduler: Any, clock: CallClock) -> Callable[[], None]:
    """Let every step of ``scheduler`` move ``clock`` until the returned function is called.

    The clock is unset before ``set_timesteps`` and after the last step, so a network call that no
    step belongs to cannot pass for one that does. Copies of the scheduler announce nothing, and
    neither do schedulers that ``can_announce`` refuses.

    Args:
        scheduler: attach before ``set_timesteps`` is called, which pipelines do in every run.
        clock: of the model; where it has a schedule, the scheduler must be set to the same calls.

    Returns:
        Detaches; last attached, first detached.
    """
    announcer = _Announcer(scheduler, clock)
    hooks: dict[str, Hook] = {
        "set_timesteps": lambda args, kwargs: announcer.started(),
        "set_begin_index": announcer.moved,
        "step": announcer.stepped,
    }
    names = [name for name in hooks if hasattr(scheduler, name)] if can_announce(scheduler) else []
    undo = [_follow(scheduler, name, hooks[name]) for name in names]
    clock.clear()

    def detach() -> None:
        for function in undo:
            function()
        clock.clear()

    return detach


@contextmanager
def announcing(scheduler: Any, clock: CallClock | None) -> Iterator[None]:
    """``attach`` inside the block; nothing where there is no clock.

    Raises:
        UserError: from ``set_timesteps`` or ``step``, when the sampler's calls are not those that
            the clock's model was calibrated on.
    """
    with ExitStack() as stack:
        if clock is not None:
            stack.callback(attach(scheduler, clock))
        yield


class _Announcer:
    """Counts one scheduler's steps into one clock."""

    def __init__(self, scheduler: Any, clock: CallClock) -> None:
        self.scheduler, self.clock = scheduler, clock
        self.schedule: CallSchedule | None = None
        self.next = 0

    def started(self) -> None:
        """``set_timesteps`` has run."""
        self.schedule = None
        self.clock.clear()
        found = schedule_of(self.scheduler)
        if self.clock.schedule is not None:
            require_same(self.clock.schedule, found)
        self.schedule = found
        self._go(0)

    def moved(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """``set_begin_index`` has run: image-to-image pipelines skip the first calls."""
        self._go(int(args[0] if args else kwargs["begin_index"]))

    def stepped(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """``step(output, timestep, ...)`` has run."""
        if self.schedule is None:
            name = type(self.scheduler).__name__
            self._lost(f"{name} steps before set_timesteps: call it after attaching")
            return
        times = self.schedule.timesteps
        timestep = args[1] if len(args) > 1 else kwargs.get("timestep")
        due = times[self.next] if self.next < len(times) else None
        if timestep is not None and (due is None or not _same(_number(timestep), due)):
            expected = "nothing is left" if due is None else f"{due:g} is due"
            self._lost(
                f"{self.schedule.sampler} steps at timestep {_number(timestep):g} where {expected} "
                f"(call {self.next} of {len(times)}): a pipeline that skips calls has to say so "
                "with set_begin_index"
            )
            return
        self._go(self.next + 1)

    def _lost(self, why: str) -> None:
        """Nobody knows which call comes next: an error where the model was calibrated by call."""
        self.schedule = None
        self.clock.clear()
        if self.clock.schedule is not None:
            raise UserError(why)

    def _go(self, index: int) -> None:
        self.next = index
        if self.schedule is not None and index < len(self.schedule.timesteps):
            self.clock.set(index)
        else:
            self.clock.clear()


def _follow(scheduler: Any, name: str, hook: Hook) -> Callable[[], None]:
    """Call ``hook`` after each call of a method of this one object; returns what undoes it."""
    inner = getattr(scheduler, name)

    # a bound method with the same signature: pipelines read it to see what step() takes
    @functools.wraps(getattr(type(scheduler), name))
    def follow(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is not scheduler:  # a deep copy binds the method to itself
            return getattr(type(self), name)(self, *args, **kwargs)
        result = inner(*args, **kwargs)
        hook(args, kwargs)
        return result

    before = vars(scheduler).get(name)
    setattr(scheduler, name, MethodType(follow, scheduler))

    def undo() -> None:
        if before is None:
            delattr(scheduler, name)
        else:
            setattr(scheduler, name, before)

    return undo


def _number(timestep: Any) -> float:
    return float(timestep.reshape(-1)[0] if isinstance(timestep, Tensor) else timestep)


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-5)
