import hashlib
import json
import shutil
from dataclasses import replace

import pytest
import torch

from quantarena.bench.cache import StageCache
from quantarena.bench.errors import BrokenModel, UnknownName, UserError
from quantarena.bench.plan import lookup, presets
from quantarena.bench.spec import Cell, Grid
from quantarena.bench.stages.real_images import real_features
from quantarena.bench.stages.workspace import open_workspace
from quantarena.bench.workloads import pipeline, pipeline_hash, registry, workload_name
from quantarena.bench.workloads.conditions import read_conditions
from quantarena.bench.workloads.sampling import Draw, condition, draw_images, image_seed
from quantarena.methods.core.record.recorder import recording


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


@pytest.mark.parametrize(
    ("name", "text", "column", "found"),
    [
        ("p.txt", "\ufeffa cat\n\n  a dog \n", "", ("a cat", "a dog")),
        ("p.csv", 'id,Caption\n1,"a cat, red"\n2,a dog\n', "", ("a cat, red", "a dog")),
        ("p.csv", "id,mine\n1,a cat\n", "mine", ("a cat",)),
        ("p.tsv", "Prompt\tCategory\na cat\tAnimals\n", "", ("a cat",)),
        ("p.json", '["a cat", "a dog"]', "", ("a cat", "a dog")),
        ("p.json", '[{"text": "a cat"}]', "", ("a cat",)),
        ("p.json", '{"a": [{"id": 1}], "b": [{"caption": "a cat"}]}', "", ("a cat",)),
        ("p.json", '{"a": [{"x": 1}], "b": [{"x": 2, "y": "a cat"}]}', "y", ("a cat",)),
    ],
)
def test_conditions_of_every_form(name, text, column, found, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_conditions(tmp_path / name, "prompt", column) == found


@pytest.mark.parametrize(
    ("name", "text", "column", "line"),
    [
        ("p.txt", "", "", "holds no prompt"),
        ("p.txt", "\n  \n", "", "holds no prompt"),
        ("p.txt", "\xff", "", "no UTF-8"),
        ("p.csv", "id,caption\n1,a\n", "captain", "no column 'captain': did you mean caption"),
        ("p.csv", "id,words\n1,a\n", "", r"has the columns id, words: .* column=NAME"),
        ("p.csv", "", "", r"has the columns \(none\)"),
        ("p.csv", "prompt\n", "", "holds no prompt"),
        ("p.json", "{", "", "no JSON"),
        ("p.json", "3", "", "no list of prompts"),
        ("p.json", "[]", "", "no list of prompts"),
        ("p.json", "[[1]]", "", "no prompt and no class"),
        ("p.json", '{"a": [{"id": 1}]}', "", "columns id: say which"),
    ],
)
def test_bad_conditions_are_one_line(name, text, column, line, tmp_path):
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=line) as caught:
        read_conditions(tmp_path / name, "prompt", column)
    assert "\n" not in str(caught.value)


def test_a_class_that_is_no_number(tmp_path):
    (tmp_path / "c.txt").write_text("3\ncat\n")
    with pytest.raises(UserError, match="'cat' is no class number"):
        read_conditions(tmp_path / "c.txt", "class")


def test_settings_behind_the_name(copy, tmp_path):
    (tmp_path / "p.csv").write_text("caption,other\na cat,a dog\n")
    given = f"{copy}?guidance=7.50&steps=9&prompts={tmp_path}/p.csv&column=other"
    info = registry.resolve(given)
    assert (info.steps, info.guidance, info.conditions) == (9, 7.5, "prompt")
    assert info.prompts == ("a dog",)
    assert info.resolution == 16, "what is not given stays"
    again = registry.resolve(info.name)
    assert again == info, "the name says it all"
    assert info.noise_name == registry.resolve(str(copy)).noise_name, "settings make pairs"
    assert workload_name.with_options(f"{copy}?steps=5", ("steps=6",)) == f"{copy}?steps=6"


def test_one_name_for_one_request(copy, tmp_path, monkeypatch):
    (tmp_path / "p & q.txt").write_text("a cat\n")
    monkeypatch.chdir(tmp_path)
    names = {
        registry.resolve(workload_name.with_options(name, options)).name
        for name, options in (
            ("model", ("guidance=2", "prompts=p & q.txt")),
            (str(copy), ("prompts=../" + tmp_path.name + "/p & q.txt", "guidance=2.0")),
            ("./model?guidance=02", (f"prompts={tmp_path}/p & q.txt",)),
        )
    }
    assert len(names) == 1
    assert registry.resolve(names.pop()).prompts == ("a cat",)


