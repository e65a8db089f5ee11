"""Stages that obey a script instead of computing: ``behaviour.json`` in the cache folder.

It maps ``method/bits`` (or ``prepare``, ``time``) to what happens there: ``ok`` (the default),
``raise``, ``user``, ``nan``, ``memory``, ``large`` (memory is short at the cell's own batch),
``kill``, ``hang``, ``nap``, ``interrupt``, ``exit``, ``quit``, ``turns`` (until two processes have
done something), ``lasting``, ``wrong`` or ``skip``.
"""

import json
import os
import signal
import time
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from quantarena.bench import process_state
from quantarena.bench.content import bytes_sha256, listing_sha256
from quantarena.bench.errors import UserError
from quantarena.bench.schema import Latency, Measurement, Observed, Parity, Row, Status

QUALITY = {"fp": 60.0, "w8a8": 45.0, "w4a8": 34.0, "w4a4": 25.0, "w2a4": 17.0}


@dataclass(frozen=True)
class Paths:
    results: Path
    cache: Path


def script(paths, name):
    file = paths.cache / "behaviour.json"
    return json.loads(file.read_text()).get(name, "ok") if file.is_file() else "ok"


def note(paths, line):
    """One line for each piece of work, so that a test sees what ran, in which process."""
    paths.cache.mkdir(parents=True, exist_ok=True)
    with open(paths.cache / "log.txt", "a") as stream:
        stream.write(f"{line} {os.getpid()}\n")


def act(what, paths=None):
    if what == "turns":
        until = time.monotonic() + 120
        log = paths.cache / "log.txt"
        while len({line.split()[-1] for line in log.read_text().splitlines()}) < 2:
            assert time.monotonic() < until, "nobody else came"
            time.sleep(0.05)
    if what == "raise":
        raise RuntimeError("the fake was told to raise")
    if what == "user":
        raise UserError("the model is damaged, fetch it again")
    if what == "memory":
        raise MemoryError
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "hang":
        time.sleep(600)
    if what == "nap":
        time.sleep(3)
    if what == "interrupt":
        raise KeyboardInterrupt
    if what == "exit":
        raise GeneratorExit
    if what == "quit":
        os._exit(0)
    if what == "lasting":
        process_state._lasting["the number of chairs"] = False


def prepare(cell, paths, *, plugins=(), progress):
    note(paths, f"prepare {cell.shared_key}")
    progress("record", 1, 1)
    act(script(paths, "prepare"))
    return {"record": 0.1}


def run_cell(cell, paths, *, plugins=(), prefer_plugin=False, batch=0, progress):
    name = f"{cell.method}/{cell.bits}"
    note(paths, f"cell {name}" + (f" batch {batch}" if batch else ""))
    progress("quantize", 3, 10)
    time.sleep(0.05)
    what = script(paths, name)
    if what == "skip":
        return Row(cell, Status.SKIPPED, "not made for these bits")
    if what == "wrong":
        return Row(replace(cell, seed=cell.seed + 1), Status.OK)
    if what == "large" and not batch:
        raise MemoryError
    act(what, paths)
    rng = np.random.default_rng(zlib.crc32(f"{cell.method}{cell.bits}".encode()))
    scores = rng.normal(QUALITY.get(cell.bits, 30.0) + (cell.method == "q_diffusion"), 1.0, 16)
    value = float("nan") if what == "nan" else float(scores.mean())
    images = paths.results / "images" / cell.key
    images.mkdir(parents=True, exist_ok=True)
    for index in range(4):
        pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{index:04d}.png")
    (paths.results / "scores").mkdir(exist_ok=True)
    file = paths.results / "scores" / f"{cell.key}.npz"
    np.savez(file, psnr=scores)
    return Row(
        cell,
        Status.OK,
        backend="fp32" if cell.method == "fp" else "packed",
        measurements=(Measurement("psnr", value, value - 0.5, value + 0.5, 16, "dB", True),),
        observed=Observed(
            4.1, 8.0, {"w4a8": 1.0}, 1_000_000, 4_000_000, 10, 4.0, 320, 10_240, 0, 0
        ),
        parity=None if cell.method == "fp" else Parity(1e-7, "conv_in", 10, 1e-5),
        method={"title": cell.method, "version": 1, "origin": "builtin"},
        seconds={"quantize": 0.02, "sample": 0.03},
        artefacts={
            "images": f"images/{cell.key}",
            "images_sha256": listing_sha256({p.name: bytes_sha256(p) for p in images.iterdir()}),
            "scores": f"scores/{cell.key}.npz",
            "scores_sha256": bytes_sha256(file),
        },
    )


def time_cell(row, paths, *, plugins=(), progress):
    note(paths, f"time {row.cell.method}/{row.cell.bits}")
    act(script(paths, "time"))
    ratio = 1.0 if row.cell.method == "fp" else 1.7
    timed = Latency(
        10.0,
        0.1,
        10.0 * ratio,
        "fp32 eager",
        ratio,
        ratio - 0.1,
        ratio + 0.1,
        100.0,
        16,
        20,
        1,
        row.backend,
        "perf_counter",
        1000,
    )
    return replace(row, latency=timed)
