"""Runs a request: plans it, runs what is missing, writes rows and page."""

import importlib
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from quantarena.bench import files, machine
from quantarena.bench.cli.options import MOST_WORKERS, Request
from quantarena.bench.errors import UserError
from quantarena.bench.files import TEMPORARY, sweep, sweep_drafts
from quantarena.bench.plan import lookup
from quantarena.bench.plan.past import past
from quantarena.bench.plan.plan import Plan, make_plan, plan_lines
from quantarena.bench.report import publish
from quantarena.bench.report.worse import unguarded, warn_of_worse
from quantarena.bench.run import executors
from quantarena.bench.run.executors import Executor, Listener, Remote, Setting
from quantarena.bench.run.reporter import Reporter
from quantarena.bench.run.rows import counts
from quantarena.bench.run.runner import Options, Run
from quantarena.bench.run.together import driver_among_others
from quantarena.bench.schema import Row
from quantarena.bench.share.place import require_unjoined
from quantarena.bench.spec import Cell
from quantarena.bench.storage.drivers import (
    Driver,
    Journal,
    forget_old,
    new_driver,
    others_alive,
)
from quantarena.bench.storage.leases import Leases
from quantarena.bench.storage.mounts import local_locks
from quantarena.bench.storage.outlines import outlines
from quantarena.bench.storage.shelves import FolderShelf
from quantarena.bench.storage.stages import CACHE, LEASES
from quantarena.bench.storage.sync import RunSync, sync_of
from quantarena.bench.store import Planned, Store, Warn

MOST_MINUTES = 366 * 24 * 60

TimeoutOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Minutes that a cell may take; 0 for no limit. [default: 8 x its estimate]",
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Do not show progress.")]


@dataclass(frozen=True, slots=True)
class Finished:
    """What a run has left.

    Attributes:
        plan: the plan that it worked off.
        rows: outlines of all rows of its folder, by key.
        page: path of the page.
        seconds: wall seconds of this run.
    """

    plan: Plan
    rows: dict[str, Row]
    page: Path
    seconds: float

    @property
    def counts(self) -> dict[str, int]:
        """Number of planned cells by status."""
        return counts(self.plan.cells, self.rows)

    @property
    def code(self) -> int:
        """The exit code: 1 where cells failed."""
        found = self.counts
        return 1 if any(found[state] for state in ("failed", "timeout", "oom", "missing")) else 0


def run_request(request: Request, timeout: float | None, reporter: Reporter) -> Finished:
    """Run what is missing of a request, then write the page.

    Args:
        request: what to run.
        timeout: minutes that a cell may take, None for a multiple of its estimate.
        reporter: shows progress.

    Raises:
        UserError: the timeout is out of range, the folder holds rows of another budget or joins
            those of several folders, or the disk is full.
    """
    check_timeout(timeout)
    options = Options(
        cache=request.results / CACHE,
        stages=executors.STAGES,
        plugins=request.plugins,
        prefer_plugin=request.prefer_plugin,
        timeout=None if timeout is None else timeout * 60,
        force=request.force,
    )
    began = time.monotonic()
    store = Store(request.folder, reporter.warn)
    with store.lock(beside_others=True) as lock:
        made, rows, page = _execute(request, options, store, reporter, lock)
    done = Finished(made, rows, page, time.monotonic() - began)
    for cell in made.cells:
        row = rows.get(cell.key)
        if row is not None and row.reason:
            reporter.say(f"  {cell.label} {row.status}: {row.reason}")
    return done


def check_timeout(timeout: float | None) -> None:
    """Refuse a timeout that is out of range.

    Raises:
        UserError: it is.
    """
    if timeout is not None and not 0 <= timeout <= MOST_MINUTES:
        raise UserError(
            f"--timeout {timeout}: give minutes, at most {MOST_MINUTES} (a year); 0 is no limit"
        )


