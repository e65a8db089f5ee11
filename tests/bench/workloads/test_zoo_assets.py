"""Every model of the zoo is whole, loads in diffusers and draws."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

ZOO = Path(__file__).parents[3] / "bench" / "workloads" / "zoo"
FOLDERS = sorted(path for path in ZOO.glob("*") if (path / "model_index.json").is_file())

pytestmark = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def _settings(folder):
    return json.loads((folder / "workload.json").read_text())


def test_files_match_the_manifest(folder):
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    for name, entry in listed.items():
        content = (folder / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"], name
        assert len(content) == entry["bytes"]
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found - set(listed) == {"manifest.json", "README.md", "samples.png"}


def test_weights_are_small_and_fp16(folder):
    weights = sorted(folder.rglob("*.safetensors"))
    assert weights
    assert sum(path.stat().st_size for path in weights) < 20e6
    for path in weights:
        with safe_open(path, "pt") as tensors:
            kinds = {tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
        assert kinds <= {"F16", "I64"}, path


def test_it_loads_and_draws_finite_images(diffusers, folder):
    settings = _settings(folder)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert type(pipeline).__name__ == settings["pipeline_class"]
    pipeline.set_progress_bar_config(disable=True)
    arguments = {
        "num_inference_steps": 2,
        "output_type": "np",
        "generator": torch.Generator().manual_seed(0),
    }
    kind = settings["conditions"]["kind"]
    if kind == "prompt":
        arguments |= {"prompt": ["a red apple, 3d"], "guidance_scale": settings["guidance"]}
    elif kind == "class":
        arguments |= {"class_labels": [3], "guidance_scale": settings["guidance"]}
    images = np.asarray(pipeline(**arguments).images)
    side = settings["resolution"]
    assert images.shape == (1, side, side, 3)
    assert np.isfinite(images).all()
    assert images.std() > 0.01


def test_conditions_are_many_and_known(folder):
    conditions = _settings(folder)["conditions"]
    if conditions["kind"] == "none":
        pytest.skip("draws without conditions")
    lines = (folder / conditions["file"]).read_text().splitlines()
    assert len(lines) >= 512
    if conditions["kind"] == "class":
        names = (folder / conditions["names"]).read_text().splitlines()
        assert {int(line) for line in lines} <= set(range(len(names)))
    else:
        assert len(set(lines)) == len(lines)
