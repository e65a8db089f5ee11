"""Every class of diffusers pipeline that people quantize: loaded, recorded, packed, drawn."""

import inspect
import json
import re
import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from quantarena.bench.cache import StageCache
from quantarena.bench.cli.main import run
from quantarena.bench.errors import BrokenModel, UserError
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.stages.fp_images import fp_images
from quantarena.bench.stages.record import trajectory
from quantarena.bench.stages.workspace import open_workspace
from quantarena.bench.workloads import pipeline, registry
from quantarena.bench.workloads.samplers import with_sampler
from quantarena.bench.workloads.sampling import Draw, draw_images
from quantarena.methods.core.trace.network import trace

tiny_pipelines = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).parents[1] / "tiny_pipelines.py"))
)
llm_pipelines = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).parents[1] / "tiny_llm_pipelines.py"))
)
MAKERS = dict.fromkeys(tiny_pipelines.PIPELINES, tiny_pipelines.save)
MAKERS |= dict.fromkeys(llm_pipelines.PIPELINES, llm_pipelines.save)
NAMES = tuple(MAKERS)
RESOLUTION = {
    "ddpm": 8,
    "ldm-text": 64,
    "consistency": 8,
    "consistency-class": 8,
    "lumina": 32,
    "lumina-2": 32,
}
KINDS = {
    "ddpm": "none",
    "ldm": "none",
    "dit": "class",
    "consistency": "none",
    "consistency-class": "class",
}
VALUES = {"none": [], "class": ["3", "7"], "prompt": ["a red cat", "a dog in snow"]}
SILENT = {"ddpm", "ldm", "consistency", "consistency-class"}
"""Pipelines that take no guidance: another scale than 1 is refused."""
UNGUIDED = {"ddpm", "ldm", "flux", "consistency", "consistency-class"}
PLMS = {"sd1"}
"""Samplers that visit the first step twice."""
BUDGET = Budget(images=2, batch=2, calibration_images=2, calibration_samples=4)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("tiny"), {}

    def get(name):
        if name not in made:
            made[name] = MAKERS[name](name, root / name)
            kind = KINDS.get(name, "prompt")
            settings = {
                "steps": 2,
                "guidance": 1.0 if name in SILENT else 3.0,
                "resolution": RESOLUTION.get(name, 16),
                "conditions": {"kind": kind, "values": VALUES[kind]},
            }
            (made[name] / "workload.json").write_text(json.dumps(settings))
        return made[name]

    return get


@pytest.fixture(scope="session")
def ground_of(folder_of):
    made = {}

    def get(name):
        if name not in made:
            cell = Cell(str(folder_of(name)), "rtn", "w8a8", budget=BUDGET)
            made[name] = open_workspace(cell)
        return made[name]

    return get


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return StageCache(tmp_path_factory.mktemp("stages"))


@pytest.mark.parametrize("name", NAMES)
def test_recorded_and_traced(name, ground_of, cache):
    workspace = ground_of(name)
    recorded = trajectory(workspace, cache)
    assert recorded.calls == (3 if name in PLMS else 2)
    assert recorded.halves == (1 if name in UNGUIDED else 2)
    assert recorded.images == 2
    points = recorded.pick(torch.zeros(2, dtype=torch.long), torch.arange(2))
    with torch.no_grad():
        graph = trace(
            workspace.loaded.denoiser, points.sample, timestep=points.timestep, **points.conditions
        )
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    layers = {n for n, m in workspace.loaded.denoiser.named_modules() if isinstance(m, kinds)}
    # HunyuanDiT's pooler hands the weights of its layers to one function, and never calls them
    idle = ("caption_projection", "time_extra_emb.pooler")
    unused = {n for n in layers - set(graph.layers) if not any(part in n for part in idle)}
    assert not unused, "every layer of the network has been seen"
    assert graph.attention
    assert next(iter(graph.layers.values())).macs > 0


@pytest.mark.parametrize("name", NAMES)
def test_noise_belongs_to_the_image(name, ground_of):
    workspace = ground_of(name)
    one, two = (
        draw_images(workspace.loaded, workspace.info, Draw("evaluate", 2, 0, 2, batch))
        for batch in (1, 2)
    )
    assert (one.images.int() - two.images.int()).abs().max() <= 1
    assert (two.images[0].int() - two.images[1].int()).abs().max() > 1
    assert two.images.shape == (2, 3, workspace.info.resolution, workspace.info.resolution)


