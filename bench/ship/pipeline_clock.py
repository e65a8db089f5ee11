"""Pipelines tell a packed network which sampler call it is at, however they were made.

A pipeline gets its components in constructors, in ``from_pretrained``, by assignment, from a copy
or from a pickle. All of these end in two methods of ``DiffusionPipeline``, which are followed from
the moment at which the first packed network is loaded; programs without one are left alone.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any

from quantarena.bench.ship.packed_network import PackedNetwork, depends_on_calls
from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.record.announce import attach

_attached: weakref.WeakKeyDictionary[Any, tuple[CallClock, Callable[[], None]]]
_attached = weakref.WeakKeyDictionary()
"""By scheduler: the clock that its steps move, and the function that detaches it."""


@functools.cache
def announce_in_pipelines() -> None:
    """Let every pipeline with a packed network and a scheduler announce the sampler's calls."""
    from diffusers import DiffusionPipeline

    kind: Any = DiffusionPipeline
    set_component = kind.__setattr__

    @functools.wraps(set_component)
    def __setattr__(self: Any, name: str, value: Any) -> None:
        set_component(self, name, value)
        if name == "scheduler" or isinstance(value, PackedNetwork):
            announce(self)

    def __setstate__(self: Any, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        announce(self)

    kind.__setattr__, kind.__setstate__ = __setattr__, __setstate__


def announce(pipe: Any) -> None:
    """Attach the scheduler of a pipeline to the clocks of its packed networks.

    A network without tables by sampler call needs none. Of several packed networks with tables the
    last one is told.
    """
    parts = vars(pipe)
    scheduler = parts.get("scheduler")
    networks = [m for m in parts.values() if isinstance(m, PackedNetwork) and depends_on_calls(m)]
    if scheduler is None or not networks:
        return
    clock = networks[-1].clock
    before = _attached.get(scheduler)
    if before is not None and before[0] is clock:
        return
    if before is not None:
        before[1]()
    _attached[scheduler] = clock, attach(scheduler, clock)
