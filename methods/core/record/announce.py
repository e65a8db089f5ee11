"""Announces sampler calls: every step of a scheduler moves a model's clock.

A scheduler is any object with ``set_timesteps``, ``timesteps`` and ``step``. The clock's index is
the number of steps since ``set_timesteps``, which is the position of the next network call in
``timesteps``. It does not matter how often the network is called for one step (guidance halves,
split batches), nor whether a timestep comes twice (PLMS, Heun).
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
"""Called with the arguments of a scheduler's method after the method has run."""


def schedule_of(scheduler: Any) -> CallSchedule:
    """The sampler calls that the scheduler is set to, named after its class."""
    times = scheduler.timesteps
    values = times.tolist() if hasattr(times, "tolist") else list(times)
    return CallSchedule(type(scheduler).__name__, tuple(float(t) for t in values))


def require_same(calibrated: CallSchedule, sampled: CallSchedule) -> None:
    """Refuse to sample with ranges that were calibrated for other calls.

    Only timesteps are compared: another sampler with the same timesteps feeds the network alike.

    Raises:
        UserError: the number or the timesteps of the calls differ.
    """
    ours, theirs = calibrated.timesteps, sampled.timesteps
    differ = [k for k, (a, b) in enumerate(zip(ours, theirs, strict=False)) if not _same(a, b)]
    if len(ours) == len(theirs) and not differ:
        return
    where = ""
    if len(ours) == len(theirs):
        k = differ[0]
        where = f" (call {k} is at {theirs[k]:g}, not {ours[k]:g})"
    raise UserError(
        f"calibrated for {calibrated}, the sampler has {sampled}{where}: sample with the "
        "calibrated calls, or calibrate on these"
    )


def can_announce(scheduler: Any) -> bool:
    """Whether the scheduler has the methods that announcing needs."""
    return all(hasattr(scheduler, name) for name in ("set_timesteps", "timesteps", "step"))


def attach(scheduler: Any, clock: CallClock) -> Callable[[], None]:
    """Let every step of ``scheduler`` move ``clock`` until the returned function is called.

    The clock is unset before ``set_timesteps`` and after the last step, so a network call outside
    of the sampler's steps is not mistaken for one of them. Copies of the scheduler and schedulers
    that ``can_announce`` refuses announce nothing.

    Args:
        scheduler: the scheduler; ``set_timesteps`` must be called after attaching, as pipelines do
            in every run.
        clock: the model's clock; where it has a schedule, the scheduler must be set to its calls.

    Returns:
        A function that detaches the clock. The last attached clock must be detached first.
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
    """Attach ``clock`` to ``scheduler`` inside the block; without a clock nothing happens.

    Raises:
        UserError: from ``set_timesteps`` or ``step``, when the sampler's calls are not those that
            the clock's model was calibrated on.
    """
    with ExitStack() as stack:
        if clock is not None:
            stack.callback(attach(scheduler, clock))
        yield


class _Announcer:
    """Counts the steps of one scheduler and sets one clock."""

    def __init__(self, scheduler: Any, clock: CallClock) -> None:
        self.scheduler, self.clock = scheduler, clock
        self.schedule: CallSchedule | None = None
        self.next = 0

    def started(self) -> None:
        """Start counting after ``set_timesteps``."""
        self.schedule = None
        self.clock.clear()
        schedule = schedule_of(self.scheduler)
        if self.clock.schedule is not None:
            require_same(self.clock.schedule, schedule)
        self.schedule = schedule
        self._go(0)

    def moved(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Skip calls after ``set_begin_index``, as image-to-image pipelines do."""
        self._go(int(args[0] if args else kwargs["begin_index"]))

    def stepped(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count one step after ``step(output, timestep, ...)``."""
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
        """Unset the clock; raise an error where the model was calibrated by call."""
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
    """Call ``hook`` after each call of one object's method; returns a function that undoes this."""
    inner = getattr(scheduler, name)

    # a bound method with the same signature, because pipelines inspect the signature of step()
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
