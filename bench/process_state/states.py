"""A named part of the process's state: how it is read, written and compared."""

import contextlib
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

_LONGEST = 60


class _Unreadable:
    def __repr__(self) -> str:
        return "unreadable"


UNREADABLE = _Unreadable()
"""The value of a state whose reading raised an error."""


@dataclass(frozen=True, slots=True)
class State:
    """One part of the process's state.

    Attributes:
        name: as a sentence names it.
        read: its value, which later changes of the state leave as it is.
        write: puts a value back; None if nothing can.
        same: whether the value before and the present one are the same.
        inherited: whether a child process takes it over, so that a new process is no help.
    """

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object] | None = None
    same: Callable[[Any, Any], bool] = operator.eq
    inherited: bool = False


def attribute(name: str, owner: Any, field: str) -> State:
    """The state that an attribute of an object is."""

    def write(value: Any) -> None:
        setattr(owner, field, value)

    return State(name, lambda: getattr(owner, field), write)


def values(states: Iterable[State]) -> list[Any]:
    """The value of each state; reading never raises."""
    return [_value(state) for state in states]


def restore(states: list[State], before: list[Any]) -> dict[str, State]:
    """Put the states back in their order. This never raises.

    Returns:
        The states that could not be put back, by a line that says how they differ.
    """
    pairs = [(s, value) for s, value in zip(states, before, strict=True) if value is not UNREADABLE]
    for state, value in pairs:
        if state.write is not None and not _is_same(state, value, _value(state)):
            with contextlib.suppress(Exception):  # seen below, by what the state is now
                state.write(value)
    changed = {}
    for state, value in pairs:  # after all, as one may have moved another
        now = _value(state)
        if not _is_same(state, value, now):
            changed[f"{state.name} ({_short(value)}, now {_short(now)})"] = state
    return changed


def _value(state: State) -> Any:
    try:
        return state.read()
    except Exception:
        return UNREADABLE


def _is_same(state: State, before: Any, now: Any) -> bool:
    try:
        return now is not UNREADABLE and bool(state.same(before, now))
    except Exception:
        return False


def _short(value: Any) -> str:
    try:
        text = " ".join(repr(value).split())
    except Exception:
        text = type(value).__name__
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
