"""The nodes of a cluster as a run sees them: which take part, and what each worker reserves there.

Every node is asked first: it has to see the results folder and to have the driver's libraries, and
it builds the native kernels. Nodes may join and leave while a run goes on.
"""

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from quantarena.bench import machine
from quantarena.bench.cluster.nodes import (
    Need,
    Node,
    all_of,
    alone,
    capacity,
    nodes_of,
    share,
    usual,
)
from quantarena.bench.cluster.worker import Asked, count_oom_kills, describe_node
from quantarena.bench.errors import RunStopped, UserError, first_line
from quantarena.bench.target import Target

LOOK_SECONDS = 2.0
"""Between two looks at which nodes the cluster has."""
PATIENCE_SECONDS = 60.0
"""How long a cluster may have no node that fits, before the run stops."""
ANSWER_SECONDS = 600.0
"""How long a node may take to answer; before its first answer it may build kernels for minutes."""
_MOST_FAILURES = 3
_LOOKS = 4


@dataclass(frozen=True, slots=True)
class Pool:
    """What is asked of a cluster.

    Attributes:
        address: ``auto`` or HOST:PORT.
        most: largest number of workers.
        target: of the cells.
        memory: bytes that a worker reserves.
        device_memory: estimate of the GPU memory that it uses.
        timing: whether tasks are timings, which have a machine to themselves.
        models: paths of cells' models, which have to be on each node.
    """

    address: str
    most: int
    target: Target
    memory: int = 0
    device_memory: int = 0
    timing: bool = False
    models: tuple[str, ...] = ()

    @property
    def gpus(self) -> bool:
        """Whether cells compute on GPUs."""
        return self.target.kind == "cuda"


@dataclass(slots=True, eq=False)
class Member:
    """A node of the cluster: the question that it was asked, and its answer.

    Attributes:
        node: the node.
        question: Ray's handle of the answer.
        facts: the answer; None until it comes.
        failures: how often in a row it did not answer, or a worker of it did not start.
        since: when it was asked, by the monotonic clock.
        awaited: whether people were told that its answer is late.
    """

    node: Node
    question: Any
    facts: dict[str, Any] | None = None
    failures: int = 0
    since: float = field(default_factory=time.monotonic)
    awaited: bool = False

    @property
    def usable(self) -> bool:
        """Whether it takes part."""
        return self.facts is not None and not self.facts["refused"]

    @property
    def name(self) -> str:
        """Its name for people; of several nodes on one machine, the id tells which."""
        return f"{self.node.name} ({self.node.id[:8]})"

    @property
    def refused(self) -> str:
        """Why it takes no part; empty where it does, or has not answered yet."""
        return str((self.facts or {}).get("refused", ""))


