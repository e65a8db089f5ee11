"""Pipelines that start from images, paint in them, or follow them, and pipelines of videos."""

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from quantarena.bench.cache import StageCache
from quantarena.bench.cli.main import run
from quantarena.bench.errors import BrokenModel, UserError
from quantarena.bench.plan.lookup import content_of
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.stages.describe import describe_workload
from quantarena.bench.stages.fp_images import fp_images_key
from quantarena.bench.stages.record import trajectory
from quantarena.bench.stages.workspace import open_workspace
from quantarena.bench.workloads import pipeline, registry
from quantarena.bench.workloads.inputs.condition_images import read_image
from quantarena.bench.workloads.inputs.kinds import IN_BATCHES
from quantarena.bench.workloads.sampling import Draw, draw_images, pipeline_arguments

TINY = runpy.run_path(str(Path(__file__).with_name("tiny_input_pipelines.py")))
QUICK = ("sd1-img2img", "sd2-inpaint", "sd1-controlnet", "wan")


def some(names):
    """The quick ones, and the others among the slow tests."""
    return [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in names]


ONCE_EACH = Budget(images=3, batch=3, calibration_images=2, calibration_samples=4)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("tiny"), {}

    def get(name):
        if name not in made:
            made[name] = TINY["save"](name, root / name)
            settings = TINY["settings"](name, made[name])
            (made[name] / "workload.json").write_text(json.dumps(settings))
        return made[name]

    return get


@pytest.fixture(scope="module")
def loaded_of(folder_of):
    made = {}

    def get(name):
        if name not in made:
            info = registry.resolve(str(folder_of(name)))
            made[name] = pipeline.load(info), info
        return made[name]

    return get


def draw(loaded, info, count=3, batch=3):
    return draw_images(loaded, info, Draw("evaluate", count, 0, info.steps, batch))


@pytest.mark.parametrize("name", some(TINY["PIPELINES"]))
def test_an_image_does_not_depend_on_its_batch(name, loaded_of):
    loaded, info = loaded_of(name)
    kind = type(loaded.pipe).__name__
    assert (kind in IN_BATCHES) == bool(info.inputs)
    one, three = draw(loaded, info, batch=1), draw(loaded, info)
    assert (one.images.int() - three.images.int()).abs().max() <= 1
    frames = max(1, one.frames)
    assert one.count == len(one.images) // frames == 3
    first, second = three.images[:frames].int(), three.images[frames : 2 * frames].int()
    assert (first - second).abs().max() > 1


@pytest.mark.parametrize("name", some(TINY["IMAGES"]))
def test_each_condition_image_acts(name, folder_of, loaded_of, tmp_path):
    """Other pictures in one folder change the drawing, and every key that it enters."""
    loaded, info = loaded_of(name)
    before = draw(loaded, info).images
    for each in info.inputs:
        other = TINY["write_pictures"](tmp_path / each.setting, 4, seed=1)
        changed = registry.resolve(f"{info.name}?{each.setting}={other}")
        assert (draw(loaded, changed).images.int() - before.int()).abs().max() > 1, each.setting
        assert content_of(changed) != content_of(info)
        assert changed.noise_name == info.noise_name, "they start from the same noise"


def test_swapped_pictures_are_another_row_and_renamed_ones_are_not(folder_of, tmp_path):
    folder = shutil.copytree(folder_of("sd1-img2img"), tmp_path / "model")

    def keys():
        workspace = open_workspace(Cell(str(folder), "rtn", "w8a8", budget=ONCE_EACH))
        return fp_images_key(workspace), content_of(workspace.info)

    plain, pictures = keys(), folder / "images"
    (pictures / "3.png").rename(pictures / "4.png")
    assert keys() == plain, "the order is the same"
    (pictures / "0.png").rename(pictures / "x.png")
    (pictures / "1.png").rename(pictures / "0.png")
    (pictures / "x.png").rename(pictures / "1.png")
    assert not {*keys()} & {*plain}


