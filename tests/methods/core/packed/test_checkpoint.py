import hashlib
import json
import shutil

import pytest
import torch
from torch import nn

from quantarena.methods.core.bits import FP, Bits
from quantarena.methods.core.errors import BrokenModel, QuantArenaError
from quantarena.methods.core.kernels.formats import IntegerLayer
from quantarena.methods.core.packed import checkpoint, files
from quantarena.methods.core.packed.checkpoint import load_packed, save_packed
from quantarena.methods.core.packed.files import DESCRIBED
from quantarena.methods.core.packed.nodes.channel_sum import SplitPackedLayer
from quantarena.methods.core.packed.nodes.k_groups import GroupedLayer
from quantarena.methods.core.packed.nodes.leaf import PackedLayer
from quantarena.methods.core.packed.nodes.rebuild import leaf_nodes
from quantarena.methods.core.packed.pack import PackedModel
from quantarena.methods.testing import networks as networks

BUILD = {
    "pixel-unet": networks.pixel_unet,
    "conditional-unet": networks.conditional_unet,
    "transformer": networks.transformer,
}


def skeleton(name):
    """The network without any weights."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return BUILD[name]()


def same(one, other, points):
    with torch.no_grad():
        return torch.equal(points.call(one.module), points.call(other.module))


@pytest.fixture(scope="module")
def pixel_packed(pixel, packed_of):
    return packed_of(pixel, Bits(4, 8))


@pytest.fixture(scope="module")
def written(pixel_packed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "unet"
    save_packed(pixel_packed, folder, meta={"method": "none"})
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "unet")


@pytest.mark.parametrize("bits", [Bits(4, 8), Bits(3, 6), Bits(1, 4)])
def test_outputs_are_the_same_bit_for_bit(probe, bits, tmp_path, packed_of):
    packed = packed_of(probe, bits)
    document = save_packed(packed, tmp_path, meta={"method": "none", "seed": 3})
    loaded = load_packed(tmp_path, skeleton(probe.name))
    assert same(packed, loaded, probe.heldout)
    assert loaded.backend == packed.backend
    assert loaded.widths() == packed.widths()
    assert loaded.bytes() == packed.bytes()
    assert document["meta"] == {"method": "none", "seed": 3}


def test_a_skeleton_with_weights_serves_as_well(pixel, pixel_packed, folder):
    assert same(pixel_packed, load_packed(folder, networks.pixel_unet()), pixel.heldout)


def test_split_layers_come_back_split(pixel_packed, folder):
    loaded = load_packed(folder, skeleton("pixel-unet"))

    def edges(layers):
        return {n: x.edges for n, x in layers.items() if isinstance(x, SplitPackedLayer)}

    assert edges(pixel_packed.layers)
    assert edges(pixel_packed.layers) == edges(loaded.layers)


def test_symmetric_weights_store_no_zero_points(pixel, tmp_path, packed_of):
    packed = packed_of(pixel, Bits(8, 8), symmetric=True)
    save_packed(packed, tmp_path, meta={})
    _, tensors = files.read(tmp_path)
    assert not [name for name in tensors if name.endswith("weight_zero")]
    assert same(packed, load_packed(tmp_path, skeleton("pixel-unet")), pixel.heldout)


def test_saving_what_was_loaded_gives_the_same_file(folder, tmp_path):
    loaded = load_packed(folder, skeleton("pixel-unet"))
    save_packed(loaded, tmp_path / "again", meta={"method": "none"})
    again = tmp_path / "again" / checkpoint.TENSORS
    assert again.read_bytes() == (folder / checkpoint.TENSORS).read_bytes()


@pytest.mark.parametrize("bits", [1, 3, 4, 8])
def test_the_file_is_what_the_bits_promise(bits, tmp_path):
    rows, columns = 256, 512
    layer = IntegerLayer(
        kind="linear",
        weight_codes=torch.zeros(rows, columns, dtype=torch.int8),
        weight_bits=bits,
        weight_scale=torch.ones(rows),
        weight_zero=torch.zeros(rows, dtype=torch.int32),
        act_bits=8,
        act_scale=torch.ones(5),  # a bank of five steps
        act_zero=torch.arange(5),
        in_mult=torch.ones(columns),
        bias=torch.zeros(rows),
    )
    network = nn.Sequential(PackedLayer(layer), nn.LayerNorm(rows))
    document = save_packed(PackedModel(network, {"0": network[0]}, "packed"), tmp_path, meta={})
    promised = rows * columns * bits / 8 + 4 * (2 * rows + columns + 5) + 5 + 4 * 2 * rows
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 1.1 * promised
    sizes = document["bytes"]
    assert sizes["codes"] == rows * columns * bits // 8
    assert sizes["codes"] + sizes["scales"] + sizes["floating"] == promised
    plain = nn.Sequential(nn.Linear(columns, rows), nn.LayerNorm(rows))
    loaded = load_packed(tmp_path, plain)
    x = torch.randn(3, columns)
    for step in range(5):
        network[0].set_step(step)
        with loaded.clock.at(step):
            assert torch.equal(network(x), loaded.module(x))


def test_nothing_quantized_is_refused(pixel, tmp_path, packed_of):
    packed = packed_of(pixel, FP)
    with pytest.raises(QuantArenaError, match="nothing is quantized"):
        save_packed(packed, tmp_path, meta={})


def test_an_unknown_kind_of_layer_is_refused(tmp_path):
    network = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(QuantArenaError, match="0 is a Linear"):
        save_packed(PackedModel(network, {"0": network[0]}, "fake"), tmp_path, meta={})


def broken(folder, network=None):
    with pytest.raises(BrokenModel) as caught:
        load_packed(folder, network or skeleton("pixel-unet"))
    assert "\n" not in caught.value.message
    return caught.value.message


def edit(folder, change):
    file = folder / checkpoint.DOCUMENT
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def rewrite(folder, change):
    """Other tensors under a correct hash: what a wrong tool would write."""
    from safetensors.torch import load_file, save_file

    file = folder / checkpoint.TENSORS
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    edit(folder, lambda d: (d.update(sha256=digest), d["bytes"].update(file=file.stat().st_size)))


def test_a_truncated_file(folder):
    file = folder / checkpoint.TENSORS
    file.write_bytes(file.read_bytes()[:-100])
    assert "truncated" in broken(folder)


def test_an_edited_file(folder):
    file = folder / checkpoint.TENSORS
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert "sha256" in broken(folder)


def test_a_missing_file(folder):
    (folder / checkpoint.TENSORS).unlink()
    assert "packed.safetensors is missing" in broken(folder)
    (folder / checkpoint.DOCUMENT).unlink()
    assert "no packed checkpoint" in broken(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "quantarena-packed"}'])
def test_a_document_that_is_none(folder, text):
    (folder / checkpoint.DOCUMENT).write_text(text)
    assert "packed.json" in broken(folder)


def test_a_future_version(folder):
    edit(folder, lambda d: d.update(version=99))
    line = broken(folder)
    assert "version 99" in line
    assert "upgrade" in line


def test_an_edited_description(folder):
    edit(folder, lambda d: d["layers"]["conv_in"]["meta"].update(act_bits=4))
    assert "edited" in broken(folder)


@pytest.mark.parametrize(
    "change", [lambda d: d["meta"].update(method="other"), lambda d: d["bytes"].update(codes=1)]
)
def test_edited_facts(folder, change):
    edit(folder, change)
    assert "was edited" in broken(folder)


def test_version_2_did_not_cover_the_facts_and_loads(folder, pixel, pixel_packed):
    from safetensors.torch import load_file, save_file

    file = folder / checkpoint.TENSORS
    document = json.loads((folder / checkpoint.DOCUMENT).read_text())
    described = {name: document[name] for name in DESCRIBED}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    save_file(load_file(file), file, {"layers_sha256": digest})
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    edit(folder, lambda d: d.update(version=2, sha256=sha256, meta={"method": "other"}))
    edit(folder, lambda d: d["bytes"].update(file=file.stat().st_size))
    assert same(pixel_packed, load_packed(folder, skeleton("pixel-unet")), pixel.heldout)


def test_a_layer_without_codes(folder):
    rewrite(folder, lambda tensors: tensors.pop("conv_in.codes"))
    assert "conv_in has no codes" in broken(folder)


def test_a_layer_that_is_not_described(folder):
    rewrite(folder, lambda tensors: None)  # an own file carries no digest of the layers
    edit(folder, lambda d: d["layers"].pop("conv_in"))
    assert "conv_in" in broken(folder)


def test_a_missing_floating_tensor(folder):
    rewrite(folder, lambda tensors: tensors.pop("conv_norm_out.weight"))
    assert "lacks conv_norm_out.weight" in broken(folder)


def test_another_network(folder):
    assert "the network has none" in broken(folder, skeleton("transformer"))
    assert "the network's is" in broken(folder, skeleton("conditional-unet"))


def version_1(packed, folder):
    """What version 1 wrote: layers or sums of layers, and no word of sampler calls or tables."""
    from safetensors.torch import save_file

    layers, tensors = {}, {}
    for name, layer in packed.layers.items():
        layer = layer.split() if isinstance(layer, GroupedLayer) else layer
        parts = leaf_nodes(layer)
        layers[name] = {"parts": [part.metadata for part in parts]}
        if isinstance(layer, SplitPackedLayer):
            layers[name]["splits"] = [list(edge) for edge in layer.edges]
    for name, value in packed.module.state_dict().items():
        leaf = name.rpartition(".")[2]
        if leaf == "weight_zero" and not value.any():
            continue
        kinds = {"act_zero": torch.uint8, "weight_zero": torch.int16}
        tensors[name] = value.to(kinds.get(leaf, value.dtype)).contiguous().clone()
    folder.mkdir()
    digest = hashlib.sha256(json.dumps(layers, sort_keys=True).encode()).hexdigest()
    file = folder / "packed.safetensors"
    save_file(tensors, file, {"layers_sha256": digest})
    document = {
        "format": "quantarena-packed",
        "version": 1,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "bytes": {"file": file.stat().st_size},
        "meta": {"method": "none"},
        "layers": layers,
    }
    (folder / "packed.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize("symmetric", [False, True])
def test_version_1_loads(pixel, tmp_path, symmetric, packed_of):
    packed = packed_of(pixel, Bits(4, 8), symmetric=symmetric)
    folder = version_1(packed, tmp_path / "old")
    loaded = load_packed(folder, skeleton("pixel-unet"))
    assert same(packed, loaded, pixel.heldout)
    assert loaded.widths() == packed.widths()
    save_packed(packed, tmp_path / "direct", meta={})
    save_packed(loaded, tmp_path / "migrated", meta={})
    direct, migrated = (tmp_path / n / checkpoint.TENSORS for n in ("direct", "migrated"))
    assert direct.read_bytes() == migrated.read_bytes()


def test_an_edited_version_1_is_found(pixel_packed, tmp_path):
    folder = version_1(pixel_packed, tmp_path / "old")
    edit(folder, lambda d: d["layers"]["conv_in"]["parts"][0].update(act_bits=4))
    assert "edited" in broken(folder)
    rewrite(folder, lambda tensors: None)
    edit(folder, lambda d: d["layers"].update(conv_in={"pieces": []}))
    assert "no checkpoint of version 1: 'parts' is missing" in broken(folder)


def test_versions_without_a_migration_are_too_old(folder):
    rewrite(folder, lambda tensors: None)
    edit(folder, lambda d: d.update(version=0))
    assert "too old" in broken(folder)
