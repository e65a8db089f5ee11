"""What a driver shares with others that work on the same results folder: leases, notes, machine."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantarena.bench.files import waited
from quantarena.bench.run.work import Claims, LeasedClaims, NoOthers
from quantarena.bench.schema import Row
from quantarena.bench.storage.drivers import Journal
from quantarena.bench.storage.leases import Leases
from quantarena.bench.store import Store


@dataclass(slots=True)
class Together:
    """One driver among those of a results folder; by default the only one.

    Attributes:
        claims: which tasks are this driver's.
        journal: this driver's note; None writes none.
        leases: to give back at the end.
        machine_lock: file of the lock that keeps others of this machine away from timings.
        remote: what copies rows to and from a store elsewhere; None for a folder.
    """

    claims: Claims = field(default_factory=NoOthers)
    journal: Journal | None = None
    leases: Leases | None = None
    machine_lock: Path | None = None
    remote: Any = None

    def told(self, **changes: Any) -> None:
        """Keep what the driver's note says up to date."""
        if self.journal is not None:
            self.journal.update(**changes)

    def get(self, store: Store, key: str) -> Row | None:
        """The current row of a cell, which another driver may have written."""
        if self.remote is not None:
            self.remote.pull_row(key)
        return store.get(key)

    def push(self, row: Row) -> None:
        """Copy a new row to where others see it."""
        if self.remote is not None:
            self.remote.push_row(row)

    def beside_others(self) -> contextlib.AbstractContextManager[None]:
        """A block in which no other driver of this folder times anything on this machine."""
        if self.machine_lock is None:
            return contextlib.nullcontext()
        return waited(self.machine_lock, shared=True)

    def alone_here(self, say: Callable[[str], None]) -> contextlib.AbstractContextManager[None]:
        """A block in which no other driver of this folder does anything on this machine."""
        if self.machine_lock is None:
            return contextlib.nullcontext()
        line = "  waiting for another run of this folder on this machine"
        return waited(self.machine_lock, waiting=lambda: say(line))

    def close(self) -> None:
        """Give all leases back."""
        if self.leases is not None:
            self.leases.close()


def driver_among_others(folder: Path, leases: Leases, journal: Journal, remote: Any) -> Together:
    """A driver that shares a results folder."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    lock = Path(tempfile.gettempdir()) / f"quantarena-{os.getuid()}-{name}.lock"
    return Together(LeasedClaims(leases), journal, leases, lock, remote)