def _execute(
    request: Request, options: Options, store: Store, reporter: Reporter, lock: files.FolderLock
) -> tuple[Plan, dict[str, Row], Path]:
    require_unjoined(request.folder)
    files.ensure_folder(options.cache)
    sync = sync_of(store.folder, reporter.warn)
    if sync is not None:
        sync.require_conditions()
        sync.pull()
    elif how := local_locks(store.folder):
        reporter.warn(
            f"{store.folder} lies on {how}, whose locks do not hold on other machines: run on one "
            "machine at a time there, or mount it with locks"
        )
    others = others_alive(store.folder)
    alone = lock.alone and not others
    _sweep(options.cache, request.folder, alone=alone)
    rows = outlines(store)
    require_budget(request, rows)
    if request.force and not alone:
        raise UserError(_not_forced(request.folder, others))
    known = history(request, reporter.warn)
    made = planned_work(request, rows, known)
    for line in plan_lines(made, request.folder):
        reporter.say(line)
    if request.warning and made.todo:
        reporter.say(f"  note: {request.warning}")
    _check_disk(made, request.folder)
    retired = _of_other_budgets(request, rows)
    store.retire(retired)
    _keep_planned(request, store, made.cells)
    journal = Journal(store.folder, new_driver(request.command, made.fan.workers))
    leases = Leases(FolderShelf(store.folder / LEASES) if sync is None else sync.shelf(LEASES))
    if sync is not None:
        journal.push = sync.push
        sync.forget_rows(retired)
        sync.push_changed()
    lock.share()
    for other in others:
        reporter.say(f"  beside {other.owner.label}, which has {other.ended} of {other.total}")
    together = driver_among_others(store.folder, leases, journal, sync)
    options = replace(options, remote=_remote(request, made))
    work = Run(made, store, options, reporter, known, together, rows)
    with journal.beating():
        try:
            work.execute()
        except KeyboardInterrupt:
            kept = len(made.cells) - counts(made.cells, _by_key(store))["missing"]
            reporter.warn(
                f"interrupted: {kept} of {len(made.cells)} cells are kept in {request.folder}; "
                "run the same command again to continue"
            )
            raise
        page = _page(request, store, made, leases, reporter, sync)
        if sync is not None:
            sync.push_changed()
    forget_old(store.folder)
    return made, _by_key(store), page


def _page(
    request: Request,
    store: Store,
    made: Plan,
    leases: Leases,
    reporter: Reporter,
    sync: RunSync | None,
) -> Path:
    """Judge the rows and write the page; of several drivers one after the other does."""
    while (lease := leases.take("page")) is None:
        time.sleep(0.5)
    try:
        if sync is not None:
            sync.pull()
        planned = _keep_planned(request, store, made.cells)  # others may have planned more
        stamp = publish.stamp(store, planned)
        if not request.force and (page := publish.current(store, stamp)) is not None:
            if line := unguarded(outlines(store)):
                reporter.say(f"  note: {line}")
            return page
        if warn_of_worse(store):
            stamp = publish.stamp(store, planned)
        if line := unguarded(outlines(store)):
            reporter.say(f"  note: {line}")
        return publish.refresh(store, planned, given=stamp)
    finally:
        leases.release(lease)


def _not_forced(folder: Path, others: Sequence[Driver]) -> str:
    who = ", ".join(other.owner.label for other in others) or "another run"
    return f"--force takes rows of {folder} away, and {who} works there: wait for it, or stop it"


def _of_other_budgets(request: Request, rows: Sequence[Row]) -> tuple[Row, ...]:
    return tuple(row for row in rows if row.cell.budget != request.grid.budget)


