"""The machines on which rows were measured, by name and in full."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quantarena.bench.schema import Row
from quantarena.leaderboard.page.format import facts

SAME = ("cpu", "cores", "gpu")
"""Facts that must be equal for the times of two rows to be comparable."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine on which rows were measured.

    Attributes:
        name: processor and cores, or the GPU.
        facts: everything that the machine's first row says about it.
        rows: number of rows measured on it.
        varied: names of other facts that differ between these rows, such as the commit.
    """

    name: str
    facts: tuple[tuple[str, str], ...]
    rows: int
    varied: tuple[str, ...]


def machines(rows: Sequence[Row]) -> tuple[Machine, ...]:
    """The machines of these rows, in the order of their first rows."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row.machine:
            groups.setdefault(identity(row), []).append(row.machine)
    return tuple(_machine(group) for group in groups.values())


def identity(row: Row) -> str:
    """Equal for rows whose times may stand in one column."""
    return str([row.machine.get(name) for name in SAME])


def usual_machine(rows: Sequence[Row]) -> str:
    """The identity of the machine on which most of these rows were timed; the first of several."""
    timed = Counter(identity(row) for row in rows if row.latency)
    return max(timed, key=lambda name: timed[name], default="")


def machine_name(row: Row) -> str:
    """The machine of a row for readers."""
    return _name(row.machine)


def _machine(group: Sequence[dict[str, Any]]) -> Machine:
    first = group[0]
    keys = dict.fromkeys(key for facts_of_row in group for key in facts_of_row)
    varied = tuple(key for key in keys if any(one.get(key) != first.get(key) for one in group))
    return Machine(_name(first), tuple(facts(first)), len(group), varied)


def _name(machine: dict[str, Any]) -> str:
    gpu = machine.get("gpu")
    if isinstance(gpu, dict) and gpu.get("name"):
        return str(gpu["name"])
    cores = machine.get("cores")
    cpu = str(machine.get("cpu") or "an unnamed processor")
    return f"{cpu}, {cores} cores" if cores else cpu