def test_image_i_goes_with_prompt_i_and_calibration_takes_them_from_the_end(loaded_of):
    loaded, info = loaded_of("sd2-controlnet-img2img")
    for purpose, places in (("evaluate", [0, 1, 2, 3, 0]), ("calibrate", [3, 2, 1, 0, 3])):
        asked = Draw(purpose, 5, 0, 2, 5)
        given = pipeline_arguments(info, loaded.pipe, asked, range(5))
        for setting, argument in (("images", "image"), ("control", "control_image")):
            files = next(each for each in info.inputs if each.setting == setting)
            wanted = [read_image(files, place, info.size) for place in places]
            assert [np.array(a).tolist() for a in given[argument]] == [
                np.array(a).tolist() for a in wanted
            ]
            assert given[argument][0].size == (16, 16), "cut to its middle: it is 20 wide"


def test_a_mask_stays_black_and_white(loaded_of):
    _, info = loaded_of("sd2-inpaint")
    masks = next(each for each in info.inputs if each.setting == "masks")
    made = np.array(read_image(masks, 0, (7, 5)))
    assert made.shape == (5, 7)
    assert set(np.unique(made)) == {0, 255}


@pytest.mark.parametrize(
    ("name", "settings", "calls"),
    [
        ("sd1-img2img", "steps=10&call.strength=0.5", 6),  # PLMS has one call more than steps
        ("sd1-img2img", "steps=10&call.strength=0.8", 9),
        ("sd1-img2img", "steps=10&call.strength=0.5&sampler=DDIM", 5),
        ("sdxl-img2img", "steps=10&call.strength=0.3", 3),
        ("flux-img2img", "steps=4&call.strength=0.5", 2),
    ],
)
def test_a_recording_has_the_calls_that_are_made(name, settings, calls, folder_of, tmp_path):
    cell = Cell(f"{folder_of(name)}?{settings}", "rtn", "w8a8", budget=ONCE_EACH)
    workspace = open_workspace(cell)
    seen = []
    handle = workspace.loaded.denoiser.register_forward_pre_hook(lambda *args: seen.append(1))
    recorded = trajectory(workspace, StageCache(tmp_path))
    handle.remove()
    assert recorded.calls == len(recorded.schedule.timesteps) == len(seen)
    assert recorded.calls == calls
    assert recorded.images == 2


