"""Stages without torch that keep what they make in the real stage cache, and log begins and ends.

A line of ``stages.log`` is ``begin|end STAGE KEY PID``; a stage that ended must not begin again.
Each stage takes ``seconds`` of ``pace.json`` in the cache folder: kills hit it in the middle.
"""

import hashlib
import json
import os
import time
from dataclasses import replace

import fake_stages
import numpy as np
from fake_stages import Paths
from PIL import Image

from quantarena.bench.cache import StageCache
from quantarena.bench.schema import Measurement, Row, Status
from quantarena.bench.spec import content_key

__all__ = ["Paths", "prepare", "run_cell", "time_cell"]


def log(paths, *words):
    """One line, written whole: several processes write at once."""
    line = " ".join((*map(str, words), str(os.getpid()))) + "\n"
    handle = os.open(paths.cache / "stages.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, line.encode())
    os.close(handle)


def pause(paths, progress, stage):
    file = paths.cache / "pace.json"
    seconds = json.loads(file.read_text())["seconds"] if file.is_file() else 0.05
    for tenth in range(10):
        progress(stage, tenth, 10)
        time.sleep(seconds / 10)


def stage(paths, name, content, progress):
    """The value of a stage: 32 bytes that depend on its key."""
    key, made = content_key([name, *content]), []

    def make(folder):
        log(paths, "begin", name, key)
        made.append(True)
        pause(paths, progress, name)
        (folder / "value").write_bytes(hashlib.sha256(key.encode()).digest())

    value = StageCache(paths.cache).load(
        name, key, make, lambda folder: (folder / "value").read_bytes()
    )
    if made:
        log(paths, "end", name, key)
    return key, value


def shared(cell, paths, progress):
    recorded, _ = stage(paths, "record", [cell.shared_key], progress)
    drawn, _ = stage(paths, "fp_images", [cell.shared_key], progress)
    return recorded, drawn


def prepare(cell, paths, *, plugins=(), progress):
    shared(cell, paths, progress)
    return {"record": 0.1}


def run_cell(cell, paths, *, plugins=(), prefer_plugin=False, batch=0, progress):
    recorded, drawn = shared(cell, paths, progress)
    quantized, _ = stage(paths, "quantize", [recorded, cell.method, cell.bits], progress)
    images, pixels = stage(paths, "images", [quantized, drawn], progress)
    scores, value = stage(paths, "scores", [images], progress)
    folder = paths.results / "images" / cell.key
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.frombuffer(pixels[:16], np.uint8).reshape(4, 4)).save(folder / "0000.png")
    (paths.results / "scores").mkdir(exist_ok=True)
    psnr = 20 + np.frombuffer(value, np.uint8) / 16
    np.savez(paths.results / "scores" / f"{cell.key}.npz", psnr=psnr)
    mean = float(psnr.mean())
    return Row(
        cell,
        Status.OK,
        backend="fp32" if cell.method == "fp" else "packed",
        measurements=(Measurement("psnr", mean, mean - 0.5, mean + 0.5, 32, "dB", True),),
        method={"title": cell.method, "version": 1, "origin": "builtin"},
        seconds={"quantize": 0.02, "sample": 0.03},
        stage_keys={"quantize": quantized, "images": images, "scores": scores},
        artefacts={"images": f"images/{cell.key}", "scores": f"scores/{cell.key}.npz"},
    )


def time_cell(row, paths, *, plugins=(), progress):
    """Fake numbers, which take as long as a stage; the log shows whether two went on at once."""
    log(paths, "begin", "time", row.key)
    pause(paths, progress, "time")
    timed = fake_stages.time_cell(replace(row), paths, progress=progress)
    log(paths, "end", "time", row.key)
    return timed
