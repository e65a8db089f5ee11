"""What a pipeline is for, read from the signature of its class before anything runs."""

import ast
import importlib.util
import json
import subprocess
import sys

import pytest

from quantarena.bench.errors import BrokenModel
from quantarena.bench.workloads import registry
from quantarena.bench.workloads.pipeline_class import (
    SCHEDULERS,
    missing_library,
    needs,
    needs_of,
    purpose,
)

DRAWABLE = (
    "DDPMPipeline",
    "DDIMPipeline",
    "LDMPipeline",
    "DiTPipeline",
    "ConsistencyModelPipeline",
    "LatentConsistencyModelPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "PixArtAlphaPipeline",
    "PixArtSigmaPipeline",
    "HunyuanDiTPipeline",
    "FluxPipeline",
    "LuminaPipeline",
    "ZImagePipeline",
    "SanaPipeline",
    "SanaSprintPipeline",
    "FluxKontextPipeline",
    "Flux2Pipeline",
    "ZImageOmniPipeline",
    "QwenImagePipeline",
    "QwenImage21Pipeline",
    "HunyuanImagePipeline",
    "JoyImageEditPipeline",
    "BriaFiboEditPipeline",
    "UniDiffuserPipeline",
    "StableCascadeCombinedPipeline",
)
REFUSED = {
    "CogVideoXFunControlPipeline": "video to video",
    "CogVideoXVideoToVideoPipeline": "video to video",
    "WanVACEPipeline": "video to video",
    "AudioLDM2Pipeline": "audio",
    "StableAudio3Pipeline": "audio",
    "AceStepPipeline": "audio",
    "KandinskyPriorPipeline": "something other than images",
    "LLaDA2Pipeline": "something other than images",
    "ShapEPipeline": "something other than images",
    "ShapEImg2ImgPipeline": "something other than images",
    "MarigoldDepthPipeline": "something other than images",
    "StableCascadePriorPipeline": "something other than images",
    "WuerstchenPriorPipeline": "something other than images",
    "StableDiffusionLDM3DPipeline": "something other than images",
    "StableDiffusionPix2PixZeroPipeline": "a call with 'source_embeds'",
    "PaintByExamplePipeline": "a call with 'example_image'",
    "OnnxStableDiffusionPipeline": "ONNX networks",
    "StableDiffusionOnnxPipeline": "ONNX networks",
    "FluxModularPipeline": "diffusers' modular blocks",
    "Cosmos3DistilledModularPipeline": "diffusers' modular blocks",
    "ModularPipeline": "diffusers' modular blocks",
    "DiffusionPipeline": "no call of its own",
}
NEEDS = {
    "StableDiffusionPipeline": ((), ()),
    "StableDiffusionImg2ImgPipeline": (("images",), ()),
    "StableDiffusionXLImg2ImgPipeline": (("images",), ()),
    "StableDiffusionInstructPix2PixPipeline": (("images",), ()),
    "StableDiffusionUpscalePipeline": (("images",), ()),
    "QwenImageEditPipeline": (("images",), ()),
    "QwenImageEditPlusPipeline": (("images",), ()),
    "HunyuanImageRefinerPipeline": (("images",), ()),
    "FluxKontextPipeline": ((), ("images",)),
    "Flux2Pipeline": ((), ("images",)),
    "StableDiffusionInpaintPipeline": (("images", "masks"), ()),
    "FluxFillPipeline": (("images", "masks"), ()),
    "StableDiffusionControlNetPipeline": (("control",), ()),
    "StableDiffusionXLControlNetPipeline": (("control",), ()),
    "StableDiffusion3ControlNetPipeline": (("control",), ()),
    "FluxControlNetPipeline": (("control",), ()),
    "StableDiffusionAdapterPipeline": (("control",), ()),
    "StableDiffusionControlNetImg2ImgPipeline": (("images", "control"), ()),
    "StableDiffusionControlNetInpaintPipeline": (("images", "masks", "control"), ()),
    "TextToVideoSDPipeline": ((), ()),
    "CogVideoXPipeline": ((), ()),
    "WanPipeline": ((), ()),
    "LTXPipeline": ((), ()),
    "LTXImageToVideoPipeline": (("images",), ()),
    "WanImageToVideoPipeline": (("images",), ()),
    "StableVideoDiffusionPipeline": (("images",), ()),
}
"""Condition images that a class cannot draw without, and those that it also takes."""