@pytest.mark.parametrize("name", ["ddpm", "ldm", "dit", "sd2"])
def test_fresh_noise_belongs_to_the_image_too(name, folder_of):
    """Half of these pipelines pass no generator and no eta to their sampler."""
    info = registry.resolve(f"{folder_of(name)}?eta=1&sampler=DDIM")
    loaded = pipeline.load(info)
    one, two = (draw_images(loaded, info, Draw("evaluate", 2, 0, 2, b)).images for b in (1, 2))
    assert (one.int() - two.int()).abs().max() <= 1
    still = draw_images(loaded, replace(info, eta=0.0), Draw("evaluate", 2, 0, 2, 2)).images
    assert (still.int() - two.int()).abs().max() > 1, "eta reaches the sampler"
    assert "step" not in vars(loaded.pipe.scheduler)


@pytest.mark.parametrize("name", NAMES)
def test_quantized_shipped_and_drawn(name, folder_of, ground_of, cache, tmp_path, capsys):
    packed, picture = tmp_path / "packed", tmp_path / "grid.png"
    arguments = ["--method", "rtn", "--bits", "w8a8", "-o", str(packed), "--json", "-q"]
    arguments += ["--samples", "4", "--calibration-images", "2", "--cache", str(cache.root)]
    assert run(["quantize", str(folder_of(name)), *arguments]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["meta"]["parity"] < 1e-5
    assert document["meta"]["observed"]["coverage"]["w8a8"] > 0.1
    assert document["meta"]["command"].startswith(f"quantarena quantize {name} ")
    assert run(["sample", str(packed), "-n", "2", "-o", str(picture), "--json", "-q"]) == 0
    drawn = json.loads(capsys.readouterr().out)
    workspace = ground_of(name)
    reference = fp_images(workspace, cache)
    assert drawn["noise_sha256"] == reference.noise_sha256, "images are pairs with FP's"
    with Image.open(picture) as grid:
        pixels = torch.from_numpy(np.array(grid)).permute(2, 0, 1).int()
    side = workspace.info.resolution
    ours, theirs = (pixels[:, :side, :side], pixels[:, :side, -side:]), reference.images.int()
    gaps = [(a - b).abs().float().mean() for a, b in zip(ours, theirs, strict=True)]
    apart = (theirs[0] - theirs[1]).abs().float().mean()
    assert all(0 < gap < apart / 2 for gap in gaps), "the same pictures, but not to the last bit"


def test_a_sampler_whose_library_is_missing_is_one_line(folder_of, monkeypatch):
    def from_config(config):
        raise ImportError("\nDPMSolverSDEScheduler requires the torchsde library\nInstall it")

    pipe = pipeline.load(registry.resolve(str(folder_of("ddpm")))).pipe
    sampler = type("DPMSolverSDEScheduler", (), {"from_config": staticmethod(from_config)})
    kind = type(pipe.scheduler)
    monkeypatch.setattr(kind, "compatibles", property(lambda scheduler: [sampler]))
    line = "'DPMSolverSDE' cannot run here: DPMSolverSDEScheduler requires the torchsde library$"
    with pytest.raises(UserError, match=line):
        with_sampler(pipe, "DPMSolverSDE")


def test_a_black_out_filter_is_left_out(folder_of, tmp_path):
    folder = shutil.copytree(folder_of("sd1"), tmp_path / "filtered")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "model_index.json").write_text(json.dumps(index))
    assert pipeline.load(registry.resolve(str(folder))).pipe.safety_checker is None


def test_half_precision_files_alone(tmp_path):
    pipe = tiny_pipelines.ddpm()
    pipe.save_pretrained(tmp_path / "half", variant="fp16")
    loaded = pipeline.load(registry.resolve(str(tmp_path / "half")))
    assert loaded.denoiser.dtype == torch.float32


def test_grey_images_get_three_channels(diffusers, tmp_path):
    unet = tiny_pipelines.pixel_unet(in_channels=1, out_channels=1)
    scheduler = diffusers.DDPMScheduler()
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "grey")
    info = registry.resolve(str(tmp_path / "grey"))
    images = draw_images(pipeline.load(info), info, Draw("evaluate", 1, 0, 1, 1)).images
    assert images.shape == (1, 3, 8, 8)
    assert torch.equal(images[:, 0], images[:, 2])


def test_the_denoiser_is_found_by_what_it_takes(folder_of):
    pipe = pipeline.load(registry.resolve(str(folder_of("ddpm")))).pipe

    class Bare:
        def __init__(self, **components):
            self.components = components

    network, other = pipe.unet, torch.nn.Linear(1, 1)
    assert pipeline.find_slot(Bare(vae=other, prior=network), "x") == "prior"
    assert pipeline.find_slot(Bare(unet=network, controlnet=_Control()), "x") == "unet"
    with pytest.raises(BrokenModel, match="x has several denoisers \\(unet, unet_2\\)"):
        pipeline.find_slot(Bare(unet=network, unet_2=network), "x")
    with pytest.raises(BrokenModel, match="x has no denoiser to quantize: it holds vae"):
        pipeline.find_slot(Bare(vae=other), "x")


