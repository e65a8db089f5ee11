"""A large results folder, made up here, and what its page costs: seconds, bytes, and the browser.

    python tests/tools/large_results.py make /tmp/large --rows 10000
    python tests/tools/large_results.py measure /tmp/large
    python tests/tools/large_results.py browse /tmp/large      # needs Playwright and a Chromium

Three workloads, two policies, seven widths and several seeds; as many methods as the rows need, the
names of most of which end like those of plug-ins. One row in fifty failed. ``measure`` renders the
page in this process and prints its CPU seconds, with those of the processes that it forks; where
they went in this one prints ``--profile``. ``browse`` prints what a reader waits for, and how much
of it the page itself computes.
"""

import argparse
import cProfile
import importlib.util
import json
import os
import pstats
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from quantarena.bench.cli.main import main as command_line
from quantarena.bench.schema import Measurement, Row, Status
from quantarena.bench.scores import REPLICATES, UNITS
from quantarena.bench.spec import Budget, Grid
from quantarena.bench.store import Planned, Store, digest

ROOT = Path(__file__).parent.parent.parent
WORKLOADS = ("synthetic-blobs", "synthetic-rings", "synthetic-shapes")
WIDTHS = ("w8a8", "w6a8", "w4a8", "w6a6", "w4a6", "w4a4", "w2a4")
POLICIES = ("uniform", "published")
BUILTIN = ("rtn", "q_diffusion", "ptq4dm", "eda_dm", "dgq", "quest", "svdquant", "tfmq_dm")
KID = "kid/effnet-lite0"
ABSENT = ("fid/clean-fid/inception", "sfid/inception", "clipscore/clip-vit-large-patch14")
PICTURES, RESAMPLES = 16, 2000


