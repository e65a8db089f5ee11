import hashlib
import json
import shutil
from dataclasses import replace

import pytest
import torch

from quantarena.bench.errors import BrokenModel, UnknownName, UserError
from quantarena.bench.workloads import pipeline, registry
from quantarena.bench.workloads.sampling import Draw, condition, draw_images, image_seed
from quantarena.methods.core.recording import recording


@pytest.fixture
def copy(pixel_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(pixel_folder, folder)
    return folder


@pytest.fixture
def manifest(copy):
    weights = "unet/diffusion_pytorch_model.safetensors"
    digest = hashlib.sha256((copy / weights).read_bytes()).hexdigest()
    (copy / "manifest.json").write_text(json.dumps({"files": {weights: {"sha256": digest}}}))
    return copy


def test_folder_with_settings(pixel_folder):
    info = registry.resolve(str(pixel_folder))
    assert (info.steps, info.resolution, info.conditions) == (4, 16, "none")
    assert info.megabytes > 0


@pytest.mark.parametrize("name", ["emoji-t3i", "nothing-like-it"])
def test_unknown_names_suggest(name, monkeypatch):
    monkeypatch.setattr(registry, "names", lambda: ("emoji-t2i",))
    with pytest.raises(UnknownName, match="emoji-t2i"):
        registry.resolve(name)


def test_path_that_is_no_folder():
    with pytest.raises(UnknownName, match="no folder"):
        registry.resolve("some/where/else")


def test_folder_that_is_no_pipeline(tmp_path):
    with pytest.raises(BrokenModel, match="no diffusers pipeline"):
        registry.resolve(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[1]", "\xff"])
def test_broken_settings(copy, text):
    (copy / "workload.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BrokenModel, match=r"workload\.json"):
        registry.resolve(str(copy))


def test_missing_prompts_file(copy):
    (copy / "workload.json").write_text(
        json.dumps({"conditions": {"kind": "prompt", "file": "none.txt"}})
    )
    with pytest.raises(UserError, match=r"none\.txt cannot be read"):
        registry.resolve(str(copy))


def test_whole_manifest_loads(manifest):
    loaded = pipeline.load(registry.resolve(str(manifest)))
    assert loaded.slot == "unet"
    assert not loaded.denoiser.training
    assert not any(p.requires_grad for p in loaded.denoiser.parameters())


def test_truncated_weights_are_caught_by_the_manifest(manifest):
    file = manifest / "unet/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(BrokenModel, match=r"safetensors is damaged: sha256"):
        pipeline.load(registry.resolve(str(manifest)))


def test_missing_weights_are_caught_by_the_manifest(manifest):
    file = manifest / "unet/diffusion_pytorch_model.safetensors"
    file.rename(manifest / "unet/other.safetensors")
    with pytest.raises(BrokenModel, match="missing"):
        pipeline.load(registry.resolve(str(manifest)))


def test_truncated_weights_without_a_manifest(copy):
    file = copy / "unet/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(BrokenModel, match="does not load as a diffusers pipeline") as caught:
        pipeline.load(registry.resolve(str(copy)))
    assert "\n" not in str(caught.value)


def test_no_weights_at_all(copy):
    shutil.rmtree(copy / "unet")
    with pytest.raises(BrokenModel, match="holds no weights"):
        pipeline.load(registry.resolve(str(copy)))


def test_unreadable_manifest(manifest):
    (manifest / "manifest.json").write_text("{")
    with pytest.raises(BrokenModel, match="cannot be read"):
        pipeline.load(registry.resolve(str(manifest)))


def test_hash_sees_weights_and_configurations_not_settings(copy):
    first = pipeline.pipeline_sha256(copy)
    (copy / "workload.json").write_text('{"steps": 9}')
    (copy / "README.md").write_text("words")
    assert pipeline.pipeline_sha256(copy) == first
    config = copy / "scheduler/scheduler_config.json"
    config.write_text(config.read_text().replace("linear", "scaled_linear"))
    assert pipeline.pipeline_sha256(copy) != first


@pytest.fixture(scope="module")
def loaded(pixel_folder):
    info = registry.resolve(str(pixel_folder))
    return info, pipeline.load(info)


def first_inputs(loaded, info, draw):
    with recording(loaded.denoiser) as done:
        drawn = draw_images(loaded, info, draw)
    return drawn, done().sample[0]


def test_batch_size_does_not_change_noise_nor_images(loaded):
    info, pipe = loaded
    draws = [Draw("evaluate", 8, 0, 3, batch) for batch in (4, 8)]
    (four, noise4), (eight, noise8) = (first_inputs(pipe, info, draw) for draw in draws)
    assert torch.equal(noise4, noise8)
    assert four.noise_sha256 == eight.noise_sha256
    assert (four.images.int() - eight.images.int()).abs().max() <= 1
    assert four.images.shape == (8, 3, 16, 16)
    assert four.images.dtype == torch.uint8


def test_fewer_images_are_a_prefix(loaded):
    info, pipe = loaded
    few, _ = first_inputs(pipe, info, Draw("evaluate", 2, 0, 2, 4))
    many, _ = first_inputs(pipe, info, Draw("evaluate", 6, 0, 2, 4))
    assert (few.images.int() - many.images[:2].int()).abs().max() <= 1


def test_noise_depends_on_workload_seed_purpose_and_index():
    base = Draw("evaluate", 8, 0, 3, 4)
    others = {
        image_seed("w", base, 0),
        image_seed("w", base, 1),
        image_seed("v", base, 0),
        image_seed("w", replace(base, seed=1), 0),
        image_seed("w", replace(base, purpose="calibrate"), 0),
    }
    assert len(others) == 5
    assert image_seed("w", replace(base, batch=8, count=2, steps=9), 0) == image_seed("w", base, 0)


def test_guided_class_pipeline(class_folder):
    info = registry.resolve(str(class_folder))
    pipe = pipeline.load(info)
    assert pipe.slot == "transformer"
    with recording(pipe.denoiser) as done:
        drawn = draw_images(pipe, info, Draw("evaluate", 3, 0, 3, 2))
    recorded = done()
    assert recorded.calls == 3
    assert recorded.rows == 6, "both guidance halves"
    assert recorded.conditions["class_labels"][0].tolist() == [3, 5, 1000, 1000, 7, 1000]
    assert drawn.images.shape == (3, 3, 16, 16)


def test_calibration_walks_the_conditions_from_their_end(class_folder):
    info = registry.resolve(str(class_folder))
    assert [condition(info, "evaluate", i) for i in range(4)] == ["3", "5", "7", "3"]
    assert [condition(info, "calibrate", i) for i in range(4)] == ["7", "5", "3", "7"]


def test_conditions_that_nobody_named(class_folder):
    info = replace(registry.resolve(str(class_folder)), prompts=())
    with pytest.raises(BrokenModel, match="names none"):
        draw_images(pipeline.load(info), info, Draw("evaluate", 1, 0, 1, 1))


def test_nan_images_are_refused(loaded):
    info, pipe = loaded
    weight = pipe.denoiser.conv_out.bias
    before = weight.data.clone()
    weight.data.fill_(float("nan"))
    try:
        with pytest.raises(BrokenModel, match="NaN"):
            draw_images(pipe, info, Draw("evaluate", 1, 0, 1, 1))
    finally:
        weight.data = before
    assert not pipe.denoiser._forward_pre_hooks
