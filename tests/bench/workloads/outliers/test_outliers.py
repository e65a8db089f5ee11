"""The workload setting ``outliers``: same images, same keys without it, outliers with it."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from quantarena.bench.cli.main import run
from quantarena.bench.errors import UserError
from quantarena.bench.plan import lookup
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.stages.workspace import open_workspace
from quantarena.bench.workloads import pipeline, registry, settings, workload_name
from quantarena.bench.workloads.outliers import draw, plant
from quantarena.bench.workloads.samplers import stepping
from quantarena.bench.workloads.sampling import Draw, pipeline_arguments

tiny_pipelines = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).parents[2] / "tiny_pipelines.py"))
)
ZOO = ("emoji-dit", "emoji-t2i", "cifar10-uncond")
BUDGET = Budget(images=2, batch=2, calibration_images=2, calibration_samples=4, steps=4)


def opened(name):
    return open_workspace(Cell(name, "rtn", "w4a4", budget=BUDGET))


def images(workspace):
    """Two images as floats in [0, 1]."""
    info, pipe = workspace.info, workspace.loaded.pipe
    given = pipeline_arguments(info, pipe, Draw("evaluate", 2, 0, 4, 2), range(2))
    with stepping(pipe.scheduler, info.eta, given["generator"]):
        return np.asarray(pipe(**given).images)


@pytest.mark.parametrize("name", ZOO)
def test_shipped_workloads_draw_the_same_images(name):
    plain, planted = opened(name), opened(f"{name}?outliers=4")
    assert abs(images(plain) - images(planted)).max() <= 1e-4
    ours, theirs = (w.loaded.denoiser.state_dict() for w in (planted, plain))
    assert any(not torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("name", ["ddpm", "sd1", "sdxl", "sd3", "pixart-alpha", "dit", "flux"])
def test_any_pipeline_draws_the_same_images(name, tmp_path):
    torch.manual_seed(0)
    folder = tiny_pipelines.save(name, tmp_path / name)
    kind = {"ddpm": "none", "dit": "class"}.get(name, "prompt")
    values = {"none": "[]", "class": '["3", "7"]', "prompt": '["a red cat", "a dog"]'}[kind]
    (folder / "workload.json").write_text(
        f'{{"steps": 2, "resolution": {8 if name == "ddpm" else 16}, '
        f'"conditions": {{"kind": "{kind}", "values": {values}}}}}'
    )
    plain, planted = opened(str(folder)), opened(f"{folder}?outliers=4")
    assert abs(images(plain) - images(planted)).max() <= 1e-4
    ours, theirs = (w.loaded.denoiser.state_dict() for w in (planted, plain))
    assert any(not torch.equal(ours[k], theirs[k]) for k in ours)


def test_without_outliers_names_settings_and_hash_are_those_of_the_model():
    plain, zero = opened("emoji-dit"), opened("emoji-dit?outliers=0")
    assert zero.info == plain.info
    assert zero.info.name == "emoji-dit"
    assert zero.loaded.sha256 == plain.loaded.sha256
    assert "outliers" not in plain.settings()
    draws = (w.key(w.draw()) for w in (plain, zero))
    assert len(set(draws)) == 1
    for model in (plain.loaded.denoiser, zero.loaded.denoiser):
        assert torch.equal(model.proj_out_2.weight, plain.loaded.denoiser.proj_out_2.weight)


def test_the_strength_is_in_the_keys_and_not_in_the_noise():
    two, four = opened("emoji-dit?outliers=2"), opened("emoji-dit?outliers=4")
    plain = opened("emoji-dit")
    assert len({w.loaded.sha256 for w in (plain, two, four)}) == 3
    assert len({w.key(w.draw()) for w in (plain, two, four)}) == 3
    assert len({w.info.noise_name for w in (plain, two, four)}) == 1
    assert opened("emoji-dit?outliers=4").loaded.sha256 == four.loaded.sha256


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (("outliers=4.0",), "emoji-dit?outliers=4"),
        (("outliers=0",), "emoji-dit"),
        (("outliers=-0.0",), "emoji-dit"),
        (("steps=5", "outliers=0.5"), "emoji-dit?outliers=0.5&steps=5"),
    ],
)
def test_names(given, name):
    assert workload_name.with_options("emoji-dit", given) == name
    assert lookup.canonical_workload("emoji-dit", given) == name


def test_a_setting_replaces_that_of_the_name():
    assert workload_name.with_options("emoji-dit?outliers=4", ("outliers=0",)) == "emoji-dit"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("-1", "outliers must be from 0 to 8, not -1"),
        ("9", "outliers must be from 0 to 8, not 9"),
        ("nan", "outliers must be from 0 to 8, not nan"),
        ("many", "outliers must be a number, not 'many'"),
    ],
)
def test_bad_strengths_are_refused_at_the_plan(value, message, capsys):
    words = ["plan", "smoke", "--workload", "emoji-dit", "--set", f"outliers={value}"]
    assert run(words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_folder_cannot_ask_for_outliers(tmp_path):
    (tmp_path / "workload.json").write_text('{"outliers": 4}')
    with pytest.raises(UserError, match="unknown setting 'outliers'"):
        settings.read_settings(tmp_path, settings.Settings())


def test_a_network_without_a_site_is_refused_in_one_line(monkeypatch):
    network = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 8)).eval()
    x = torch.randn(2, 8)
    monkeypatch.setattr(plant, "first_call", lambda *_: lambda net: net(x))
    loaded = pipeline.LoadedPipeline(SimpleNamespace(unet=network), "unet", "0")
    info = registry.resolve("emoji-dit?outliers=1")
    with pytest.raises(UserError, match="Sequential has no channel that can be rescaled"):
        plant.with_outliers(loaded, info)


def test_a_strength_that_rounds_away_is_refused_for_that_reason():
    """Factors are powers of two: a small strength leaves all of them at 1."""
    with pytest.raises(UserError, match=r"outliers=0\.2 plants nothing.*take 0\.5 or more"):
        opened("emoji-dit?outliers=0.2")
    assert opened(f"emoji-dit?outliers={draw.LEAST_STRENGTH}").info.outliers == 0.5


def test_limits_agree():
    assert settings.MOST_OUTLIERS == draw.MOST_STRENGTH


def test_the_readers_of_a_norm_meet_outliers():
    """Peaks of the channels that the queries read, against the median channel."""
    ratios = {}
    for strength in (0, 2, 4):
        workspace = opened(f"emoji-dit?outliers={strength}")
        peaks = []
        block = workspace.loaded.denoiser.transformer_blocks[2]
        handle = block.attn1.to_q.register_forward_pre_hook(
            lambda module, args, kept=peaks: kept.append(args[0].abs().flatten(0, -2).amax(0))
        )
        images(workspace)
        handle.remove()
        top = torch.stack(peaks).amax(0)
        ratios[strength] = float(top.max() / top.median())
    assert ratios[0] < ratios[2] < ratios[4]
    assert ratios[4] > 10
