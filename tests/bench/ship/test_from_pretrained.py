"""diffusers itself loads, saves and loads again what ``quantarena quantize`` wrote."""

import hashlib
import json
import subprocess
import sys

import pytest
import torch

from quantarena.bench.ship.pipeline_folder import load_pipeline, open_exported
from quantarena.methods.core.errors import BrokenModel, UserError
from quantarena.methods.core.packed.checkpoint import save_packed
from quantarena.methods.core.packed.diffusers_layout import tensor_sha256
from quantarena.methods.core.packed.files import DESCRIBED, DOCUMENT

WEIGHTS, CONFIG = "diffusion_pytorch_model.safetensors", "config.json"


def python(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


# ---- registration ----------------------------------------------------------------------------

AFTER = """
import sys
import quantarena
assert not {"torch", "diffusers"} & set(sys.modules)
from diffusers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
"""
BEFORE = """
import sys
from diffusers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
assert "quantarena" not in AUTO_QUANTIZER_MAPPING
import quantarena
"""
OURS = """
import sys
from quantarena import QuantArenaConfig
from diffusers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
"""
KNOWN = """
import inspect, diffusers.quantizers.auto as auto
from quantarena import QuantArenaConfig
assert AUTO_QUANTIZATION_CONFIG_MAPPING["quantarena"] is QuantArenaConfig
assert issubclass(AUTO_QUANTIZER_MAPPING["quantarena"], auto.DiffusersAutoQuantizer.__mro__[-1])
assert AUTO_QUANTIZER_MAPPING["quantarena"].__name__ == "QuantArenaQuantizer"
assert "AUTO_QUANTIZER_MAPPING" in inspect.getsource(auto)
"""


@pytest.mark.parametrize("first", [AFTER, BEFORE, OURS])
def test_diffusers_knows_the_quantizer_whichever_is_imported_first(first):
    code, _, err = python(first + KNOWN)
    assert code == 0, err


def test_without_quantarena_the_error_of_diffusers_names_it(shipped):
    code, _, err = python(
        "import sys\nfrom diffusers import UNet2DModel\nUNet2DModel.from_pretrained(sys.argv[1])",
        shipped / "unet",
    )
    assert code == 1
    assert "Unknown quantization type, got quantarena" in err


# ---- there and back --------------------------------------------------------------------------


def test_diffusers_draws_what_load_pipeline_draws(shipped, pixels, diffusers):
    native = diffusers.DiffusionPipeline.from_pretrained(shipped)
    assert type(native).__name__ == "DDIMPipeline"
    assert torch.equal(pixels(native), pixels(load_pipeline(shipped)))


def test_a_model_alone_is_the_network_of_the_pipeline(shipped, diffusers):
    found = diffusers.UNet2DModel.from_pretrained(shipped / "unet")
    assert isinstance(found, diffusers.UNet2DModel)
    other = open_exported(shipped).packed.module
    x, t = torch.randn(2, 3, 16, 16), torch.tensor(7)
    with torch.no_grad():
        assert torch.equal(found(x, t).sample, other(x, t).sample)


def test_saved_and_loaded_again_bit_for_bit(shipped, pixels, diffusers, same_files, tmp_path):
    first = diffusers.DiffusionPipeline.from_pretrained(shipped)
    first.save_pretrained(tmp_path / "a")
    second = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "a")
    second.save_pretrained(tmp_path / "b")
    assert torch.equal(pixels(first), pixels(second))
    same_files(tmp_path / "a", tmp_path / "b", moved=True)
    same_files(shipped / "unet", tmp_path / "a" / "unet")
    same_files(tmp_path / "a" / "unet", tmp_path / "b" / "unet")
    inside = {file.name for file in (tmp_path / "a" / "unet").iterdir()}
    assert inside == {CONFIG, WEIGHTS}
    assert torch.equal(pixels(load_pipeline(tmp_path / "a")), pixels(load_pipeline(shipped)))


def test_no_path_of_this_machine_is_in_a_saved_network(shipped, diffusers, tmp_path):
    network = diffusers.UNet2DModel.from_pretrained(shipped / "unet")
    network.save_pretrained(tmp_path / "a")
    assert str(tmp_path.parent) not in (tmp_path / "a" / CONFIG).read_text()


def test_weights_in_several_files(shipped, pixels, diffusers, tmp_path):
    pipe = diffusers.DiffusionPipeline.from_pretrained(shipped)
    pipe.save_pretrained(tmp_path / "a", max_shard_size="20KB")
    assert len(list((tmp_path / "a" / "unet").glob("*.safetensors"))) > 1
    for again in (
        diffusers.DiffusionPipeline.from_pretrained(tmp_path / "a"),
        load_pipeline(tmp_path / "a"),
    ):
        assert torch.equal(pixels(again), pixels(load_pipeline(shipped)))


def test_weights_in_the_file_format_of_torch(shipped, diffusers, tmp_path):
    network = diffusers.UNet2DModel.from_pretrained(shipped / "unet")
    network.save_pretrained(tmp_path / "a", safe_serialization=False)
    again = diffusers.UNet2DModel.from_pretrained(tmp_path / "a", use_safetensors=False)
    x, t = torch.randn(1, 3, 16, 16), torch.tensor(3)
    with torch.no_grad():
        assert torch.equal(network(x, t).sample, again(x, t).sample)