def synthetic():
    """The module with which the tests of the leaderboard make up rows."""
    where = ROOT / "tests" / "leaderboard" / "conftest.py"
    spec = importlib.util.spec_from_file_location("leaderboard_conftest", where)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plan(rows, seeds, images):
    """A grid with at least that many rows, of as few methods as that takes."""
    each = len(WORKLOADS) * len(POLICIES) * len(WIDTHS) * seeds
    count = -(-(rows - len(WORKLOADS) * seeds) // each)
    plugins = [f"plugin_{n:02d}" for n in range(count)]
    methods = ("fp", *[*BUILTIN, *plugins][:count])
    budget = Budget(images=images, latency_rounds=20)
    return Grid(
        "large",
        "A large made-up run",
        WORKLOADS,
        methods,
        WIDTHS,
        seeds=tuple(range(seeds)),
        policies=POLICIES,
        budget=budget,
    )


def make(folder, rows, seeds, images):
    """Write the folder."""
    made = synthetic()
    grid = plan(rows, seeds, images)
    rng = np.random.default_rng(0)
    for place in ("rows", "scores"):
        (folder / place).mkdir(parents=True)
    for number in range(PICTURES):
        place = folder / "images" / f"{number:02d}"
        place.mkdir(parents=True)
        for index in range(8):
            made.picture(64, index, number / PICTURES, rng).save(place / f"{index:04d}.png")
    prompts = np.arange(images) % (images // 2)
    cells = grid.cells()
    skill = {m: np.exp(rng.normal(0, 0.25)) for m in grid.methods}
    hard = {(w, s): np.exp(rng.normal(0, 0.35, images)) for w in WORKLOADS for s in grid.seeds}
    for number, cell in enumerate(cells):
        if cell.method != "fp" and number % 50 == 7:
            write(folder, Row(cell, Status.FAILED, "NaN in mid_block.attn at step 7"))
            continue
        write(folder, *measured(cell, rng, skill[cell.method], hard, prompts, made))
    Store(folder).write_planned(Planned(grid.title, "quantarena run large", cells))
    print(f"{len(cells)} rows of {len(grid.methods)} methods in {folder}")


def measured(cell, rng, skill, hard, prompts, made):
    """An ok row and its scores."""
    fp = cell.method == "fp"
    level = 0.004 if fp else 0.01 * skill * 2 ** (1.2 * WIDTHS.index(cell.bits))
    count = cell.budget.images
    lpips = np.clip(
        level * hard[cell.workload, cell.seed] * np.exp(rng.normal(0, 0.3, count)), 0, 1
    )
    scores = {made.LPIPS: lpips, "psnr": 10 - 12 * np.log10(lpips), "ssim": 1 - 0.8 * lpips}
    if fp:
        scores = {f"floor:{made.LPIPS}": lpips}
    figures = [
        made.bootstrapped(values, name, rng, higher_is_better=name != made.LPIPS, reference="fp")
        for name, values in scores.items()
        if ":" not in name
    ]
    drawn = 0.02 + 0.05 * level + rng.normal(0, 0.002, RESAMPLES)
    low, value, high = (float(q) for q in np.quantile(drawn, [0.025, 0.5, 0.975]))
    figures.append(Measurement(KID, value, low, high, n=count, board="quality", impl="made up"))
    figures += [
        Measurement(name, None, board="quality", reason="needs at least 5,000 generated images")
        for name in ABSENT
    ]
    scores |= {REPLICATES + KID: drawn, UNITS: prompts}
    share = 1.0 if fp else 0.12 + 0.02 * cell.widths.weight
    ratio = 1.0 if fp else float(rng.uniform(1.1, 1.7))
    sample = made.sample_row(cell, ratio, share)
    row = replace(
        sample,
        measurements=tuple(figures),
        workload={**sample.workload, "prompts": [f"prompt {n}" for n in prompts]},
        calibration={"images": 128, "losses": [float(x) for x in rng.normal(size=60)]},
        artefacts={
            "scores": f"scores/{cell.key}.npz",
            "images": f"images/{0 if fp else 1 + int(rng.integers(PICTURES - 1)):02d}",
        },
    )
    return row, scores


def write(folder, row, scores=None):
    """Write a row as the store does, without waiting for the disk each time."""
    document = row.to_dict()
    document["digest"] = digest(document)
    (folder / "rows" / f"{row.key}.json").write_text(json.dumps(document, indent=1))
    if scores:
        np.savez(folder / row.artefacts["scores"], **scores)


def measure(folder, profile):
    """Run ``quantarena render`` in this process; print CPU and wall seconds and the page's size."""
    sys.argv = ["quantarena", "render", str(folder)]
    watch = cProfile.Profile()
    cpu, wall = sum(os.times()[:4]), time.perf_counter()
    if profile:
        watch.enable()
    try:
        command_line()
    except SystemExit as end:
        if end.code:
            raise
    watch.disable()
    spent = sum(os.times()[:4]) - cpu, time.perf_counter() - wall
    if profile:
        pstats.Stats(watch).sort_stats("cumulative").print_stats(60)
        pstats.Stats(watch).sort_stats("tottime").print_stats(30)
    size = (folder / "leaderboard.html").stat().st_size / 1e6
    print(f"{spent[0]:.1f} s of CPU, {spent[1]:.1f} s of wall time, page {size:.2f} MB")


def browse(folder):
    """Print milliseconds until the page is ready, and until a filter has changed what is shown."""
    from playwright.sync_api import sync_playwright

    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=synthetic().FLAGS)
        for attempt in range(3):
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            devtools = page.context.new_cdp_session(page)
            devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
            page.goto((folder / "leaderboard.html").as_uri(), timeout=120_000)
            found = page.evaluate(READY)
            spent = devtools.send("Performance.getMetrics")["metrics"]
            spent = {one["name"]: one["value"] for one in spent}
            found["CPU of the page's thread"] = 1000 * spent["TaskDuration"]
            print(f"attempt {attempt}: " + ", ".join(f"{k} {v:.0f} ms" for k, v in found.items()))
            page.close()
        browser.close()


READY = """async () => {
  const painted = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  await painted();
  const ready = performance.now();
  const field = document.querySelector("select[name=bits]");
  const first = performance.now();
  field.value = "w4a4";
  field.dispatchEvent(new Event("change", { bubbles: true }));
  const handled = performance.now();
  await painted();
  const shown = performance.now();
  document.querySelector("thead button").click();
  await painted();
  const load = performance.getEntriesByType("navigation")[0];
  const lag = performance.getEntriesByType("paint").find((e) => e.name.startsWith("first-content"));
  return { "first paint": lag?.startTime ?? NaN, "scripts ran": load.domContentLoadedEventEnd,
    "ready": ready, "filter handled": handled - first, "filter shown": shown - first,
    "sort shown": performance.now() - shown,
    "usable": ready + shown - first };
}"""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("make", "measure", "browse"):
        verbs.add_parser(verb).add_argument("folder", type=Path)
    verbs.choices["make"].add_argument("--rows", type=int, default=10_000)
    verbs.choices["make"].add_argument("--seeds", type=int, default=4)
    verbs.choices["make"].add_argument("--images", type=int, default=64)
    verbs.choices["measure"].add_argument("--profile", action="store_true")
    args = parser.parse_args()
    if args.verb == "make":
        make(args.folder, args.rows, args.seeds, args.images)
    elif args.verb == "measure":
        measure(args.folder, args.profile)
    else:
        browse(args.folder)


if __name__ == "__main__":
    main()
