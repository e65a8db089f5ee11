"""Pipeline classes of diffusers, planned, run, exported, and drawn by what diffusers loads."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from quantarena.bench.cli.main import run
from quantarena.bench.ship.pipeline_folder import load_pipeline
from quantarena.bench.workloads import registry
from quantarena.bench.workloads.sampling import Draw, pipeline_arguments
from quantarena.methods.core.packed.diffusers_layout import packed_folders

HERE = Path(__file__).parent
FILES = (
    HERE.parent / "tiny_pipelines.py",
    HERE.parent / "tiny_llm_pipelines.py",
    HERE / "tiny_more_pipelines.py",
    HERE.parent / "workloads" / "tiny_input_pipelines.py",
)
INPUTS = runpy.run_path(str(FILES[-1]))
MAKERS = {}
for file in FILES:
    made = runpy.run_path(str(file))
    MAKERS |= dict.fromkeys(made["PIPELINES"], made["save"])

CLASSES = {
    "ddpm": "DDPMPipeline",
    "ddim": "DDIMPipeline",
    "ldm": "LDMPipeline",
    "ldm-text": "LDMTextToImagePipeline",
    "dit": "DiTPipeline",
    "consistency": "ConsistencyModelPipeline",
    "sd1": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "pixart-alpha": "PixArtAlphaPipeline",
    "pixart-sigma": "PixArtSigmaPipeline",
    "flux": "FluxPipeline",
    "chroma": "ChromaPipeline",
    "aura-flow": "AuraFlowPipeline",
    "hunyuan-dit": "HunyuanDiTPipeline",
    "lumina": "LuminaPipeline",
    "lumina-2": "Lumina2Pipeline",
    "z-image": "ZImagePipeline",
    "lcm": "LatentConsistencyModelPipeline",
    "sd1-pag": "StableDiffusionPAGPipeline",
    "sdxl-pag": "StableDiffusionXLPAGPipeline",
    "pixart-sigma-pag": "PixArtSigmaPAGPipeline",
    "sd1-img2img": "StableDiffusionImg2ImgPipeline",
    "sd2-inpaint": "StableDiffusionInpaintPipeline",
    "sd1-controlnet": "StableDiffusionControlNetPipeline",
    "sd2-controlnet-img2img": "StableDiffusionControlNetImg2ImgPipeline",
    "sdxl-img2img": "StableDiffusionXLImg2ImgPipeline",
    "sdxl-inpaint": "StableDiffusionXLInpaintPipeline",
    "sdxl-controlnet": "StableDiffusionXLControlNetPipeline",
    "sd3-img2img": "StableDiffusion3Img2ImgPipeline",
    "flux-img2img": "FluxImg2ImgPipeline",
    "wan": "WanPipeline",
    "ltx": "LTXPipeline",
    "cogvideox": "CogVideoXPipeline",
}
QUICK = ("ddpm", "dit", "sd1", "pixart-sigma", "flux", "z-image", "sd2-inpaint", "wan")
RESOLUTION = {"ddpm": 8, "ddim": 8, "consistency": 8, "ldm-text": 64, "lumina": 32, "lumina-2": 32}
NOISE = ("ddpm", "ddim", "ldm", "consistency")
SMALL = ("--samples", "4", "--calibration-images", "2", "--iterations", "1", "-q")
DRAW = Draw("evaluate", 2, 0, 2, 2)


@pytest.fixture
def source(request, tmp_path):
    """A tiny pipeline with random weights, and what a workload says about it."""
    name = request.param
    folder = MAKERS[name](name, tmp_path / name)
    kind = "none" if name in NOISE else "class" if name == "dit" else "prompt"
    values = {"none": [], "class": ["3", "7"], "prompt": ["a red cat", "a dog in snow"]}[kind]
    settings = {
        "steps": 2,
        "guidance": 1.0 if name in NOISE else 3.0,
        "resolution": RESOLUTION.get(name, 16),
        "conditions": {"kind": kind, "values": values},
    }
    if name in INPUTS["PIPELINES"]:
        settings = INPUTS["settings"](name, folder)
    (folder / "workload.json").write_text(json.dumps(settings))
    return folder


def drawn(pipe, info):
    """Images as floats. Torch's float convolutions round by whether weights ask for gradients."""
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    with torch.no_grad():
        draw = replace(DRAW, steps=info.steps)
        output = pipe(**pipeline_arguments(info, pipe, draw, range(2)))
    return np.asarray(output.frames if hasattr(output, "frames") else output.images)


def export(source, folder, cache):
    words = ["quantize", str(source), "--method", "rtn", "--bits", "w8a8", "-o", str(folder)]
    assert run([*words, "--cache", str(cache), *SMALL]) == 0
    return folder


def check(source, folder, diffusers, same_files, tmp_path):
    """diffusers loads the export, draws what we draw, and saves the same again."""
    info = registry.resolve(str(folder))
    first = diffusers.DiffusionPipeline.from_pretrained(folder)
    assert type(first).__name__ == CLASSES[source.name]
    first.save_pretrained(tmp_path / "a")
    second = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "a")
    second.save_pretrained(tmp_path / "b")
    same_files(tmp_path / "a", tmp_path / "b", moved=True)
    slot = packed_folders(folder)[0].name
    same_files(folder / slot, tmp_path / "a" / slot)
    same_files(folder / slot, tmp_path / "b" / slot)
    ours, one, two = (drawn(pipe, info) for pipe in (load_pipeline(folder), first, second))
    assert np.isfinite(ours).all()
    assert ours.std() > 0
    assert np.array_equal(one, two)
    assert np.array_equal(ours, one)


def test_there_are_twenty_classes():
    assert len(set(CLASSES.values())) == len(CLASSES) >= 20
    assert set(CLASSES) <= set(MAKERS)
    assert set(QUICK) <= set(CLASSES)


REST = [pytest.param(name, marks=pytest.mark.long) for name in CLASSES if name not in QUICK]


@pytest.mark.slow
@pytest.mark.parametrize("source", [*QUICK, *REST], indirect=True)
def test_planned_run_exported_and_drawn_by_diffusers(source, diffusers, same_files, tmp_path):
    results = tmp_path / "results"
    grid = ["smoke", "--workload", str(source), "--method", "rtn", "--bits", "w8a8"]
    grid += ["--images", "8", "--range-samples", "4", "--results", str(results), "--name", "mine"]
    assert run(["plan", *grid, *SMALL[:-1]]) == 0
    assert run(["run", *grid, "--executor", "local", *SMALL]) == 0
    rows = [json.loads(file.read_text()) for file in (results / "mine" / "rows").glob("*.json")]
    assert {row["status"] for row in rows} == {"ok"}
    folder = export(source, tmp_path / "packed", results / ".cache")
    check(source, folder, diffusers, same_files, tmp_path)