def test_a_folder_with_a_question_mark(pixel_folder, tmp_path):
    folder = shutil.copytree(pixel_folder, tmp_path / "what?")
    assert registry.resolve(str(folder)).path == folder


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("guidanc=3", "unknown setting 'guidanc': did you mean guidance"),
        ("guidance=-1", "guidance must be 0 or more"),
        ("guidance=nan", "guidance must be 0 or more"),
        ("guidance=much", "guidance must be a number"),
        ("eta=1.5", "eta must be from 0 to 1"),
        ("steps=0", "steps must be at least 1"),
        ("steps=2.5", "steps must be a whole number"),
        ("resolution=-8", "resolution must be at least 0"),
        ("prompts=none.txt", r"none\.txt cannot be read"),
        ("classes=9-3", "must go up"),
        ("classes=0-3&prompts=p.txt", "exclude each other"),
        ("nonsense", "unknown setting 'nonsense'"),
        ("", r"settings read NAME\?guidance"),
    ],
)
def test_bad_settings_are_one_line(given, line, copy):
    with pytest.raises(UserError, match=line) as caught:
        registry.resolve(f"{copy}?{given}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ['{"steps": "x"}', '{"eta": 2}', '{"conditions": {"kind": "x"}}'])
def test_bad_values_in_a_settings_file(copy, text):
    (copy / "workload.json").write_text(text)
    with pytest.raises(BrokenModel, match=r"workload\.json"):
        registry.resolve(str(copy))


def test_single_file_checkpoints(tmp_path):
    file = tmp_path / "v1-5.safetensors"
    file.write_bytes(b"x")
    with pytest.raises(BrokenModel, match=r"single-file checkpoint: .*from_single_file"):
        registry.resolve(str(file))
    with pytest.raises(BrokenModel, match=r"v1-5\.safetensors looks like a single-file"):
        registry.resolve(str(tmp_path))
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(BrokenModel, match="is a file"):
        registry.resolve(str(tmp_path / "notes.md"))


def test_a_component_is_no_pipeline(pixel_folder):
    with pytest.raises(BrokenModel, match="it holds UNet2DModel alone"):
        registry.resolve(str(pixel_folder / "unet"))


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
    first = pipeline_hash.pipeline_sha256(copy)
    (copy / "workload.json").write_text('{"steps": 9}')
    (copy / "README.md").write_text("words")
    assert pipeline_hash.pipeline_sha256(copy) == first
    config = copy / "scheduler/scheduler_config.json"
    config.write_text(config.read_text().replace("linear", "scaled_linear"))
    assert pipeline_hash.pipeline_sha256(copy) != first


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


def test_a_changed_prompt_file_makes_rows_stale(copy, tmp_path):
    file = tmp_path / "p.txt"
    grid = Grid("g", "G", (f"{copy}?prompts={file}",), ("rtn",), ("w8a8",))

    def stamp():
        return lookup.facts(grid).stamp(grid.cells()[0])

    file.write_text("a cat\n")
    first = stamp()
    assert stamp() == first
    file.write_text("a dog\n")
    assert stamp() != first


def test_commands_repeat_settings_without_local_folders(copy, tmp_path):
    choice = presets.Choice(workloads=("a/b",), settings=("eta=1", "prompts=p q.txt"))
    line = presets.command("quick", choice)
    assert line == "quantarena run quick --workload a/b --set eta=1 --set 'prompts=p q.txt'"
    assert (
        workload_name.shown(f"{copy}?eta=1&prompts=/home/me/p.txt") == "model?eta=1&prompts=p.txt"
    )
    assert workload_name.shown("google/ddpm-church-256?eta=1") == "google/ddpm-church-256?eta=1"


def test_a_folder_of_real_images_by_option(copy, tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    monkeypatch.chdir(tmp_path)
    name = workload_name.with_options(str(copy), ("reference=real",))
    assert registry.resolve(name).reference == str(tmp_path / "real")
    cell = Cell(workload_name.with_options(str(copy), ("reference=nowhere",)), "rtn", "w8a8")
    with pytest.raises(UserError, match="nowhere") as caught:
        real_features(open_workspace(cell), StageCache(tmp_path / "cache"))
    assert "\n" not in str(caught.value)


def test_a_model_that_cannot_run_at_its_size_is_one_line(pixel_folder):
    info = registry.resolve(str(pixel_folder))
    loaded = pipeline.load(info)

    class Fails(torch.nn.Module):
        config, dtype, device = loaded.denoiser.config, torch.float32, torch.device("cpu")

        def forward(self, sample, timestep, return_dict=True):
            raise RuntimeError("Sizes of tensors must match except in dimension 1.\nmore lines")

    loaded.put(Fails())
    with pytest.raises(
        BrokenModel,
        match=r"RuntimeError: Sizes of tensors must match .* 1\. \(look at workload.json .*\)$",
    ):
        draw_images(loaded, info, Draw("evaluate", 1, 0, 1, 1))
