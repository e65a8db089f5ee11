"""Who holds a lease or writes a note: a process on a machine, and whether it still lives. No torch.

A process that ended is known to have ended only on its own machine, and there only among the
processes that see each other: the kernel's boot and the namespace of process ids say so. A host's
name does not: two containers may share it.
"""

import functools
import os
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Owner:
    """A process.

    Attributes:
        host: name of its machine.
        pid: its id there.
        boot: the kernel's boot and the namespace of process ids; empty where there is no /proc.
        born: when the process started, as the kernel counts; ids are used again.
        token: unlike that of any other owner.
    """

    host: str
    pid: int
    boot: str
    born: str
    token: str

    @property
    def label(self) -> str:
        """Such as ``process 4711 on node3``."""
        return f"process {self.pid} on {self.host}"

    def gone(self) -> bool:
        """Whether the process is known to have ended; False where this machine cannot know."""
        if not self.boot or self.boot != _boot():
            return False
        born = _born(self.pid)
        return born is not None and born != self.born

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types only."""
        return asdict(self)

    @classmethod
    def of(cls, document: Any) -> "Owner":
        """The owner in a document.

        Raises:
            ValueError: it holds none.
        """
        try:
            texts = {name: str(document[name]) for name in ("host", "boot", "born", "token")}
            return cls(pid=int(document["pid"]), **texts)
        except (KeyError, TypeError) as error:
            raise ValueError(f"no owner: {error}") from None


def this_process() -> Owner:
    """The present process, with a new token."""
    pid = os.getpid()
    return Owner(os.uname().nodename, pid, _boot(), _born(pid) or "", uuid.uuid4().hex)


@functools.cache
def _boot() -> str:
    try:
        space = os.readlink("/proc/self/ns/pid")
        return f"{_BOOT.read_text(encoding='ascii').strip()} {space}"
    except OSError:
        return ""


def _born(pid: int) -> str | None:
    """The start of a process in clock ticks after the boot; empty if it has ended.

    None where that cannot be seen: /proc may hide the processes of other users.
    """
    try:
        line = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None if _alive(pid) else ""
    except OSError:
        return None
    # The name of the program, in parentheses, may hold spaces.
    fields = line.rpartition(")")[2].split()
    return "" if fields[:1] in (["Z"], ["X"]) else fields[19]


def _alive(pid: int) -> bool:
    """Whether there is a process of that id, whoever owns it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True
