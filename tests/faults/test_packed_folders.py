"""Damaged folders of quantized models: ``sample`` refuses them in one line."""

import json
import shutil

import damage
import pytest

CONFIG, TENSORS = "unet/config.json", "unet/diffusion_pytorch_model.safetensors"
INDEX, MANIFEST, SAMPLER = "model_index.json", "manifest.json", "scheduler/scheduler_config.json"
JSON = (INDEX, MANIFEST, CONFIG, SAMPLER, "workload.json")
DRAWN_OR_REFUSED = (0, 2)


@pytest.fixture(scope="module")
def whole(pixel_folder, tmp_path_factory):
    from quantarena.bench.cli.main import run

    root = tmp_path_factory.mktemp("packed")
    given = ["quantize", str(pixel_folder), "--method", "rtn", "--bits", "w4a8", "-q"]
    given += ["--samples", "4", "--calibration-images", "2", "--steps", "2"]
    assert run([*given, "-o", str(root / "model"), "--cache", str(root / "cache")]) == 0
    return root / "model"


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


@pytest.fixture
def sampled(folder, refuses, tried):
    def sample(codes=(2,)):
        tried("packed folders")
        where = ("-o", folder.parent / "grid.png")
        return refuses("sample", folder, "-n", "1", "--steps", "1", "-q", *where, codes=codes)

    return sample


def without_manifest(folder):
    (folder / MANIFEST).unlink()
    return folder


def test_an_intact_folder_is_drawn(folder, sampled):
    sampled(codes=(0,))
    without_manifest(folder)
    sampled(codes=(0,))


@pytest.mark.parametrize("name", [*JSON, TENSORS])
def test_any_byte(name, folder, sampled):
    data = (folder / name).read_bytes()
    for bad in [*damage.cut(data, 4), *damage.flipped(data, 4)]:
        (folder / name).write_bytes(bad)
        sampled()


@pytest.mark.parametrize("name", JSON)
def test_texts_and_values(name, folder, sampled):
    document = json.loads((folder / name).read_bytes())
    changed = [json.dumps(one).encode() for one in damage.foreign(document, 6)]
    for bad in [*damage.texts(document), *changed]:
        (folder / name).write_bytes(bad)
        sampled()


@pytest.mark.parametrize("name", [INDEX, CONFIG])
def test_texts_that_no_manifest_vouches_for(name, folder, sampled):
    without_manifest(folder)
    document = json.loads((folder / name).read_bytes())
    for bad in damage.texts(document):
        (folder / name).write_bytes(bad)
        is_object = bad.startswith(b'{"') and bad.endswith(b"}")  # the index has no number to spoil
        drawn = is_object and name == INDEX
        line = sampled(codes=DRAWN_OR_REFUSED if drawn else (2,))
        assert drawn or name in line


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("name", [INDEX, CONFIG, SAMPLER])
def test_values_that_no_manifest_vouches_for(name, folder, sampled):
    without_manifest(folder)
    document = json.loads((folder / name).read_bytes())
    for one in damage.foreign(document, 10, seed=1):
        (folder / name).write_text(json.dumps(one))
        sampled(codes=DRAWN_OR_REFUSED)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("name", [*JSON, TENSORS])
@pytest.mark.parametrize("kind", damage.NOT_FILES)
def test_no_regular_file(kind, name, kept, folder, sampled):
    if not kept and name != MANIFEST:
        without_manifest(folder)
    damage.not_a_file(folder / name, kind)
    sampled()


@pytest.mark.parametrize("name", [INDEX, CONFIG, SAMPLER, TENSORS])
def test_a_missing_file(name, folder, sampled):
    (folder / name).unlink()
    sampled()
    without_manifest(folder)
    sampled()


def test_a_manifest_that_vouches_for_nothing(folder, sampled):
    for text in ("{}", '{"files": {}}', '{"files": {"unet/config.json": {}}}'):
        (folder / MANIFEST).write_text(text)
        assert MANIFEST in sampled()
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).symlink_to("nowhere")
    assert "a link to nowhere" in sampled()


@pytest.mark.parametrize(
    "meta", [None, 3, [], {"base_model": 3}, {"base_model": "\ud800"}, {"base_model": "a\0b"}]
)
def test_a_model_that_does_not_say_how_it_was_made(meta, folder, sampled):
    """Also where the hash vouches for what it says instead."""
    from safetensors.torch import load_file

    from quantarena.methods.core.packed.diffusers_layout import content_sha256, tensor_sha256

    file = without_manifest(folder) / CONFIG
    document = json.loads(file.read_bytes())
    entry = document["quantization_config"]
    entry["meta"] = meta
    if meta is None:
        del entry["meta"]
    file.write_text(json.dumps(document))
    assert "was edited: the sha256 in config.json" in sampled()
    digests = {name: tensor_sha256(tensor) for name, tensor in load_file(folder / TENSORS).items()}
    entry["sha256"] = content_sha256(entry, digests)
    file.write_text(json.dumps(document))
    assert CONFIG in sampled()


@pytest.mark.parametrize("name", ["\ud800", "\0", "x" * 300, "../model/unet"])
def test_names_of_components(name, folder, sampled):
    file = without_manifest(folder) / INDEX
    index = json.loads(file.read_bytes())
    file.write_text(json.dumps({**index, name: ["diffusers", "\ud800"]}))
    sampled(codes=DRAWN_OR_REFUSED)
    del index["unet"]
    file.write_text(json.dumps({**index, name: ["diffusers", "UNet2DModel"]}))
    sampled()
