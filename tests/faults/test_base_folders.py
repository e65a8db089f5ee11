"""Damaged folders of base pipelines: a plan refuses them in one line, before anything runs."""

import json

import damage
import pytest

UNET = {"_class_name": "UNet2DConditionModel", "sample_size": 8, "block_out_channels": [8, 16]}
VAE = {"_class_name": "AutoencoderKL", "block_out_channels": [4, 4], "sample_size": 16}
SAMPLER = {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_end": 0.02}
FILES = {
    "model_index.json": {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "requires_safety_checker": False,
    },
    "unet/config.json": UNET,
    "vae/config.json": VAE,
    "scheduler/scheduler_config.json": SAMPLER,
}
WRONG = {
    "model_index.json": (
        {"_class_name": ["x"]},
        {"_class_name": None},
        {"scheduler": 3},
        {"unet": ["diffusers", ["x"]]},
        {"vae": ["diffusers"]},
    ),
    "unet/config.json": (
        {"sample_size": {"a": 1}},
        {"_class_name": 5},
        {"num_class_embeds": "x"},
    ),
    "vae/config.json": (
        {"block_out_channels": 5},
        {"block_out_channels": "x"},
        {"block_out_channels": []},
        {"block_out_channels": [4, None]},
        {"sample_size": "8"},
    ),
    "scheduler/scheduler_config.json": (
        {"num_train_timesteps": "x"},
        {"num_train_timesteps": 0},
        {"num_train_timesteps": True},
        {"_class_name": ["x"]},
    ),
}
"""By file, entries of a type or size that no reader expects."""


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "model"
    for name, document in FILES.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(json.dumps(document))
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    return place


@pytest.fixture
def planned(folder, refuses):
    def plan(*more, codes=(2,)):
        prompts = f"prompts={folder.parent / 'prompts.txt'}"
        results = ("--results", folder.parent / "results")
        given = ("plan", "smoke", "--workload", folder, "--set", prompts, *results, *more)
        return refuses(*given, codes=codes)

    return plan


def test_an_intact_folder_is_planned(folder, planned):
    planned(codes=(0,))
    # diffusers writes infinity where a sampler has no limit
    text = json.dumps({**SAMPLER, "lambda_min_clipped": float("-inf")})
    (folder / "scheduler/scheduler_config.json").write_text(text)
    planned(codes=(0,))


@pytest.mark.parametrize("name", FILES)
def test_texts_that_are_no_object(name, folder, planned, tried):
    texts = [b"", b"\xff\xfe", b"[]", b'"text"', b"no JSON", b'{"a": ' + b"9" * 5000 + b"}"]
    for text in [*texts, damage.DEEP.encode(), *damage.cut(json.dumps(FILES[name]).encode(), 4)]:
        (folder / name).write_bytes(text)
        assert name in planned()
        tried("base folders")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", damage.NOT_FILES)
def test_no_regular_file(kind, name, folder, planned, tried):
    damage.not_a_file(folder / name, kind)
    assert name in planned()
    tried("base folders")


@pytest.mark.parametrize("name", WRONG)
def test_values_of_other_types(name, folder, planned, tried):
    for change in WRONG[name]:
        (folder / name).write_text(json.dumps(FILES[name] | change))
        assert name in planned()
        tried("base folders")


def test_weights_that_are_a_pipe(folder, planned, tried):
    damage.not_a_file(folder / "unet/weights.safetensors", "pipe")
    assert "weights.safetensors cannot be read: it is no regular file" in planned()
    tried("base folders")


def test_a_sampler_whose_library_is_missing(planned, monkeypatch, tried):
    from quantarena.bench.plan import usable

    monkeypatch.setattr(usable, "missing_library", lambda name, places: "torchsde")
    line = planned("--set", "sampler=DPMSolverSDEScheduler")
    assert "sampler DPMSolverSDEScheduler needs the library torchsde" in line
    tried("base folders")
