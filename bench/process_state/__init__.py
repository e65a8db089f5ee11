"""The state of the process around one piece of work: fixed before it, restored after it.

A method is foreign code. It may change torch's default dtype, the number of threads, a random
generator, the working directory, the environment or the warning filters. None of that may reach the
next cell, whose numbers would then depend on what ran before it in the same process.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

from quantarena.bench.process_state.descriptors import kept_descriptors
from quantarena.bench.process_state.patches import undo_patches
from quantarena.bench.process_state.python_states import python_states
from quantarena.bench.process_state.states import State, restore, values
from quantarena.bench.process_state.torch_states import torch_states

__all__ = ["inherited_changes", "lasting_changes", "process_state"]

THREADS = 1
"""Torch's CPU threads in every stage: one thread sums in one order, on every machine."""
_lasting: dict[str, bool] = {}
"""By change: whether a child process takes it over."""


def lasting_changes() -> tuple[str, ...]:
    """The changes of this process so far that cannot be undone; a process with any is replaced."""
    return tuple(_lasting)


def inherited_changes() -> tuple[str, ...]:
    """Those of the lasting changes that a child of this process has too, such as niceness."""
    return tuple(name for name, inherited in _lasting.items() if inherited)


@contextlib.contextmanager
def process_state(threads: int = THREADS) -> Iterator[None]:
    """Run the block on ``threads`` torch threads, and restore the state of the process after it.

    Restored are the states that ``python_states`` and ``torch_states`` list, the warning filters,
    the standard descriptors, and what was replaced of some modules (``undo_patches``). The block
    starts in fp32 on the CPU with gradients enabled, whatever held before. Restoring raises
    nothing: what cannot be restored is named by ``lasting_changes``.

    Torch is imported by this function, not by the module.
    """
    import torch

    with contextlib.ExitStack() as stack:
        stack.enter_context(kept_descriptors(lambda line: _lasting.update({line: False})))
        states = [*python_states(), *torch_states()]
        stack.callback(_restore, states, values(states))
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(undo_patches())  # first, so that the others call what torch has
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        yield


def _restore(states: list[State], before: list[Any]) -> None:
    for line, state in restore(states, before).items():
        _lasting[line] = state.inherited