def test_a_folder_of_an_earlier_version_loads_and_is_saved_in_the_new_layout(
    shipped, pixels, diffusers, same_files, tmp_path
):
    import shutil

    old = shutil.copytree(shipped, tmp_path / "old")
    (old / "manifest.json").unlink()
    opened = open_exported(shipped)
    for name in (CONFIG, WEIGHTS):
        (old / "unet" / name).unlink()
    save_packed(opened.packed, old / "unet", meta=opened.meta)
    config = json.loads((shipped / "unet" / CONFIG).read_text())
    del config["quantization_config"]
    (old / "unet" / CONFIG).write_text(json.dumps(config))
    assert (old / "unet" / DOCUMENT).exists()
    pipe = load_pipeline(old)
    assert torch.equal(pixels(pipe), pixels(load_pipeline(shipped)))
    pipe.save_pretrained(tmp_path / "new")
    same_files(tmp_path / "new" / "unet", shipped / "unet")


# ---- damage ----------------------------------------------------------------------------------


def one_line(folder, diffusers):
    """The message with which diffusers' own loading ends."""
    with pytest.raises(BrokenModel) as caught:
        diffusers.UNet2DModel.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def unet(shipped, tmp_path):
    import shutil

    return shutil.copytree(shipped / "unet", tmp_path / "unet")


def test_an_edited_description_is_refused(unet, edit, diffusers):
    def other_stride(config):
        layers = config["quantization_config"]["layers"]
        layer = next(v for v in layers.values() if v["form"] == "packed")
        layer["meta"]["act_bits"] = 7

    edit(unet / CONFIG, other_stride)
    assert "is damaged or was edited" in one_line(unet, diffusers)


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry["meta"].update(bits="w1a1"),
        lambda entry: entry["meta"].update(author="somebody"),
        lambda entry: entry["bytes"].update(codes=1),
        lambda entry: entry.pop("meta"),
        lambda entry: (entry["meta"].update(bits="w1a1"), entry.update(version=2)),
    ],
)
def test_edited_facts_are_refused(change, unet, edit, diffusers):
    edit(unet / CONFIG, lambda config: change(config["quantization_config"]))
    assert "is damaged or was edited" in one_line(unet, diffusers)


def test_a_folder_whose_hash_did_not_cover_the_facts_loads(shipped, unet, edit, diffusers):
    """Version 2: the hash covers the description and the tensors."""
    from safetensors.torch import load_file

    digests = {name: tensor_sha256(t) for name, t in load_file(unet / WEIGHTS).items()}

    def older(config):
        entry = config["quantization_config"]
        entry["version"] = 2
        described = {name: entry[name] for name in DESCRIBED}
        content = json.dumps([described, sorted(digests.items())], sort_keys=True)
        entry["sha256"] = hashlib.sha256(content.encode()).hexdigest()

    edit(unet / CONFIG, older)
    x, t = torch.randn(1, 3, 16, 16), torch.tensor(3)
    old, new = (diffusers.UNet2DModel.from_pretrained(f) for f in (unet, shipped / "unet"))
    with torch.no_grad():
        assert torch.equal(old(x, t).sample, new(x, t).sample)


def test_a_changed_weight_is_refused(unet, diffusers):
    data = bytearray((unet / WEIGHTS).read_bytes())
    data[-5] ^= 1
    (unet / WEIGHTS).write_bytes(data)
    assert "is damaged or was edited" in one_line(unet, diffusers)


def test_a_future_version_is_refused(unet, edit, diffusers):
    edit(unet / CONFIG, lambda config: config["quantization_config"].update(version=99))
    assert "has version 99, this quantarena reads up to" in one_line(unet, diffusers)


@pytest.mark.parametrize("entry", [{}, {"layers": {}}, {"sha256": 3}, {"meta": {}}])
def test_a_description_that_is_none_is_refused(entry, unet, edit, diffusers):
    def replace(config):
        config["quantization_config"] = {"quant_method": "quantarena", **entry}

    edit(unet / CONFIG, replace)
    line = one_line(unet, diffusers)
    assert "describes no packed network" in line or "does not say its version" in line


def test_a_tensor_that_nobody_lists_is_refused(unet, edit, diffusers):
    def hide(config):
        owners = config["quantization_config"]["tensors"]
        owner = next(name for name, leaves in owners.items() if "codes" in leaves.split())
        del owners[owner]

    edit(unet / CONFIG, hide)
    assert "is missing" in one_line(unet, diffusers) or "no codes" in one_line(unet, diffusers)


def test_weights_for_another_network_are_refused(unet, edit, diffusers):
    edit(unet / CONFIG, lambda config: config.update(block_out_channels=[8, 24]))
    with pytest.raises((BrokenModel, ValueError), match=r"shape|does not fit"):
        diffusers.UNet2DModel.from_pretrained(unet)


@pytest.mark.parametrize("given", [{"device_map": "cuda"}, {"torch_dtype": torch.float64}])
def test_what_packed_layers_cannot_do_is_refused(given, shipped, diffusers):
    with pytest.raises(UserError, match=r"leave device_map out|computes in float32, bfloat16"):
        diffusers.UNet2DModel.from_pretrained(shipped / "unet", **given)
