"""Whole pipelines whose networks stay on the host: text encoders, denoisers and decoders visit."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from quantarena.bench.devices import device, fit
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.stages.workspace import open_workspace
from quantarena.bench.target import Target
from quantarena.bench.workloads.sampling import draw_images
from quantarena.methods.core.record.recorder import recording
from quantarena.methods.core.visits import visited_device
from quantarena.methods.testing.pretend import Pretended, pretended_cuda

TINY = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "tiny_pipelines.py")))
BUDGET = Budget(images=2, batch=2, steps=2, calibration_images=2, calibration_samples=4)


def drawn(folder, target):
    """A pipeline's networks, its images, and the calls of its denoiser."""
    workspace = open_workspace(Cell(str(folder), "fp", "fp", budget=BUDGET, target=target))
    loaded = workspace.loaded
    with recording(loaded.denoiser, loaded.pipe.scheduler) as done:
        images = draw_images(loaded, workspace.info, workspace.draw()).images
    parts = loaded.pipe.components.values()
    return [part for part in parts if isinstance(part, nn.Module)], images, done()


@pytest.mark.parametrize("name", ["sd1", "sd3"])
def test_an_offloaded_pipeline_draws_the_same(name, tmp_path, monkeypatch):
    monkeypatch.setattr(device, "require", lambda target: torch.device(target.device))
    monkeypatch.setattr(fit, "free_bytes", lambda place: 2**30)
    folder = TINY.save(name, tmp_path / name)
    prompts = {"kind": "prompt", "values": ["a red cat", "a dog in snow"]}
    settings = {"guidance": 3.0, "resolution": 16, "conditions": prompts}
    (folder / "workload.json").write_text(json.dumps(settings))
    _, images, calls = drawn(folder, Target())
    with pretended_cuda() as memory:
        networks, offloaded, recorded = drawn(folder, Target("cuda", offload=True))
        assert memory.peak > 0
        assert all(visited_device(network).type == "cuda" for network in networks)
        tensors = [t for network in networks for t in network.state_dict().values()]
        assert not any(isinstance(tensor, Pretended) for tensor in tensors)
    assert torch.equal(offloaded, images)
    assert torch.equal(recorded.sample, calls.sample)
