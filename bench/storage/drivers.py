"""Notes of drivers: who works on a results folder, how far, and since when one is dead. No torch.

A driver writes one small file in ``drivers/`` every few seconds while it runs, and once at its end.
Whoever sees the store can read it; only a driver's own machine knows of its end at once.
"""

import contextlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from quantarena.bench import machine
from quantarena.bench.documents import clean_text, read
from quantarena.bench.files import write_atomic
from quantarena.bench.storage.leases import lease_seconds
from quantarena.bench.storage.owner import Owner, this_process

FOLDER = "drivers"
BEAT_SECONDS = 5.0
RUNNING, FINISHED, INTERRUPTED, FAILED = "running", "finished", "interrupted", "failed"
_KEPT = 20
"""Notes of drivers that have ended, of which the newest are kept."""


@dataclass(frozen=True, slots=True)
class Driver:
    """What a driver says of itself.

    Attributes:
        owner: its process.
        machine: processor, cores and GPU of its machine.
        command: command line that asks for the same cells.
        started: when, UTC in ISO 8601.
        beat: when it wrote this, by its own clock.
        state: ``running``, ``finished``, ``interrupted`` or ``failed``.
        workers: that it has.
        ended: tasks that are over, by this driver or by another one.
        total: tasks of its plan.
        running: label, stage, done and total of the tasks that run now.
        seconds_left: its estimate for all that is left, done by itself alone; None before one.
    """

    owner: Owner
    machine: dict[str, Any]
    command: str
    started: str
    beat: str
    state: str = RUNNING
    workers: int = 1
    ended: int = 0
    total: int = 0
    running: tuple[tuple[str, str, int, int], ...] = ()
    seconds_left: float | None = None

    @property
    def name(self) -> str:
        """Of its file: host, process and the beginning of its token."""
        host = re.sub(r"[^A-Za-z0-9.-]", "_", self.owner.host)[:60]
        return f"{host}-{self.owner.pid}-{self.owner.token[:8]}.json"

    def silent(self, now: datetime) -> float:
        """Seconds since its last note. Clocks of two machines may differ by some."""
        return max(0.0, (now - datetime.fromisoformat(self.beat)).total_seconds())

    def alive(self, now: datetime) -> bool:
        """Whether it runs, as far as this machine can tell."""
        if self.state != RUNNING or self.owner.gone():
            return False
        return self.silent(now) < max(lease_seconds(), 3 * BEAT_SECONDS)


@dataclass(slots=True)
class Journal:
    """Writes one driver's note while its block lasts.

    Attributes:
        folder: the results folder.
        driver: the note.
        push: called with the name and the text of each note, for a store elsewhere.
    """

    folder: Path
    driver: Driver
    push: Any = None
    _stop: Any = field(default_factory=threading.Event)
    _lock: Any = field(default_factory=threading.Lock)

    def update(self, **changes: Any) -> None:
        """Change the note; it is written at the next beat."""
        with self._lock:
            self.driver = replace(self.driver, **changes)

    def write(self) -> None:
        """Write the note now."""
        with self._lock:
            self.driver = replace(self.driver, beat=_now())
            driver = self.driver
        text = json.dumps(clean_text(asdict(driver)), indent=1) + "\n"
        write_atomic(self.folder / FOLDER / driver.name, text)
        if self.push is not None:
            self.push(f"{FOLDER}/{driver.name}", text.encode())

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Write the note in regular beats, and the state in which the block ended."""
        self.write()
        thread = threading.Thread(target=self._beat, name="driver's note", daemon=True)
        thread.start()
        state = FAILED
        try:
            yield
            state = FINISHED
        except KeyboardInterrupt:
            state = INTERRUPTED
            raise
        finally:
            self._stop.set()
            thread.join()
            self.update(state=state, running=())
            with contextlib.suppress(Exception):  # what ended the block is what counts
                self.write()

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            # A store that cannot be written now may be back at the next beat.
            with contextlib.suppress(Exception):
                self.write()


def new_driver(command: str, workers: int) -> Driver:
    """The note of the present process."""
    found = machine.fingerprint()
    facts = {name: found[name] for name in machine.COMPARED}
    return Driver(this_process(), facts, command, _now(), _now(), workers=workers)


def drivers(folder: Path) -> tuple[Driver, ...]:
    """The notes of a results folder, oldest first; damaged ones are left out."""
    found = []
    for path in (folder / FOLDER).glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            found.append(read(Driver, json.loads(path.read_text(encoding="utf-8"))))
    return tuple(sorted(found, key=lambda driver: driver.started))


def others_alive(folder: Path, own: Owner | None = None) -> tuple[Driver, ...]:
    """Drivers that run on a folder now, but for one's own."""
    now = datetime.now(UTC)
    return tuple(d for d in drivers(folder) if d.owner != own and d.alive(now))


def forget_old(folder: Path) -> None:
    """Delete all but the newest notes of drivers that have ended."""
    now = datetime.now(UTC)
    over = [driver for driver in drivers(folder) if not driver.alive(now)]
    for driver in over[:-_KEPT]:
        with contextlib.suppress(OSError):
            (folder / FOLDER / driver.name).unlink()


def together(seconds: Mapping[str, float | None]) -> float | None:
    """When several drivers are done that share what each of them would need so long for alone."""
    known = [value for value in seconds.values() if value]
    return 1.0 / sum(1.0 / value for value in known) if known else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