class _Control(torch.nn.Module):
    def forward(self, sample, timestep):
        return sample


def test_a_pipeline_without_its_denoiser(folder_of, tmp_path):
    folder = shutil.copytree(folder_of("ddpm"), tmp_path / "headless")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "unet": [None, None]}))
    with pytest.raises(BrokenModel, match=r"has no denoiser|does not load"):
        pipeline.load(registry.resolve(str(folder)))


def test_an_exchanged_sampler_is_used_keyed_and_shipped(folder_of, tmp_path, capsys):
    folder = folder_of("sd1")
    plain, other = (pipeline.load(registry.resolve(f"{folder}{s}")) for s in ("", "?sampler=DDIM"))
    assert type(plain.pipe.scheduler).__name__ == "PNDMScheduler"
    assert type(other.pipe.scheduler).__name__ == "DDIMScheduler"
    assert not other.pipe.scheduler.config.clip_sample, "as this pipeline wants it for latents"
    assert plain.sha256 != other.sha256
    packed = tmp_path / "packed"
    arguments = ["--method", "rtn", "--bits", "w8a8", "-o", str(packed), "-q", "--samples", "4"]
    arguments += ["--calibration-images", "1", "--cache", str(tmp_path / "cache")]
    assert run(["quantize", str(folder), "--set", "sampler=DDIM", *arguments]) == 0
    index = json.loads((packed / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    assert run(["sample", str(packed), "-n", "1", "-o", str(tmp_path / "a.png"), "-q"]) == 0
    assert "sampler=DDIM" in (packed / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "settings", "line"),
    [
        ("ddpm", "sampler=DDIMM", "unknown sampler 'DDIMM'.*did you mean DDIMScheduler"),
        ("sd1", "sampler=FlowMatchEulerDiscrete", "does not fit in place of PNDMScheduler"),
        ("sd1", "eta=0.5", "PNDMScheduler takes no eta"),
        ("z-image", "eta=0.5", "FlowMatchEulerDiscreteScheduler takes no eta: leave it 0"),
        ("lumina", "sampler=DDIM", "does not fit in place of FlowMatchEulerDiscreteScheduler"),
        ("sd1", "resolution=20", "cannot draw .* divisible by 8"),
        ("ddpm", "classes=0-3", "DDPMPipeline takes no classes, it draws from noise alone"),
        ("ddpm", "prompts=FILE", "DDPMPipeline takes no prompts, it draws from noise alone"),
        ("ddpm", "guidance=3", "DDPMPipeline takes no guidance"),
        ("ddpm", "resolution=16", "draws 8 pixels a side and takes no other resolution"),
        ("sd1", "classes=0-3", "StableDiffusionPipeline takes no classes, it draws from prompts"),
        ("dit", "classes=998-1000", "class 1000 is out of range, the model has 0 to 999"),
        ("dit", "prompts=FILE", "draws from class numbers, 'a cat' is none"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(name, settings, line, folder_of, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("a cat\n")
    settings = settings.replace("FILE", str(tmp_path / "p.txt"))

    def draw():
        info = registry.resolve(f"{folder_of(name)}?{settings}")
        return draw_images(pipeline.load(info), info, Draw("evaluate", 1, 0, 2, 1))

    with pytest.raises(UserError, match=line) as caught:
        draw()
    assert "\n" not in str(caught.value)
    if "cannot draw" in line:  # what sizes a pipeline takes is known to its code alone
        return
    planned = ["plan", "smoke", "--workload", f"{folder_of(name)}?{settings}", "--method", "rtn"]
    assert run([*planned, "--results", str(tmp_path / "results")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert re.search(line, err)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("name", NAMES)
def test_plan_approves_what_runs(name, folder_of, tmp_path):
    """The other tests of this file run these very folders."""
    planned = ["plan", "smoke", "--workload", str(folder_of(name)), "--method", "rtn"]
    assert run([*planned, "--results", str(tmp_path / "results")]) == 0


@pytest.mark.parametrize("name", NAMES)
def test_plan_asks_for_prompts_and_classes(name, folder_of, tmp_path, capsys):
    """What draws from noise alone is approved; the others say what to give."""
    folder = tmp_path / "bare"
    shutil.copytree(folder_of(name), folder, ignore=lambda *found: ["workload.json"])
    planned = ["plan", "smoke", "--workload", str(folder), "--method", "rtn"]
    code = run([*planned, "--results", str(tmp_path / "results")])
    kind, err = KINDS.get(name, "prompt"), capsys.readouterr().err
    assert code == (0 if kind == "none" else 2)
    hint = {"none": "", "class": "with --set classes=0-9", "prompt": "with --set prompts=FILE"}
    assert hint[kind] in err
    assert err.count("\n") == (kind != "none")


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3", "pixart-alpha", "flux"])
def test_a_prompt_of_five_hundred_tokens_is_cut_and_said(name, folder_of, tmp_path, caplog):
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n" + "a red cat in snow " * 100 + "\n")
    info = registry.resolve(f"{folder_of(name)}?prompts={file}")
    loaded = pipeline.load(info)
    pipeline.load(info)
    assert [record.getMessage() for record in caplog.records] == [
        f"warning: workload {info.name}: {note}" for note in loaded.notes
    ], "once, not with every cell"
    assert "1 of 2 prompts are longer than the 8 tokens of tokenizer" in loaded.notes[0]
    assert len(loaded.notes) == sum("tokenizer" in part for part in loaded.pipe.components)
    assert draw_images(loaded, info, Draw("evaluate", 2, 0, 2, 2)).images.shape[0] == 2


def test_a_pipeline_that_needs_a_picture_is_refused(folder_of):
    workspace = pipeline.load(registry.resolve(str(folder_of("sd1"))))

    class NeedsImage(type(workspace.pipe)):
        def __call__(self, image, prompt=None, generator=None):
            raise AssertionError

    pipe = NeedsImage(**workspace.pipe.components, requires_safety_checker=False)
    info = registry.resolve(str(folder_of("sd1")))
    with pytest.raises(BrokenModel, match="NeedsImage needs 'image'"):
        draw_images(replace(workspace, pipe=pipe), info, Draw("evaluate", 1, 0, 1, 1))


def test_every_step_keeps_its_signature(folder_of):
    """Pipelines read it to see what a sampler takes."""
    from quantarena.bench.workloads.samplers import stepping

    scheduler = pipeline.load(registry.resolve(str(folder_of("ldm")))).pipe.scheduler
    before = inspect.signature(scheduler.step)
    with stepping(scheduler, 0.5, [torch.Generator()]):
        assert inspect.signature(scheduler.step) == before


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("hunyuan-dit", "eda_dm"),
        ("hunyuan-dit", "q_diffusion"),
        ("lumina", "eda_dm"),
        ("lumina-2", "eda_dm"),
        ("z-image", "eda_dm"),
    ],
)
def test_reconstruction_of_a_network_with_odd_inputs(name, method, ground_of, cache, tmp_path):
    """Texts folded into one axis, complex positions, calls for each half, lists."""
    from quantarena.bench.stages import sequence

    budget = replace(BUDGET, iterations=2)
    cell = Cell(str(ground_of(name).info.path), method, "w4a8", budget=budget)
    row = sequence.run_cell(
        cell, sequence.Paths(tmp_path, cache.root), progress=lambda *count: None
    )
    assert (row.status, row.reason) == ("ok", None)


@pytest.mark.parametrize("name", ["lumina", "lumina-2", "z-image"])
def test_prompts_of_several_lengths_are_recorded_alike_in_any_batch(name, folder_of, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n" + "a red dog in snow " * 8 + "\na dog\n")
    made = []
    for batch in (1, 3):
        budget = replace(BUDGET, batch=batch, calibration_images=3)
        workload = f"{folder_of(name)}?prompts={prompts}"
        workspace = open_workspace(Cell(workload, "rtn", "w8a8", budget=budget))
        made.append(trajectory(workspace, StageCache(tmp_path / str(batch))))
    points = [each.pick(torch.zeros(6, dtype=torch.long), torch.arange(6)) for each in made]
    assert torch.equal(points[0].sample, points[1].sample)
    with torch.no_grad():
        one, two = (each.call(workspace.loaded.denoiser) for each in points)
    assert torch.allclose(one, two, atol=1e-5), "rows of the same images and halves"
    assert not torch.allclose(one[:3], one[3:], atol=1e-5), "the halves differ"


def test_classes_are_asked_for_where_the_network_has_them(folder_of):
    info = registry.resolve(str(folder_of("consistency-class")))
    with pytest.raises(BrokenModel, match="draws from prompts or classes and names none"):
        draw_images(pipeline.load(info), replace(info, prompts=()), Draw("evaluate", 1, 0, 1, 1))
