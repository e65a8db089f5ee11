"""The machines on which rows were measured, by name and in full."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quantarena.bench.schema import Row
from quantarena.bench.share.provenance import SOURCE
from quantarena.leaderboard.page.format import facts

SAME = ("cpu", "cores", "gpu", SOURCE)
"""Facts that must be equal for the times of two rows to be comparable. Two submissions never are:
nobody here knows whether their machines are one."""


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
    device = row.device
    # a machine may have several GPUs; its facts name the first
    name = device.name if device is not None and device.kind != "cpu" else None
    return str([*(row.machine.get(name) for name in SAME), name])


def usual_machine(rows: Sequence[Row]) -> str:
    """The identity of the machine on which most of these rows were timed; the first of several.

    Machines of submissions, whose times nobody here can check, come after all others.
    """
    timed = [row for row in rows if row.latency]
    own = [row for row in timed if SOURCE not in row.machine]
    found = [identity(row) for row in own or timed]
    return max(found, key=Counter(found).__getitem__, default="")


def machine_name(row: Row) -> str:
    """The machine of a row for readers."""
    return _name(row.machine)


def _machine(group: Sequence[dict[str, Any]]) -> Machine:
    first = group[0]
    keys = dict.fromkeys(key for facts_of_row in group for key in facts_of_row)
    varied = tuple(key for key in keys if any(one.get(key) != first.get(key) for one in group))
    return Machine(_name(first), tuple(facts(first)), len(group), varied)


def _name(machine: dict[str, Any]) -> str:
    gpu, cores = machine.get("gpu"), machine.get("cores")
    if isinstance(gpu, dict) and gpu.get("name"):
        name = str(gpu["name"])
    else:
        cpu = str(machine.get("cpu") or "an unnamed processor")
        name = f"{cpu}, {cores} cores" if cores else cpu
    source = machine.get(SOURCE)
    return f"{name} (of {source})" if source else name


@dataclass(frozen=True, slots=True)
class Clock:
    """A machine whose times have a column of their own.

    Attributes:
        identity: as ``identity`` gives it.
        name: for readers; no other machine of the board has it.
        setting: full precision's setting there, which speeds are relative to; empty where the rows
            name several.
        reported: whether its times came in a submission.
    """

    identity: str
    name: str
    setting: str
    reported: bool


def clocks(rows: Sequence[Row], home: str) -> tuple[Clock, ...]:
    """The machines on which rows were timed, the usual one first.

    Args:
        rows: of one board.
        home: identity of the usual machine.
    """
    timed: dict[str, list[Row]] = {home: []} if home else {}
    for row in rows:
        if row.latency is not None:
            timed.setdefault(identity(row), []).append(row)
    names = [machine_name(some[0]) for some in timed.values() if some]
    found, seen = [], dict[str, int]()
    for machine, some in timed.items():
        if not some:
            continue
        name = machine_name(some[0])
        seen[name] = seen.get(name, 0) + 1
        if names.count(name) > 1:
            name = f"{name} ({seen[name]})"
        settings = {row.latency.fp_setting for row in some if row.latency}
        setting = settings.pop() if len(settings) == 1 else ""
        found.append(Clock(machine, name, setting, SOURCE in some[0].machine))
    return tuple(found)
