"""What a cluster's nodes offer, what a worker needs, and how many workers each node gets. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SHARES = (0.125, 0.25, 0.5, 1.0)
"""Parts of a GPU that a worker may take: coarse, so that few sizes of gaps are left over."""
_MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a cluster: what one raylet offers.

    Attributes:
        id: Ray's name of it; one that joins again has another.
        machine: network address. Nodes of one address are on one machine.
        name: host name, for messages.
        cpus: all that it offers, in use or not; so are the next two.
        gpus: number of GPUs.
        memory: bytes that tasks may reserve.
    """

    id: str
    machine: str
    name: str
    cpus: float
    gpus: float
    memory: int


@dataclass(frozen=True, slots=True)
class Need:
    """What one worker reserves.

    Attributes:
        cpus: one for each of its threads.
        gpus: 0, or the part of a GPU.
        memory: bytes; a node with less still gets one worker, since an estimate may be too high.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0

    def on(self, node: Node) -> "Need":
        """What it reserves on that node."""
        return Need(self.cpus, self.gpus, min(self.memory, int(node.memory)))


def nodes_of(listing: Iterable[Mapping[str, Any]]) -> tuple[Node, ...]:
    """The nodes that live, by ``ray.nodes()``, in the order of their ids."""
    nodes = (
        Node(
            str(entry["NodeID"]),
            str(entry.get("NodeManagerAddress", "")),
            str(entry.get("NodeManagerHostname", "")) or str(entry.get("NodeManagerAddress", "")),
            float(entry.get("Resources", {}).get("CPU", 0.0)),
            float(entry.get("Resources", {}).get("GPU", 0.0)),
            int(entry.get("Resources", {}).get("memory", 0.0)),
        )
        for entry in listing
        if entry.get("Alive")
    )
    return tuple(sorted(nodes, key=lambda node: node.id))


def capacity(node: Node, need: Need) -> int:
    """How many workers fit a node that nobody else uses."""
    asked = need.on(node)
    fits = [node.cpus // asked.cpus if asked.cpus else node.cpus]
    if asked.gpus:
        # of two GPUs, each has room for two workers of 0.5; a worker never spans two
        fits.append(int(node.gpus) * (1.0 // asked.gpus))
    if asked.memory:
        fits.append(node.memory // asked.memory)
    return int(max(0, min(fits)))


def placed(room: Mapping[str, int], most: int) -> dict[str, int]:
    """Number of workers by node id: one more for each node in turn, until ``most`` are placed.

    Args:
        room: how many workers fit each node.
        most: how many are wanted.
    """
    given = dict.fromkeys(room, 0)
    while sum(given.values()) < most:
        free = [name for name in given if given[name] < room[name]]
        if not free:
            break
        given[min(free, key=lambda name: given[name])] += 1
    return given


def alone(nodes: Sequence[Node], gpus: bool) -> tuple[Node, ...]:
    """The node of each machine on which a timing may run; of several, the largest one."""
    best: dict[str, Node] = {}
    for node in nodes:
        other = best.get(node.machine)
        if (not gpus or node.gpus >= 1) and (other is None or node.cpus > other.cpus):
            best[node.machine] = node
    return tuple(node for node in best.values() if node.cpus >= 1)


def all_of(node: Node, gpus: bool) -> Need:
    """All CPUs of a node, and one of its GPUs: what timing reserves, so that nothing else runs."""
    return Need(float(int(node.cpus)), 1.0 if gpus else 0.0, 0)


def share(bytes_needed: int, gpu: Mapping[str, Any] | None, *, whole: bool = False) -> float:
    """The part of a GPU for a worker.

    Args:
        bytes_needed: estimate of the GPU memory that it uses.
        gpu: what the driver says of it: ``memory`` such as ``143771 MiB``; None if unknown.
        whole: take all of it.
    """
    text = str((gpu or {}).get("memory", "")).split()
    if whole or not text or not text[0].isdigit():
        return 1.0
    part = bytes_needed / max(1, int(text[0]) * _MEBIBYTE)
    return next((size for size in SHARES if part <= size), 1.0)


def usual(kinds: Mapping[str, str]) -> str:
    """The kind that most machines are of; of several, the first by name.

    Args:
        kinds: kind by machine.
    """
    counts = Counter(kinds.values())
    return min(counts, key=lambda kind: (-counts[kind], kind), default="")
