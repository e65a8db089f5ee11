"""Leases: each names a piece of work that one process at a time does, while it lives. No torch.

A lease is a record on a shelf (``shelves.py``). Its holder renews it every few seconds. Who wants
it watches the record, by its own clock alone: clocks of machines differ. A record that has not
changed for the time of a lease is dead; one whose holder is known to have ended is dead at once.

A dead lease has one heir: the process that creates ``NAME.heir-TOKEN``, where TOKEN is that of the
dead holder. It then puts its own record in place. A holder that was only asleep finds that the
record is another's: its lease is *lost*, and what it made is not written.
"""

import contextlib
import json
import os
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from quantarena.bench.storage.owner import Owner, this_process
from quantarena.bench.storage.shelves import Shelf

VARIABLE = "QUANTARENA_LEASE_SECONDS"
"""Environment variable: seconds without a renewal after which a lease is dead, 60 by default."""
_BEATS = 6
"""Renewals in that time."""
_LONGEST = 3600.0
"""Seconds that a holder may ask others to wait, at most."""
_HEIR = ".heir-"
"""Between the name of a dead lease and its holder's token, in the name of its heir's record."""


def lease_seconds() -> float:
    """Seconds without a renewal after which a lease is dead."""
    with contextlib.suppress(ValueError):
        if (seconds := float(os.environ.get(VARIABLE, ""))) >= 0.5:
            return seconds
    return 60.0


@dataclass(slots=True)
class Lease:
    """A lease that this process holds.

    Attributes:
        name: of the work.
        owner: this process, with the lease's own token.
        data: the record.
        lost: whether a beat has found another's record in its place.
    """

    name: str
    owner: Owner
    data: bytes
    lost: bool = False


@dataclass(slots=True)
class Leases:
    """The leases of this process on one shelf.

    Attributes:
        shelf: where the records lie.
        seconds: without a renewal after which a lease is dead.
    """

    shelf: Shelf
    seconds: float = field(default_factory=lease_seconds)
    _held: dict[str, Lease] = field(default_factory=dict)
    _seen: dict[str, tuple[str, float]] = field(default_factory=dict)
    _lock: Any = field(default_factory=threading.RLock)
    _wake: Any = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def take(self, name: str) -> Lease | None:
        """The lease of that name, or None while another process holds it."""
        owner = this_process()
        said = {
            "owner": owner.to_dict(),
            "taken": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": self.seconds,
        }
        lease = Lease(name, owner, json.dumps(said).encode())
        for _ in range(2):  # the record may be deleted between the two calls
            if self.shelf.create(name, lease.data):
                return self._keep(lease)
            if (found := self.shelf.read(name)) is not None:
                if _owner(found[0]) == owner:  # created by a try whose answer was lost
                    return self._keep(lease)
                return self._inherit(lease, *found)
        return None

    def ours(self, lease: Lease) -> bool:
        """Whether the record is still this lease's own, seen now.

        One that somebody has deleted is put back: what is missing is nobody else's.
        """
        found = self.shelf.read(lease.name)
        if found is None and not lease.lost and self.shelf.create(lease.name, lease.data):
            return True
        if found is None or _owner(found[0]) != lease.owner:
            lease.lost = True
        return not lease.lost

    def release(self, lease: Lease) -> None:
        """Give a lease back. A lost one is left to its new holder."""
        with self._lock:
            self._held.pop(lease.name, None)
        with contextlib.suppress(OSError):
            if self.ours(lease):
                self.shelf.delete(lease.name)

    def close(self) -> None:
        """Give all leases back."""
        with self._lock:
            held = tuple(self._held.values())
        for lease in held:
            self.release(lease)
        self._wake.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=self.seconds)
        self._thread = None

    def holder(self, name: str) -> Owner | None:
        """Who holds a lease, or None."""
        found = self.shelf.read(name)
        return None if found is None else _owner(found[0])

    def sweep(self) -> int:
        """Delete the records of processes that are known to have ended; returns how many.

        Each is inherited first: another process may be inheriting it at the same moment.
        """
        swept = 0
        for name in self.shelf.names():
            owner = self.holder(name)
            if owner is None or not owner.gone():
                continue
            if _HEIR in name:  # a process that died while it inherited
                self.shelf.delete(name)
            elif (lease := self.take(name)) is not None:
                self.release(lease)
            else:
                continue
            swept += 1
        return swept

    def _inherit(self, lease: Lease, data: bytes, mark: str) -> Lease | None:
        """Take a dead lease over; None while its holder lives or another process inherits."""
        before, name = _owner(data), lease.name
        if not self._dead(name, data, mark):
            return None
        token = before.token if before is not None else "unreadable"
        heir = f"{name}{_HEIR}{token}"
        if not self.shelf.create(heir, lease.data):
            other = self.shelf.read(heir)  # one that died while it inherited is forgotten
            if other is not None and self._dead(heir, *other):
                self.shelf.delete(heir)
            return None
        try:
            now = self.shelf.read(name)
            if now is None or _owner(now[0]) != before:
                return None
            self.shelf.replace(name, lease.data)
        finally:
            self.shelf.delete(heir)
        return self._keep(lease)

    def _dead(self, name: str, data: bytes, mark: str) -> bool:
        """Whether a record's holder has ended, or was silent for its own time and for ours."""
        owner = _owner(data)
        if owner is not None and owner.gone():
            return True
        now = time.monotonic()
        known, since = self._seen.get(name, ("", now))
        if known != mark:
            self._seen[name] = (mark, now)
            return False
        return now - since > max(self.seconds, _seconds(data))

    def _keep(self, lease: Lease) -> Lease:
        with self._lock:
            self._seen.pop(lease.name, None)
            self._held[lease.name] = lease
            if self._thread is None or not self._thread.is_alive():
                self._wake.clear()
                self._thread = threading.Thread(target=self._renew, name="leases", daemon=True)
                self._thread.start()
        return lease

    def _renew(self) -> None:
        """Renew what is held, until nothing is."""
        while not self._wake.wait(self.seconds / _BEATS):
            with self._lock:
                held = tuple(self._held.values())
                if not held:
                    self._thread = None
                    return
            for lease in held:
                # A store that cannot be reached now may be back at the next beat.
                with contextlib.suppress(Exception), self._lock:
                    if lease.name in self._held and not lease.lost and self.ours(lease):
                        self.shelf.beat(lease.name, lease.data)


def _seconds(data: bytes) -> float:
    """Seconds without a renewal that the holder of a record may take; 0 if it says none."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return min(float(json.loads(data.partition(b"\n")[0])["seconds"]), _LONGEST)
    return 0.0


def _owner(data: bytes) -> Owner | None:
    """The owner in a record, or None if it cannot be read."""
    try:
        return Owner.of(json.loads(data.partition(b"\n")[0])["owner"])
    except (ValueError, KeyError, TypeError):
        return None