def require_budget(request: Request, rows: Sequence[Row]) -> None:
    """Refuse a run that would take the rows of another budget off the page, unless forced.

    Raises:
        UserError: the folder holds such rows; the line says in what they differ.
    """
    others = _of_other_budgets(request, rows)
    if not others or request.force:
        return
    wanted, found = asdict(request.grid.budget), asdict(others[0].cell.budget)
    gaps = [f"{n} {found[n]} there, {wanted[n]} now" for n in wanted if found[n] != wanted[n]]
    raise UserError(
        f"{request.folder} holds {len(others)} rows of another budget ({'; '.join(gaps)}): choose "
        "another --name, or move them to rows/earlier with --force"
    )


def planned_work(request: Request, rows: tuple[Row, ...], known: tuple[Row, ...]) -> Plan:
    """The plan of a request against the rows of its folder; ``known`` ones help to estimate."""
    facts = lookup.facts(request.grid, request.plugins, prefer_plugin=request.prefer_plugin)
    cells, here = request.grid.cells(), machine.fingerprint()
    seen = past(request.results / CACHE, cells, (*rows, *known), facts.stamp, here)
    return make_plan(
        request.grid,
        rows,
        history=known,
        facts=facts,
        past=seen,
        force=request.force,
        executor=request.executor,
        workers=request.workers,
        address=request.address,
    )


def _remote(request: Request, made: Plan) -> Remote | None:
    """What makes the executors of the cluster that is asked for."""
    if not request.address:
        return None
    cluster = importlib.import_module("quantarena.bench.cluster.executor")
    infos = (lookup.workload(name) for name in request.grid.workloads)
    zoo = Path(lookup.__file__).parents[1] / "workloads"  # travels with the package
    paths = [Path(info.path) for info in infos]
    pool = cluster.Pool(
        address=request.address,
        most=request.workers or MOST_WORKERS,
        target=request.grid.target,
        memory=made.memory,
        device_memory=made.memory,
        models=tuple(str(path) for path in paths if not path.is_relative_to(zoo)),
    )

    def make(
        setting: Setting,
        listener: Listener,
        timeout: float,
        *,
        timing: bool,
        say: Callable[[str], None],
    ) -> Executor:
        todo = made.todo.untimed if timing else made.todo.cells
        asked = replace(pool, timing=timing, most=max(1, min(pool.most, len(todo))))
        executor: Executor = cluster.ClusterExecutor(setting, listener, asked, timeout, say)
        return executor

    return make


def history(request: Request, warn: Warn) -> tuple[Row, ...]:
    """Outlines of other runs beside this one; what they took helps to estimate."""
    others = sorted(request.results.glob("[!.]*/rows")) if request.results.is_dir() else ()
    folders = (path.parent for path in others if path.parent != request.folder)
    stores = (Store(folder, warn, foreign=True) for folder in folders)
    return tuple(row for store in stores for row in outlines(store))


def _keep_planned(request: Request, store: Store, cells: tuple[Cell, ...]) -> Planned:
    """Store what is planned. What was planned here before at this budget stays on the page."""
    before = store.read_planned()
    earlier = before.cells if before else ()
    kept = tuple(cell for cell in earlier if cell.budget == request.grid.budget)
    made = Planned(request.grid.title, request.command, tuple(dict.fromkeys((*kept, *cells))))
    if made != before:
        store.write_planned(made)
    return made


def _sweep(cache: Path, folder: Path, *, alone: bool) -> None:
    """Delete what killed runs left behind, of a folder that others use only what is old."""
    sweep(cache)
    sweep(Path(tempfile.gettempdir()), TEMPORARY)
    for name in ("rows", "rows/earlier", "scores"):
        sweep_drafts(folder / name, now=alone)
    sweep_drafts(folder)
    for place in (cache, folder):
        Leases(FolderShelf(place / LEASES)).sweep()


def _check_disk(made: Plan, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if made.todo and made.disk > free:
        raise UserError(
            f"{folder} has {free / 1e6:.0f} MB free and the run needs about "
            f"{made.disk / 1e6:.0f} MB: free some space, or choose another place with --results"
        )


def _by_key(store: Store) -> dict[str, Row]:
    return {row.key: row for row in outlines(store)}
