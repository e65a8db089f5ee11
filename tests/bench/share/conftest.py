"""Small results whose numbers are true: made-up pictures, scored by the package's own metrics."""

import dataclasses
import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from quantarena.bench.content import bytes_sha256, listing_sha256
from quantarena.bench.machine import fingerprint
from quantarena.bench.metrics.fidelity.fidelity import fidelity, summarise
from quantarena.bench.metrics.image_folder import save_folder
from quantarena.bench.schema import Latency, Row, Status
from quantarena.bench.scores import UNITS
from quantarena.bench.share.manifest import FileEntry, read_manifest, write_manifest
from quantarena.bench.share.submit import submit
from quantarena.bench.share.tables import _model
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.store import Store, signed_text
from quantarena.bench.workloads import registry
from quantarena.bench.workloads.sampling import Draw, generators_of

WORKLOAD, IMAGES, SIDE = "emoji-dit", 4, 32
BUDGET = Budget(images=IMAGES, batch=2, calibration_images=2, calibration_samples=8)
SHARED = {name: fingerprint()[name] for name in ("versions", "arch", "isa")}
MACHINES = {
    "first": {"cpu": "First CPU", "cores": 2, "gpu": None, **SHARED},
    "second": {"cpu": "Second CPU", "cores": 8, "gpu": None, **SHARED},
}
WIDTHS = {"w8a8": 2.0, "w4a8": 12.0, "w4a4": 40.0}


def cell(method, bits, **changes):
    return Cell(WORKLOAD, method, bits, budget=BUDGET, **changes)


def pictures(noise):
    rng = np.random.default_rng(7)
    base = rng.integers(40, 200, (IMAGES, 3, 8, 8)).repeat(SIDE // 8, 2).repeat(SIDE // 8, 3)
    noisy = base + np.random.default_rng(int(noise)).normal(0, noise, base.shape)
    return torch.from_numpy(np.clip(noisy, 0, 255).astype(np.uint8))


def noise(batch):
    """The hash of what the network of emoji-dit sees first: each half of guidance has the noise."""
    info, digest = registry.describe(WORKLOAD), hashlib.sha256()
    draw = Draw("evaluate", IMAGES, 0, info.steps, batch)
    for start in range(0, IMAGES, batch):
        seeds = generators_of(info, draw, range(start, start + batch))
        latents = torch.cat([torch.randn((1, 4, 8, 8), generator=seed) for seed in seeds])
        digest.update(torch.cat([latents, latents]).numpy().tobytes())
    return digest.hexdigest()


def facts():
    info = registry.describe(WORKLOAD)
    return {
        "model_sha256": _model(info),
        "pipeline": "DiTPipeline",
        "scheduler": "DDIMScheduler",
        "steps": info.steps,
        "guidance": info.guidance,
        "eta": info.eta,
        "resolution": SIDE,
        "images": IMAGES,
        "batch": BUDGET.batch,
        "conditions": info.conditions,
        "prompts": [info.prompts[i % len(info.prompts)] for i in range(64)],
        "reference": info.reference,
        "noise_sha256": noise(BUDGET.batch),
    }


def clock(ratio, fp):
    return Latency(
        10.0, 0.1, 10.0 * ratio, "fp32 eager", ratio, ratio - 0.05, ratio + 0.05, 200.0, 2, 20, 1,
        "fp32" if fp else "packed", "perf_counter", 1_000_000,
    )  # fmt: skip


def write_row(folder, row):
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    (folder / "rows" / f"{row.key}.json").write_text(signed_text(row))


def scored(folder, one, noise, machine, ratio):
    """Write an ok row of a cell with its images and scores."""
    fp, test = pictures(0.0), pictures(noise)
    save_folder(test, folder / "images" / one.key)
    values = fidelity(fp, test)
    groups = tuple(range(IMAGES))
    (folder / "scores").mkdir(exist_ok=True)
    file = folder / "scores" / f"{one.key}.npz"
    np.savez_compressed(file, **values, **{UNITS: np.array(groups, np.float64)})
    names = [f"{number:04d}.png" for number in range(IMAGES)]
    listing = {name: bytes_sha256(folder / "images" / one.key / name) for name in names}
    is_fp = one.method == "fp"
    row = Row(
        one,
        Status.OK,
        backend="fp32" if is_fp else "packed",
        measurements=summarise(values, seed=one.seed, groups=groups),
        latency=clock(1.0 if is_fp else ratio, is_fp),
        method={"title": one.method.upper(), "origin": "builtin"},
        workload=facts(),
        machine=MACHINES[machine],
        artefacts={
            "images": f"images/{one.key}",
            "images_sha256": listing_sha256(listing),
            "scores": f"scores/{one.key}.npz",
            "scores_sha256": bytes_sha256(file),
        },
        started="2026-01-01T00:00:00+00:00",
        finished="2026-01-01T00:01:00+00:00",
    )
    write_row(folder, row)
    return row


def build(folder, machine="first", methods=("rtn",), bits=("w8a8", "w4a8"), ratio=1.5):
    folder.mkdir(parents=True)
    scored(folder, cell("fp", "fp"), 0.0, machine, 1.0)
    for method in methods:
        for width in bits:
            noise = WIDTHS[width] + len(method)
            scored(folder, cell(method, width), noise, machine, ratio)
    return folder


@pytest.fixture(scope="session")
def pristine(tmp_path_factory):
    """Results of two machines, which share a cell and differ in another."""
    root = tmp_path_factory.mktemp("machines")
    build(root / "one", "first")
    build(root / "two", "second", methods=("rtn", "ptqd"), bits=("w4a8", "w4a4"), ratio=0.8)
    return root


@pytest.fixture
def world(pristine, tmp_path):
    """A copy of both that a test may spoil."""
    shutil.copytree(pristine, tmp_path / "world")
    return tmp_path / "world"


@pytest.fixture
def submission(world):
    """The second machine's results as a submission with all its images."""
    folder = world / "sent"
    submit(world / "two", folder, name="second-machine", share=1.0)
    return folder


@pytest.fixture
def resign(submission):
    """Make the manifest fit what lies in the folder, as a careful attacker does."""

    def resign():
        manifest = read_manifest(submission)
        files = {
            path.relative_to(submission).as_posix(): FileEntry(
                bytes_sha256(path), path.stat().st_size
            )
            for path in sorted(submission.rglob("*"))
            if path.is_file() and path.name != "manifest.json"
        }
        images = {key: dict(listing) for key, listing in manifest.images.items()}
        for name, entry in files.items():
            if name.startswith("images/"):
                images[name.split("/")[1]][name.split("/")[2]] = entry.sha256
        write_manifest(submission, replace(manifest, files=files, images=images))
        return images

    return resign


@pytest.fixture
def edit(submission, resign):
    """Change a row's document and sign everything anew."""

    def edit(method, bits, change, *, keep=True):
        key = cell(method, bits).key
        row = next(row for row in Store(submission).rows() if row.key == key)
        changed = change(row)
        (submission / "rows" / f"{key}.json").write_text(signed_text(changed))
        if keep:
            resign()
        return changed

    return edit


@pytest.fixture(scope="session")
def halved_noise():
    """Hash of the noise of a row that was drawn with half of its budget's batch."""
    return noise(BUDGET.batch // 2)


@pytest.fixture
def manifest(submission):
    """Change the manifest's plain document."""

    def manifest(change):
        path = submission / "manifest.json"
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return manifest


def replaced(row, **changes):
    return dataclasses.replace(row, **changes)
