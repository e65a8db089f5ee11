"""What a large store costs its driver: seconds and memory of plan, status and a run of nothing.

    python tests/tools/store_scale.py make /tmp/scale --rows 10000
    python tests/tools/store_scale.py measure /tmp/scale --json scale.json

``make`` writes a results folder as ``quantarena run quick --seed 0 --seed 1 ...`` leaves it: the
cells of the preset for as many seeds as the rows need, each with a row that has the fields of a
real one, made-up numbers and the stamp of the present code. There are no images, and the page is
one line: what a page of so many rows costs is measured by ``large_results.py``. ``measure`` runs
each verb in a process of its own, ``plan`` also without an index of outlines. It prints
wall and CPU seconds, and the peak of resident memory. ``--like FILE`` takes a real row as pattern.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from quantarena.bench import machine
from quantarena.bench.plan import lookup, presets
from quantarena.bench.report import publish
from quantarena.bench.schema import Latency, Measurement, Observed, Parity, Row, Status
from quantarena.bench.storage.outlines import INDEX
from quantarena.bench.store import Planned, Store, digest, parse_row

NAME = "scaled"
VERBS = ("plan", "run", "status")
PROGRAM = (
    "import sys; sys.argv[0] = 'quantarena'; from quantarena.bench.cli.main import main; main()"
)


def seeds_for(rows):
    return max(1, -(-rows // len(presets.preset("quick").grid.cells())))


def choice(seeds):
    return presets.Choice(seeds=tuple(range(seeds)), name=NAME)


def pattern():
    """A row of the size and the fields of a real one; its numbers are made up."""
    figures = [
        Measurement(name, 0.1234567, 0.1, 0.2, 128, "", True, impl="made up 1.0", reference="fp")
        for name in ("psnr", "ssim", "lpips/alex", "sqnr", "kid/effnet-lite0", "fd/effnet-lite0")
    ]
    latency = Latency(
        10.0, 0.1, 12.0, "fp32 channels_last", 1.2, 1.1, 1.3, 100.0, 16, 20, 1, "packed",
        "perf_counter", 10_000_000,
    )  # fmt: skip
    losses = {f"block.{n}": {"before": 0.5, "after": 0.25, "lr": 0.001} for n in range(40)}
    return Row(
        presets.preset("quick").grid.cells()[0],
        Status.OK,
        backend="packed",
        measurements=tuple(figures),
        observed=Observed(4.2, 8.0, {"w4a8": 0.97, "w8a8": 0.03}, 10**6, 8 * 10**6, 80, 4.1,
                          10**9, 10**10, 0, 0),
        parity=Parity(1e-7, "conv_in", 80, 1e-5),
        latency=latency,
        calibration={"points": 128, "core_seconds": 12.0, "notes": {"blocks": losses}},
        method={"title": "Made up", "venue": "-", "version": 1, "origin": "builtin"},
        workload={"sha256": "0" * 64, "steps": 20, "prompts": [f"prompt {n}" for n in range(128)]},
        machine=machine.fingerprint(),
        seconds={"quantize": 20.0, "pack": 0.5, "parity": 1.0, "sample": 15.0, "score": 4.0,
                 "other": 1.0, "time": 8.0},
        peak_bytes=10**9,
        warnings=("calibrated on all 128 points recorded; 1024 were asked",),
        started="2026-01-01T00:00:00+00:00",
        finished="2026-01-01T00:01:00+00:00",
    )  # fmt: skip


def make(results, rows, like):
    grid = presets.choose(presets.preset("quick").grid, choice(seeds_for(rows)))
    cells, stamp = grid.cells(), lookup.facts(grid).stamp  # whole seeds: nothing is left to run
    row = parse_row(like.read_text(), signed=False) if like else pattern()
    store = Store(results / NAME)
    store.rows_folder.mkdir(parents=True)
    for number, cell in enumerate(cells):
        seconds = {name: value * (1 + number % 7 / 20) for name, value in row.seconds.items()}
        keys = {"quantize": f"{number:016x}", "images": f"{number:016x}", "inputs": stamp(cell)}
        document = replace(row, cell=cell, seconds=seconds, stage_keys=keys).to_dict()
        document["digest"] = digest(document)
        store.path(cell.key).write_text(json.dumps(document, indent=1))
    command = presets.command("quick", choice(seeds_for(rows)), ())
    planned = Planned(grid.title, command, cells)
    store.write_planned(planned)
    (store.folder / publish.PAGE).write_text("one line\n")
    (store.folder / ".page.json").write_text(json.dumps(publish.stamp(store, planned)))
    size = store.path(cells[0].key).stat().st_size
    print(f"{len(cells)} rows of {size} bytes in {store.folder}")


def measure(results, file):
    folder = results / NAME
    planned = json.loads((folder / "plan.json").read_text())
    seeds = [str(seed) for seed in sorted({cell["seed"] for cell in planned["cells"]})]
    grid = ["quick", "--name", NAME, *(word for seed in seeds for word in ("--seed", seed))]
    verbs = {
        "plan": ["plan", *grid, "--results", str(results)],
        "run": ["run", *grid, "--results", str(results), "--quiet"],
        "status": ["status", NAME, "--results", str(results)],
    }
    found = {"rows": len(planned["cells"]), "machine": machine.fingerprint()["cpu"], "verbs": {}}
    (folder / INDEX).unlink(missing_ok=True)
    for name, verb in (("plan without index", "plan"), *((verb, verb) for verb in VERBS)):
        found["verbs"][name] = spent(verbs[verb])
        print(f"{len(planned['cells'])} rows, {name}: {found['verbs'][name]}", flush=True)
    if file:
        file.write_text(json.dumps(found, indent=1) + "\n")


def spent(words):
    """Wall seconds, CPU seconds and peak megabytes of a command line in a process of its own."""
    began = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", PROGRAM, *words], stdout=subprocess.DEVNULL)
    _, code, usage = os.wait4(child.pid, 0)
    child.returncode = code
    wall = time.perf_counter() - began
    if code:
        raise SystemExit(f"{' '.join(words[:2])} ended with {code}")
    return {
        "wall_s": round(wall, 2),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": round(usage.ru_maxrss / 1024),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("make", "measure"):
        verbs.add_parser(verb).add_argument("results", type=Path)
    verbs.choices["make"].add_argument("--rows", type=int, default=10_000)
    verbs.choices["make"].add_argument("--like", type=Path)
    verbs.choices["measure"].add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.verb == "make":
        make(args.results, args.rows, args.like)
    else:
        measure(args.results, args.json)


if __name__ == "__main__":
    main()