@pytest.mark.parametrize("name", DRAWABLE)
def test_what_draws_from_noise_prompts_and_classes(name):
    assert purpose(name) is None


@pytest.mark.parametrize(("name", "kind"), REFUSED.items())
def test_what_needs_more_is_refused_by_its_kind(name, kind, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(BrokenModel, match=f"is a pipeline for {kind} \\({name}\\)"):
        registry.resolve(str(tmp_path))


@pytest.mark.parametrize(("name", "settings"), NEEDS.items())
def test_the_condition_images_of_a_class_are_read_from_its_call(name, settings):
    needed, more = settings
    found = needs_of(name)
    assert purpose(name) is None
    assert found.needed == needed
    assert set(found.arguments) == {*needed, *more}


def test_an_image_of_a_control_network_alone_is_its_control_image():
    assert needs_of("StableDiffusionControlNetPipeline").arguments == {"control": "image"}
    both = needs_of("StableDiffusionControlNetImg2ImgPipeline").arguments
    assert both == {"control": "control_image", "images": "image"}


CODE = """
def call(self, prompt, image=None):
    {body}
    image = self.vae.decode(latents)
    return image.float()
"""


@pytest.mark.parametrize(
    ("body", "needed"),
    [
        ("pass", False),
        ("size = image.size", True),
        ("size = image[0].size if isinstance(image, list) else image.size", True),
        ("size = image[0].size if image is not None else None", False),
        ("if image is not None: image = self.preprocess(image)", False),
        ("if image is not None and image.ndim: pass\n    else: self.p.preprocess(image)", True),
        ("latents = self.p.preprocess(image, height)", True),
        ("image = image.unsqueeze(0)", True),
        ("assert image is not None\n    image.size", False),
    ],
)
def test_an_image_is_needed_where_code_uses_it_as_if_it_were_given(body, needed):
    call = ast.parse(CODE.format(body=body)).body[0]
    assert needs(call.body, "image") == needed


def test_a_sampler_whose_library_is_missing_is_known_by_its_source(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", find_all_but("torchsde"))
    assert missing_library("DPMSolverSDEScheduler", SCHEDULERS) == "torchsde"
    assert missing_library("DDIMScheduler", SCHEDULERS) is None


def find_all_but(library):
    found = importlib.util.find_spec
    return lambda name: None if name == library else found(name)


@pytest.mark.parametrize("index", ["{}", "[]", "no JSON", '{"_class_name": ["x"]}', "[" * 200_000])
def test_an_index_that_names_no_class_is_refused(index, tmp_path):
    (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(BrokenModel, match=r"model_index\.json (cannot be read|names no|must hold)"):
        registry.resolve(str(tmp_path))


def test_what_diffusers_does_not_know_is_left_to_its_call(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "MyOwnPipeline"}')
    assert registry.resolve(str(tmp_path)).path == tmp_path


def test_plan_says_so_and_imports_no_torch(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    index = {"_class_name": "AudioLDM2Pipeline"}
    (folder / "model_index.json").write_text(json.dumps(index))
    code = (
        "import sys; from quantarena.bench.cli.main import run;"
        f"code = run(['plan', '--model', {str(folder)!r}, '--method', 'rtn']);"
        "print(code, 'torch' in sys.modules, 'diffusers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False", "False"]
    assert len(done.stderr.strip().splitlines()) == 1
    assert "is a pipeline for audio" in done.stderr
