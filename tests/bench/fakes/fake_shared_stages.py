"""The fake stages with real cache entries: one for the shared stages, and one for each cell.

Each entry takes a moment to make, and the log has a line for each that was made.
"""

import time

import fake_stages
from fake_stages import Paths, note, time_cell

from quantarena.bench.cache import StageCache

__all__ = ["Paths", "prepare", "run_cell", "time_cell"]


def made(paths, stage, key, seconds):
    def make(folder):
        note(paths, f"make {stage}-{key}")
        time.sleep(seconds)
        (folder / "value").write_text(key)

    return StageCache(paths.cache).get(stage, key, make)


def prepare(cell, paths, *, plugins=(), progress):
    made(paths, "trajectory", cell.shared_key, 0.5)
    return fake_stages.prepare(cell, paths, progress=progress)


def run_cell(cell, paths, *, plugins=(), prefer_plugin=False, progress):
    made(paths, "trajectory", cell.shared_key, 0.5)
    made(paths, "quantize", cell.key, 0.5)
    return fake_stages.run_cell(cell, paths, progress=progress)
