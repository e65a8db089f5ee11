"""Samplers by name, their settings, and fresh noise that belongs to one image."""

import json
import re
import runpy
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from quantarena.bench.cli.main import run
from quantarena.bench.errors import UserError
from quantarena.bench.workloads import pipeline, registry
from quantarena.bench.workloads.pipeline_checks import draws_by_itself
from quantarena.bench.workloads.samplers import stepping
from quantarena.bench.workloads.sampling import Draw, draw_images

TINY = runpy.run_path(str(Path(__file__).parents[1] / "tiny_pipelines.py"))


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("tiny"), {}

    def get(name):
        if name not in made:
            made[name] = TINY["save"](name, root / name)
            settings = {"steps": 2, "resolution": 16, "guidance": 1.0 if name == "ldm" else 3.0}
            if name != "ldm":
                settings["conditions"] = {"kind": "prompt", "values": ["a red cat", "a dog"]}
            (made[name] / "workload.json").write_text(json.dumps(settings))
        return made[name]

    return get


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sd1", "sampler=EulerAncestralDiscreteScheduler"),
        ("sd1", "sampler=KDPM2AncestralDiscrete"),
        ("sd1", "sampler=DPMSolverMultistepScheduler&sampler.algorithm_type=sde-dpmsolver%2B%2B"),
        ("ldm", "sampler=DDPMScheduler"),
        ("sd3", "sampler.stochastic_sampling=true"),
    ],
)
def test_noise_of_stochastic_samplers_belongs_to_the_image(name, settings, folder_of):
    info = registry.resolve(f"{folder_of(name)}?{settings}&steps=3")
    loaded = pipeline.load(info)
    one, two = (draw_images(loaded, info, Draw("evaluate", 2, 0, 3, b)).images for b in (1, 2))
    assert (one.int() - two.int()).abs().max() <= 1
    again = draw_images(loaded, info, Draw("evaluate", 2, 0, 3, 2)).images
    assert torch.equal(again, two)


def test_noise_that_no_generator_is_asked_for_is_refused_by_name(diffusers):
    """Planted: a sampler that takes it from torch's own generator, for a whole batch."""

    class Careless(diffusers.DDIMScheduler):
        def step(self, *args, **kwargs):
            made = super().step(*args, **kwargs)
            made.prev_sample += 0.1 * torch.randn_like(made.prev_sample)
            return made

    x = torch.zeros(2, 1, 2, 2)
    for kind, careless in ((Careless, True), (diffusers.DDIMScheduler, False)):
        scheduler = kind()
        scheduler.set_timesteps(2)
        line = "sampler Careless draws fresh noise with these settings and takes no generator"
        refused = pytest.raises(UserError, match=line) if careless else nullcontext()
        with stepping(scheduler, 0.0, [torch.Generator(), torch.Generator()]), refused:
            scheduler.step(x, scheduler.timesteps[0], x)
        assert "step" not in vars(scheduler)


def test_noise_of_a_whole_batch_is_refused_by_name():
    for name in ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler"):
        assert "one Brownian tree for a whole batch" in draws_by_itself(name)
    assert draws_by_itself("EulerAncestralDiscreteScheduler") is None
    assert draws_by_itself("NoneType") is None


def test_settings_of_a_sampler_act_are_keyed_and_shipped(folder_of, tmp_path):
    folder, name = folder_of("sdxl"), "sampler.use_karras_sigmas"
    plain, other = (registry.resolve(f"{folder}{s}") for s in ("", f"?{name}=true"))
    loaded = [pipeline.load(info) for info in (plain, other)]
    assert [each.pipe.scheduler.config.use_karras_sigmas for each in loaded] == [False, True]
    assert loaded[0].sha256 != loaded[1].sha256
    packed = tmp_path / "packed"
    words = ["quantize", str(folder), "--set", f"{name}=true", "--set", "steps=3", "-q"]
    words += ["--method", "rtn", "--bits", "w8a8", "--samples", "4", "--calibration-images", "1"]
    assert run([*words, "-o", str(packed), "--cache", str(tmp_path / "cache")]) == 0
    config = json.loads((packed / "scheduler" / "scheduler_config.json").read_text())
    assert config["use_karras_sigmas"] is True


@pytest.mark.parametrize(
    ("name", "settings", "line"),
    [
        ("sd1", "sampler=DPMSolverSDE", "one Brownian tree|needs the library torchsde"),
        ("sdxl", "sampler.use_karas_sigmas=true", "no setting .* did you mean use_karras_sigmas"),
        ("sdxl", "sampler.use_karras_sigmas=1", "must be true or false"),
        ("sd3", "call.max_sequence_length=long", "must be a whole number, as the default 256"),
    ],
)
def test_what_a_sampler_or_a_call_does_not_take_is_one_line_of_the_plan(
    name, settings, line, folder_of, capsys
):
    assert run(["plan", "smoke", "--model", f"{folder_of(name)}?{settings}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert re.search(line, err)
