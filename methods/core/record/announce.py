"""Announces sampler calls: every step of a scheduler moves a model's clock.

A scheduler is any object with ``set_timesteps``, ``timesteps`` and ``step``. The clock's index is
the number of steps since ``set_timesteps``, which is the position of the next network call among
those that the sampler makes. It does not matter how often the network is called for one step
(guidance halves, split batches), nor whether a timestep comes twice (PLMS, Heun).

Image-to-image pipelines skip the first of a scheduler's ``timesteps``. A clock without a schedule
counts from the first call that is made. One with a schedule counts so that its calls are the last
of the scheduler's: both a network calibrated on all of them and one calibrated on those of an
image-to-image pipeline find their own.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
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
    return _attached(scheduler, clock)[1]


def _attached(
    scheduler: Any, clock: CallClock, *, finds: bool = False
) -> tuple["_Announcer", Callable[[], None]]:
    announcer = _Announcer(scheduler, clock, finds=finds)
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

    return announcer, detach


@contextmanager
def counting(scheduler: Any, clock: CallClock) -> Iterator[Callable[[], CallSchedule | None]]:
    """``announcing`` to a clock whose schedule is found: the calls that the first run makes.

    Yields:
        A function that gives these calls; before a run has come to its end, those that the
        scheduler is set to, and None before ``set_timesteps``.
    """
    announcer, undo = _attached(scheduler, clock, finds=True)
    try:
        yield lambda: announcer.ran or announcer.full
    finally:
        undo()


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
    """Counts the steps of one scheduler and sets one clock.

    Attributes:
        full: all calls that the scheduler is set to; None before ``set_timesteps`` and once lost.
        ran: the calls of the last run that came to its end.
    """

    def __init__(self, scheduler: Any, clock: CallClock, *, finds: bool) -> None:
        self.scheduler, self.clock, self._finds = scheduler, clock, finds
        self.full: CallSchedule | None = None
        self.ran: CallSchedule | None = None
        self._starts: Sequence[int] = ()
        """The calls with which the run may have begun: a timestep that comes twice may be either
        of the two until the next step."""
        self._origin: int | None = None
        """The call at which the clock is 0; None for the first one that is made."""
        self._made = 0

    def started(self) -> None:
        """Start counting after ``set_timesteps``."""
        self.full = None
        self.clock.clear()
        full, known = schedule_of(self.scheduler), self.clock.schedule
        self._origin = None
        if known is not None:
            skipped = max(0, len(full.timesteps) - len(known.timesteps))
            last = CallSchedule(full.sampler, full.timesteps[skipped:])
            require_same(known, last if skipped and _all_same(known, last) else full)
            self._origin = skipped
        self.full = full
        self._starts = range(len(full.timesteps)) if self._origin is None else [self._origin]
        self._go(0)

    def moved(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Skip calls after ``set_begin_index``, as image-to-image pipelines do."""
        if self.full is None:
            return
        begin = int(args[0] if args else kwargs["begin_index"])
        if begin < (self._origin or 0):
            self._lost(
                f"calibrated for {self.clock.schedule}, the sampler begins {self._origin} calls "
                "earlier: sample with the calibrated calls, or calibrate on these"
            )
            return
        self._starts = [begin]
        self._go(0)

    def stepped(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count one step after ``step(output, timestep, ...)``."""
        if self.full is None or not self.full.timesteps:
            name = type(self.scheduler).__name__
            self._lost(f"{name} steps before set_timesteps: call it after attaching")
            return
        times = self.full.timesteps
        timestep = args[1] if len(args) > 1 else kwargs.get("timestep")
        place = self._starts[0] + self._made
        if timestep is None:
            self._starts = self._starts[:1]
        else:
            fitting = [
                start
                for start in self._starts
                if start + self._made < len(times)
                and _same(_number(timestep), times[start + self._made])
            ]
            if not fitting:
                expected = "nothing is left" if place >= len(times) else f"{times[place]:g} is due"
                self._lost(
                    f"{self.full.sampler} steps at timestep {_number(timestep):g} where {expected} "
                    f"(call {place} of {len(times)}): a pipeline that skips calls has to say so "
                    "with set_begin_index"
                )
                return
            self._starts = fitting
        self._go(self._made + 1)
        for start in self._starts:
            if start + self._made == len(times):
                self.ran = CallSchedule(self.full.sampler, times[start:])
                if self._finds and self._origin is None:
                    self.clock.schedule = self.ran

    def _lost(self, why: str) -> None:
        """Unset the clock; raise an error where the model was calibrated by call."""
        self.full = None
        self.clock.clear()
        if self.clock.schedule is not None:
            raise UserError(why)

    def _go(self, made: int) -> None:
        self._made = made
        known = self.full is not None and self.full.timesteps
        if not known or self._starts[0] + made >= len(known):
            self.clock.clear()
        elif self._origin is None:
            self.clock.set(made)
        else:
            self.clock.set(self._starts[0] + made - self._origin)


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


def _all_same(first: CallSchedule, second: CallSchedule) -> bool:
    pairs = zip(first.timesteps, second.timesteps, strict=True)
    return all(_same(a, b) for a, b in pairs)


def _number(timestep: Any) -> float:
    return float(timestep.reshape(-1)[0] if isinstance(timestep, Tensor) else timestep)


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-5)
