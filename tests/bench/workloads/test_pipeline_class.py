"""What a pipeline is for, read from the signature of its class before anything runs."""

import json
import subprocess
import sys

import pytest

from quantarena.bench.errors import BrokenModel
from quantarena.bench.workloads import registry
from quantarena.bench.workloads.pipeline_class import call_signature, kind_of

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
)
REFUSED = {
    "StableDiffusionInpaintPipeline": "inpainting",
    "StableDiffusionXLInpaintPipeline": "inpainting",
    "FluxFillPipeline": "inpainting",
    "StableDiffusionImg2ImgPipeline": "image to image",
    "StableDiffusionXLImg2ImgPipeline": "image to image",
    "StableDiffusionInstructPix2PixPipeline": "image to image",
    "StableDiffusionUpscalePipeline": "image to image",
    "StableDiffusionControlNetPipeline": "ControlNet",
    "StableDiffusionXLControlNetPipeline": "ControlNet",
    "FluxControlNetPipeline": "ControlNet",
    "TextToVideoSDPipeline": "video",
    "StableVideoDiffusionPipeline": "video",
    "CogVideoXPipeline": "video",
    "WanPipeline": "video",
    "CogVideoXFunControlPipeline": "video",
    "AudioLDM2Pipeline": "audio",
    "StableAudio3Pipeline": "audio",
    "AceStepPipeline": "audio",
    "KandinskyPriorPipeline": "something other than images",
    "LLaDA2Pipeline": "something other than images",
    "ShapEPipeline": "something other than images",
}


@pytest.mark.parametrize("name", DRAWABLE)
def test_what_draws_from_noise_prompts_and_classes(name):
    assert kind_of(call_signature(name)) is None


@pytest.mark.parametrize(("name", "kind"), REFUSED.items())
def test_what_needs_more_is_refused_by_its_kind(name, kind, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(BrokenModel, match=f"is a pipeline for {kind} \\({name}\\)"):
        registry.resolve(str(tmp_path))


@pytest.mark.parametrize("index", ['{"_class_name": "MyOwnPipeline"}', "{}", "[]", "no JSON"])
def test_what_diffusers_does_not_know_is_left_to_its_call(index, tmp_path):
    (tmp_path / "model_index.json").write_text(index)
    assert registry.resolve(str(tmp_path)).path == tmp_path


def test_plan_says_so_and_imports_no_torch(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    index = {"_class_name": "StableDiffusionInpaintPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index))
    code = (
        "import sys; from quantarena.bench.cli.main import run;"
        f"code = run(['plan', '--model', {str(folder)!r}, '--method', 'rtn']);"
        "print(code, 'torch' in sys.modules, 'diffusers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False", "False"]
    assert len(done.stderr.strip().splitlines()) == 1
    assert "is a pipeline for inpainting" in done.stderr
