"""How much the harness adds to a plain loop over the same stages, beside the start of Ray.

A plain loop calls the stages of each cell in one process: shared stages, cells, timings. The same
cells then run under ``quantarena run``, in this process and on one private Ray worker, each with a
cache of its own. In each of them all calls of stages are timed where they happen, and what the
whole process takes beyond their sum is counted: imports, planning, messages, files, the page. What
other programs do to the stages changes neither side of that difference. Ray's start is measured
apart, by a run that does nothing but start one worker, and is taken off.

    python docs/experiments/speed/run_overhead.py --workload emoji-t2i --images 16 --repeats 3
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timed_stages

LOOP = """
import sys
from pathlib import Path
from quantarena.bench.documents import parse_json, read
from quantarena.bench.store import Store
import timed_stages as sequence

folder = Path(sys.argv[1])
cells = Store(folder / "planned").read_planned().cells
paths = sequence.Paths(folder / "results", folder / "cache")
quiet = lambda *news: None
for cell in {cell.shared_key: cell for cell in cells}.values():
    sequence.prepare(cell, paths, progress=quiet)
rows = [sequence.run_cell(cell, paths, progress=quiet) for cell in cells]
timed = [sequence.time_cell(row, paths, progress=quiet) for row in rows]
print(len(timed), [str(row.status) for row in timed])
"""
START = """
from quantarena.bench.run.executors import STAGES, Setting
from quantarena.bench.run.ray_executor import RayExecutor
import sys
made = RayExecutor(Setting(sys.argv[1], sys.argv[1], STAGES), lambda *news: None, 1)
made._ray.get([slot.actor.pid.remote() for slot in made._slots])
made.close()
"""
COMMAND = """
import sys
from quantarena.bench.run import executors
executors.STAGES = "timed_stages"
from quantarena.bench.cli.main import main
sys.exit(main())
"""


def spent(*command: str) -> tuple[float, float, str]:
    """Wall seconds, those of them that are outside of all stages, and what it printed."""
    with tempfile.NamedTemporaryFile("r", suffix=".spans") as spans:
        here = str(Path(__file__).parent)
        paths = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
        given = os.environ | {timed_stages.SPANS: spans.name, "PYTHONPATH": paths}
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=given)
        wall = time.monotonic() - began
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        return wall, wall - sum(map(float, spans)), done.stdout


def main() -> None:
    """Measure, and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", default="emoji-t2i")
    parser.add_argument("--method", default="rtn,ptq4dm")
    parser.add_argument("--bits", default="w8a8,w4a8")
    parser.add_argument("--images", default="16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ray", action="store_true", help="also one private Ray worker")
    given = parser.parse_args()
    grid = ["quick", "--workload", given.workload, "--method", f"fp,{given.method}"]
    grid += ["--bits", given.bits, "--images", given.images, "--name", "planned"]
    found: dict[str, list[tuple[float, float]]] = {}

    with tempfile.TemporaryDirectory() as folder:
        planned(grid, Path(folder))
        for repeat in range(given.repeats):
            place = Path(folder) / str(repeat)
            (place / "loop").mkdir(parents=True)
            os.symlink(Path(folder) / "planned", place / "loop" / "planned")
            loop = spent(sys.executable, "-c", LOOP, str(place / "loop"))
            found.setdefault("loop", []).append(loop[:2])
            for name, executor in (("local", "local"), ("ray", "ray")):
                if name == "ray" and not given.ray:
                    continue
                where = ["--results", str(place / name), "--executor", executor, "--workers", "1"]
                ran = spent(sys.executable, "-c", COMMAND, "run", *grid, "-q", *where)
                found.setdefault(name, []).append(ran[:2])
            if given.ray:
                started = spent(sys.executable, "-c", START, str(place))
                found.setdefault("start of Ray", []).append(started[:2])
    print(json.dumps(summary(found), indent=1))


def planned(grid: list[str], folder: Path) -> None:
    """Write the plan of the grid, which the loop reads."""
    from quantarena.bench.documents import read
    from quantarena.bench.spec import Cell
    from quantarena.bench.store import Planned, Store

    _, _, text = spent(sys.executable, "-c", COMMAND, "plan", *grid, "--json")
    cells = json.loads(text)["cells"]
    for cell in cells:
        del cell["key"], cell["done"]
    made = tuple(read(Cell, cell) for cell in cells)
    Store(folder / "planned").write_planned(Planned("", "", made))


def summary(found: dict[str, list[tuple[float, float]]]) -> dict[str, object]:
    """Medians over repeats, and what each way takes more than the loop.

    Both are relative to the stages of the loop: seconds outside of stages, less the loop's own and,
    with Ray, less Ray's start.
    """
    walls = {name: statistics.median(wall for wall, _ in runs) for name, runs in found.items()}
    outside = {name: statistics.median(rest for _, rest in runs) for name, runs in found.items()}
    stages = walls["loop"] - outside["loop"]
    more = {}
    for name in ("local", "ray"):
        if name in outside:
            start = outside["start of Ray"] if name == "ray" else 0.0
            more[name] = round((outside[name] - outside["loop"] - start) / stages, 4)
    return {"runs": found, "wall": walls, "outside": outside, "more than the loop": more}


if __name__ == "__main__":
    main()