def test_a_recorded_point_holds_what_the_control_network_says(folder_of, tmp_path):
    cell = Cell(str(folder_of("sd1-controlnet")), "rtn", "w8a8", budget=ONCE_EACH)
    workspace = open_workspace(cell)
    assert workspace.loaded.slot == "unet"
    recorded = trajectory(workspace, StageCache(tmp_path))
    points = recorded.pick(torch.tensor([1, 1]), torch.tensor([0, 3]))
    residuals = points.conditions["down_block_additional_residuals"]
    assert [len(residual) for residual in residuals] == [2] * 4
    with torch.no_grad():
        whole = points.call(workspace.loaded.denoiser)
        points.conditions["mid_block_additional_residual"].zero_()
        assert not torch.allclose(points.call(workspace.loaded.denoiser), whole, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "settings", "line"),
    [
        ("sd1-img2img", "control=DIR", "StableDiffusionImg2ImgPipeline takes no control: leave"),
        ("sd1-img2img", "images=EMPTY", "images=.*empty holds no image"),
        ("sd1-img2img", "images=NONE", "images=.*none is no folder"),
        ("sd2-inpaint", "masks=THREE", "4 images, 3 masks: files go together by the order"),
        ("sd1-img2img", "images=BAD", r"bad/0\.png is not a readable image"),
        ("sd1-img2img", "images=MIXED&resolution=0", r"mixed/1\.png is 16x16 and .*0\.png is 20x1"),
        ("sd1-img2img", "call.image=x", "call.image is set by images"),
        ("sd1-img2img", "call.strenth=0.5", "takes no argument 'strenth': did you mean strength"),
        ("sd1-img2img", "strength=0.5", "unknown setting 'strength': it is called call.strength"),
        ("wan", "images=DIR", "WanPipeline takes no images"),
        ("wan", "call.height=32&resolution=0", "call.height alone is no size"),
        ("wan", "call.height=32&call.width=16", "resolution=16 and call.height exclude each other"),
    ],
)
def test_what_does_not_fit_is_one_line_of_the_plan(
    name, settings, line, folder_of, tmp_path, capsys
):
    write = TINY["write_pictures"]
    write(tmp_path / "dir", 4)
    write(tmp_path / "three", 3)
    write(tmp_path / "mixed", 2)
    Image.new("RGB", (16, 16)).save(tmp_path / "mixed" / "1.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "0.png").write_bytes(b"no picture")
    for word in ("DIR", "EMPTY", "NONE", "THREE", "BAD", "MIXED"):
        settings = settings.replace(f"={word}", f"={tmp_path / word.lower()}")
    workload = f"{folder_of(name)}?{settings}"
    with pytest.raises(UserError, match=line):
        pipeline.load(registry.resolve(workload))
    planned = ["plan", "smoke", "--workload", workload, "--method", "rtn"]
    assert run([*planned, "--results", str(tmp_path / "results")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["sd2-inpaint", "sd1-controlnet"])
def test_a_pipeline_asks_for_its_images(name, folder_of, tmp_path, capsys):
    folder = shutil.copytree(folder_of(name), tmp_path / "bare")
    settings = json.loads((folder / "workload.json").read_text())
    asked = TINY["FOLDERS"][name][0]
    settings.pop(asked)
    (folder / "workload.json").write_text(json.dumps(settings))
    assert run(["plan", "smoke", "--workload", str(folder), "--method", "rtn"]) == 2
    assert f"give their folder with --set {asked}=DIR" in capsys.readouterr().err
    with pytest.raises(UserError, match=f"--set {asked}=DIR"):
        pipeline.load(registry.resolve(str(folder)))


def test_a_pipeline_whose_lists_may_mean_something_else_draws_one_at_a_time(loaded_of):
    loaded, info = loaded_of("sd1-img2img")
    seen = []

    class Other(type(loaded.pipe)):
        def __call__(
            self, prompt=None, image=None, num_inference_steps=2, generator=None, output_type="np"
        ):
            seen.append((prompt, image))
            return super().__call__(
                prompt, image, 0.5, num_inference_steps, output_type="np", generator=generator
            )

    pipe = Other(**loaded.pipe.components, requires_safety_checker=False)
    draw(replace(loaded, pipe=pipe), replace(info, call=()))
    assert [len(prompts) for prompts, _ in seen] == [1, 1, 1]
    assert all(isinstance(image, Image.Image) for _, image in seen)


def test_a_row_says_how_many_images_and_from_which(folder_of):
    workspace = open_workspace(Cell(str(folder_of("sd1-img2img")), "rtn", "w8a8", budget=ONCE_EACH))
    drawn = draw_images(workspace.loaded, workspace.info, workspace.draw())
    said = describe_workload(workspace, drawn)
    assert said["images"] == ONCE_EACH.images
    (given,) = workspace.info.inputs
    assert said["inputs"] == {"images": f"{len(given.files)} images, sha256 {given.sha256[:12]}"}


@pytest.mark.parametrize(
    ("settings", "differs"),
    [
        ("call.strength=0.75", True),
        ("call.negative_prompt=a blue cat", True),
        ("guidance=3.00", False),
    ],
)
def test_an_argument_acts_and_is_keyed(settings, differs, folder_of, loaded_of):
    loaded, info = loaded_of("sd1-img2img")
    changed = registry.resolve(f"{info.name}?{settings}")
    moved = (draw(loaded, changed).images.int() - draw(loaded, info).images.int()).abs().max()
    assert (moved > 0) == differs
    assert (content_of(changed) != content_of(info)) == differs
    assert changed.noise_name == info.noise_name


def test_two_experts_are_refused_by_plan_and_load(tmp_path, capsys):
    """As Wan 2.2 has them: one for many, one for few noise."""

    def make():
        return TINY["wan"](transformer_2=TINY["wan_network"](), boundary_ratio=0.5)

    folder = Path(TINY["_TINY"]["write"](make, tmp_path / "experts"))
    (folder / "workload.json").write_text(json.dumps(TINY["settings"]("wan", folder)))
    line = r"several denoisers \(transformer, transformer_2\), and one is supported"
    assert run(["plan", "smoke", "--workload", str(folder), "--method", "rtn"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "several denoisers (transformer, transformer_2), and one is supported" in err
    with pytest.raises(BrokenModel, match=line):
        pipeline.load(registry.resolve(str(folder)))