class Members:
    """The nodes of a cluster.

    Args:
        ray: the module, after it joined.
        pool: what is asked of the cluster.
        asked: what each node is asked.
        say: told of nodes that join, leave or cannot take part.
    """

    def __init__(self, ray: Any, pool: Pool, asked: Asked, say: Callable[[str], None]) -> None:
        self._ray, self._pool, self._say = ray, pool, say
        self._asked = ray.put(asked)
        self._home = ray.get_runtime_context().get_node_id()
        self._ask = ray.remote(num_cpus=0, max_retries=0)(describe_node)
        self._kills = ray.remote(num_cpus=0, max_retries=0)(count_oom_kills)
        self._found: dict[str, Member] = {}
        self._looked = 0.0
        self._kind = ""
        self._hopeful = time.monotonic()

    def look(self, *, now: bool = False) -> None:
        """See which nodes there are, and ask those that are new; every two seconds, or now.

        Raises:
            RunStopped: the cluster, or this machine's part of it, is lost.
        """
        if not now and time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        try:
            nodes = {node.id: node for node in nodes_of(self._ray.nodes())}
        except Exception as error:
            raise RunStopped(_lost_cluster(first_line(error))) from error
        if self._home not in nodes:
            raise RunStopped(_lost_cluster("this machine's node died"))
        for name in sorted(set(self._found) - set(nodes)):
            member = self._found.pop(name)
            if not member.refused:
                before = "" if member.usable else " before it took part"
                self._say(f"  node {member.name} left the cluster{before}")
        for name in sorted(set(nodes) - set(self._found)):
            self._found[name] = Member(nodes[name], self._question(nodes[name]))
            self._hopeful = self._looked
        for member in self.asked.values():
            self._press(member, self._looked - member.since)

    def lives(self, member: Member) -> bool:
        """Whether a node is still there; its death may be known a moment after its workers'."""
        for _ in range(_LOOKS):
            self.look(now=True)
            if member.node.id not in self._found:
                return False
            time.sleep(LOOK_SECONDS / _LOOKS)
        return True

    def has(self, member: Member) -> bool:
        """Whether a node was there at the last look, and takes part."""
        return member.usable and member.node.id in self._found

    @property
    def asked(self) -> dict[Any, Member]:
        """The nodes that have not answered yet, by Ray's handle of the answer."""
        return {m.question: m for m in self._found.values() if m.facts is None}

    def answered(self, member: Member) -> None:
        """Take a node's answer; one that could not answer is asked again."""
        try:
            member.facts = self._ray.get(member.question)
        except Exception as error:
            if not self.lives(member):
                return
            member.failures += 1
            if member.failures < _MOST_FAILURES:
                member.question = self._question(member.node)
                member.since = time.monotonic()
                return
            self._refuse(member, f"it does not answer ({first_line(error)})")
            return
        assert member.facts is not None
        if member.refused:
            self._refuse(member, member.refused)
            return
        node, built = member.node, member.facts["kernels"]
        offers = f"{node.cpus:g} CPUs" + (f", {node.gpus:g} GPUs" if node.gpus else "")
        self._say(f"  node {member.name} takes part: {offers}" + (f"; {built}" if built else ""))
        if member.facts["nice"] > 0:
            self._say(
                f"  warning: its workers run at niceness {member.facts['nice']}, so that all else "
                "there delays them: start its Ray with RAY_worker_niceness=0"
            )

    def failed(self, member: Member, error: Exception) -> None:
        """A worker of a node did not start; a node where that happens again and again is left."""
        if not self.lives(member):
            return
        member.failures += 1
        if member.failures >= _MOST_FAILURES:
            self._refuse(member, f"its workers do not start ({first_line(error)})")

    def memory_ran_out(self, member: Member) -> bool:
        """Whether the kernel of a node's machine has killed processes since it was asked last."""
        if member.facts is None:
            return False
        before = member.facts["oom_kills"]
        with contextlib.suppress(Exception):
            kills = self._kills.options(scheduling_strategy=self.at(member.node)).remote()
            member.facts["oom_kills"] = self._ray.get(kills, timeout=30)
        return bool(member.facts["oom_kills"] > before)

    def room(self) -> dict[str, int]:
        """How many workers fit each node that takes part, by node id."""
        needs = self._needs()
        return {name: capacity(self._found[name].node, need) for name, need in needs.items()}

    def place(self, name: str) -> tuple[Member, Need]:
        """A node, and what a worker reserves on it."""
        member = self._found[name]
        return member, self._needs()[name].on(member.node)

    def require_hope(self, *, workers: bool) -> None:
        """See that tasks can still be done some time.

        Args:
            workers: whether there are any.

        Raises:
            UserError: no node takes part, or none has offered what a worker needs for a while.
        """
        if workers or self.asked:
            self._hopeful = time.monotonic()
            return
        usable = any(member.usable for member in self._found.values())
        if usable and time.monotonic() - self._hopeful < PATIENCE_SECONDS:
            return
        refused = {
            f"{member.node.name}: {member.refused}"
            for member in self._found.values()
            if member.refused
        }
        if refused and not usable:
            raise UserError(f"no node of the cluster takes part; {'; '.join(sorted(refused))}")
        what = "a GPU" if self._pool.gpus else "a CPU for a worker"
        raise UserError(f"no node of the cluster has {what}: 'ray status' shows what it offers")

    def at(self, node: Node) -> Any:
        """Ray's way to say that something runs on that node and nowhere else."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node.id, soft=False)

    def _refuse(self, member: Member, reason: str) -> None:
        """Leave a node out from now on."""
        member.facts = {**(member.facts or {}), "refused": reason}
        self._say(f"  warning: node {member.name} takes no part: {reason}")

    def _press(self, member: Member, waited: float) -> None:
        """Say that an answer is late, once; leave the node out where none comes.

        Timings wait for all answers, since these tell which kind of machine is usual.
        """
        if waited > ANSWER_SECONDS:
            with contextlib.suppress(Exception):
                self._ray.cancel(member.question, force=True)
            self._refuse(member, f"it did not answer in {ANSWER_SECONDS:.0f} s")
        elif waited > PATIENCE_SECONDS and not member.awaited:
            member.awaited = True
            self._say(
                f"  node {member.name} has not answered for {PATIENCE_SECONDS:.0f} s: it may be "
                "building its kernels"
            )

    def _question(self, node: Node) -> Any:
        return self._ask.options(scheduling_strategy=self.at(node)).remote(self._asked)

    def _needs(self) -> dict[str, Need]:
        """What a worker reserves, by the nodes that may have one."""
        usable = {name: member for name, member in self._found.items() if member.usable}
        if not self._pool.timing:
            memory = self._pool.memory
            return {name: Need(1.0, self._part(one), memory) for name, one in usable.items()}
        if self.asked:
            return {}  # which kind of machine is usual is not known yet
        nodes = alone([member.node for member in usable.values()], gpus=self._pool.gpus)
        kinds = {node.id: _kind(usable[node.id]) for node in nodes}
        self._kind = self._kind or usual(kinds)  # nodes that join later do not change it
        chosen = [node for node in nodes if kinds[node.id] == self._kind]
        return {node.id: all_of(node, gpus=self._pool.gpus) for node in chosen}

    def _part(self, member: Member) -> float:
        """The part of a GPU that a worker takes there."""
        if not self._pool.gpus:
            return 0.0
        gpu = (member.facts or {}).get("machine", {}).get("gpu")
        return share(self._pool.device_memory, gpu, whole=self._pool.target.offload)


def _kind(member: Member) -> str:
    """Which machines' times can be compared, as ``machine.same_machine`` says."""
    facts = (member.facts or {}).get("machine", {})
    return json.dumps([facts.get(name) for name in machine.COMPARED])


def _lost_cluster(why: str) -> str:
    return (
        f"the cluster is lost ({why}): finished cells are kept; start it again with 'ray start', "
        "then run the same command to continue"
    )
