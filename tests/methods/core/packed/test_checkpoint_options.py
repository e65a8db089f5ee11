"""Whole networks with options: packed, written, and loaded where nothing was calibrated."""

import copy
import json

import pytest
import torch
from torch import nn

from quantarena.methods.core.bits import AttentionBits, Bits
from quantarena.methods.core.errors import BrokenModel, Unsupported, UserError
from quantarena.methods.core.model.model import wrap
from quantarena.methods.core.model.options.low_rank import LowRankBranch
from quantarena.methods.core.model.time_table import ScheduledTable
from quantarena.methods.core.packed import checkpoint, files
from quantarena.methods.core.packed.checkpoint import load_packed, save_packed
from quantarena.methods.core.packed.nodes.rebuild import leaf_nodes
from quantarena.methods.core.packed.nodes.weight_only import WeightOnlyLayer
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.core.packed.parity import PARITY_LIMIT, parity
from quantarena.methods.core.record.steps import AllCalls
from quantarena.methods.core.trace.network import trace
from quantarena.methods.techniques.calibrate.attention import calibrate_attention
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.techniques.calibrate.plan import CalibrationPlan
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.testing import networks as networks

BUILD = {
    "pixel-unet": networks.pixel_unet,
    "conditional-unet": networks.conditional_unet,
    "transformer": networks.transformer,
}


def plain_layers(model):
    return [layer for layer in model.layers.values() if layer.groups == 1]


def multipliers(model):
    for layer in plain_layers(model):
        layer.scale_input(torch.rand(layer.in_channels) + 0.5)


def bit_maps(model):
    for layer in plain_layers(model):
        for part in layer.parts:
            rows = torch.arange(layer.weight.shape[0])
            part.weight_quantizer.set_bit_map(torch.tensor([2, 4, 8])[rows % 3])


def weight_groups(model):
    for layer in plain_layers(model):
        for part in layer.parts:
            if (part.stop - part.start) % 4 == 0:
                part.use_weight_groups(4)


def low_rank(model):
    for layer in plain_layers(model):
        weight = layer.weight
        layer.set_low_rank(0.1 * torch.randn(2, *weight.shape[1:]), torch.randn(len(weight), 2))


def dynamic(model):
    for index, layer in enumerate(model.layers.values()):
        for part in layer.parts:
            group = 4 if not layer.is_conv and (part.stop - part.start) % 4 == 0 else 0
            part.use_dynamic(symmetric=index % 2 == 0, group_size=group)


def rotations(model):
    for layer in plain_layers(model):
        if not layer.is_conv:
            layer.rotate_input(torch.randint(0, 2, (layer.in_channels,)) * 2.0 - 1.0)


def table(model):
    values = torch.randn(networks.CALLS, model.original.time_embedding.linear_2.out_features)
    model.tabulate("time_embedding", ScheduledTable(values))


def affine(model):
    for layer in plain_layers(model):
        shape = (networks.CALLS, layer.weight.shape[0])
        layer.set_call_affine(torch.rand(shape) + 0.5, torch.randn(shape))


CASES = {
    "bank": ([], True),
    "multipliers, bank": ([multipliers], True),
    "bit maps, bank": ([bit_maps], True),
    "rotations, bank": ([multipliers, rotations, affine], True),
    "rotations, dynamic, weight groups": ([multipliers, rotations, weight_groups, dynamic], False),
    "weight groups": ([multipliers, weight_groups], False),
    "affine maps by call, bank": ([affine], True),
    "affine maps by call, low rank": ([low_rank, affine], False),
    "low rank, dynamic, weight groups": ([multipliers, low_rank, weight_groups, dynamic], False),
}


W4A8 = Bits(4, 8)


def quantized(probe, options=(), *, bits=W4A8, per_call=False, attention=None):
    torch.manual_seed(0)
    widths = dict.fromkeys(probe.graph.attention, attention) if attention else None
    assignment = dict.fromkeys(probe.graph.layers, bits)
    model = wrap(probe.model, probe.graph, assignment, splits=True, attention=widths)
    for option in options:
        option(model)
    model.set_weight_ranges(minmax_range)
    points = AllCalls().draw(probe.trajectory, 0)
    if bits.act < 16:
        calibrate_activations(model, points, minmax_range, CalibrationPlan(per_call=per_call))
    calibrate_attention(
        model, points, minmax_range, CalibrationPlan(per_call=per_call, per_head=True)
    )
    model.freeze()
    return model


def skeleton(name):
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return BUILD[name]()


@torch.no_grad()
def run(packed, points):
    with packed.clock.at(points.step):
        return points.call(packed.module)


def round_trip(probe, packed, folder):
    """Loaded elsewhere it gives the same outputs, and writes the same file again."""
    save_packed(packed, folder / "one", meta={})
    loaded = load_packed(folder / "one", skeleton(probe.name))
    assert torch.equal(run(loaded, probe.heldout), run(packed, probe.heldout))
    assert loaded.clock.schedule == packed.clock.schedule
    assert loaded.widths() == packed.widths()
    assert loaded.mean_widths() == packed.mean_widths()
    assert loaded.backend == packed.backend
    assert loaded.bytes() == packed.bytes()
    save_packed(loaded, folder / "two", meta={})
    one, two = ((folder / n / checkpoint.TENSORS).read_bytes() for n in ("one", "two"))
    assert one == two
    return loaded


@pytest.mark.parametrize("name", CASES)
def test_options_pack_and_come_back(probe, name, tmp_path):
    options, per_call = CASES[name]
    model = quantized(probe, options, per_call=per_call)
    packed = pack(model)
    report = parity(model, packed, probe.heldout)
    assert report.max_rel <= PARITY_LIMIT
    assert report.layers == len(model.layers)
    loaded = round_trip(probe, packed, tmp_path)
    if per_call:
        assert len(loaded.clock.schedule.timesteps) == networks.CALLS
        with pytest.raises(UserError, match="nobody said"):
            probe.heldout.call(loaded.module)


@pytest.mark.parametrize("bits", [Bits(w, a) for w in (1, 2, 3, 5, 6, 8) for a in (4, 8)], ids=str)
def test_every_width_comes_back(pixel, bits, tmp_path):
    model = quantized(pixel, [multipliers, weight_groups], bits=bits, per_call=True)
    round_trip(pixel, pack(model), tmp_path)


def test_weight_only_networks(probe, tmp_path):
    model = quantized(probe, [multipliers, low_rank], bits=Bits(4, 16))
    packed = pack(model)
    assert packed.backend == "weight-only"
    assert set(packed.widths().values()) == {Bits(4, 16)}
    assert parity(model, packed, probe.heldout).max_rel <= PARITY_LIMIT
    round_trip(probe, packed, tmp_path)
    assert packed.bytes() < 0.75 * sum(4 * p.numel() for p in probe.model.parameters())


def test_attention_products_come_back(probe, tmp_path):
    model = quantized(probe, per_call=True, attention=AttentionBits(8, 8, 8, 8))
    packed = pack(model)
    assert packed.attention.keys() == model.attention.keys() != set()
    assert not {id(q) for q in packed.attention.values()} & {
        id(q) for q in model.attention.values()
    }
    with torch.no_grad():
        fake = model.run(probe.heldout)
    # Seen: 1.4e-4 on a Xeon with AVX-512, below 1e-4 on two Zens; why was not looked for.
    assert (run(packed, probe.heldout) - fake).square().mean() <= 1e-3 * fake.square().mean()
    loaded = round_trip(probe, packed, tmp_path)
    assert loaded.attention.keys() == packed.attention.keys()


def test_tables_come_back(pixel, tmp_path):
    model = quantized(pixel, [table], per_call=True)
    packed = pack(model)
    assert parity(model, packed, pixel.heldout).max_rel <= PARITY_LIMIT
    loaded = round_trip(pixel, packed, tmp_path)
    assert isinstance(loaded.module.time_embedding, ScheduledTable)
    assert loaded.module.time_embedding.clock is loaded.clock
    assert not [n for n in loaded.module.state_dict() if n.startswith("time_embedding.linear")]


def test_packed_layers_share_the_clock_of_the_model(pixel):
    model = quantized(pixel, [table, bit_maps], per_call=True)
    packed = pack(model)
    assert packed.clock is model.clock
    clocks = {m.clock for m in packed.module.modules() if hasattr(m, "clock")}
    assert clocks == {model.clock}
    other = copy.deepcopy(packed.module)
    (copied,) = {m.clock for m in other.modules() if hasattr(m, "clock")}
    assert copied is not model.clock
    with torch.no_grad(), copied.at(pixel.heldout.step):
        assert torch.equal(pixel.heldout.call(other), run(packed, pixel.heldout))


def test_sampler_calls_matter(pixel):
    packed = pack(quantized(pixel, per_call=True))
    points = pixel.heldout.rows(slice(0, 2))
    outputs = []
    for step in range(2):
        with torch.no_grad(), packed.clock.at(step):
            outputs.append(points.call(packed.module))
    assert not torch.equal(*outputs)


def test_a_bias_that_a_fold_gave_comes_back(tmp_path):
    def network():
        return nn.Sequential(nn.LayerNorm(8, bias=False), nn.Linear(8, 8))

    original = network()
    graph = trace(original, torch.randn(4, 8))
    model = wrap(original, graph, {"1": Bits(4, 8)})
    model.module[0].bias = nn.Parameter(torch.randn(8))
    model.set_weight_ranges(minmax_range)
    model.layers["1"].only_part.act_quantizer.set_params(minmax_range(torch.randn(9), 8))
    model.freeze()
    packed = pack(model)
    save_packed(packed, tmp_path, meta={})
    loaded = load_packed(tmp_path, network())
    x = torch.randn(4, 8)
    assert torch.equal(loaded.module(x), packed.module(x))
    assert torch.equal(loaded.module[0].bias, model.module[0].bias)


def test_observed_widths_of_bit_maps(pixel):
    packed = pack(quantized(pixel, [bit_maps]))
    assert set(packed.widths().values()) == {Bits(8, 8)}
    for name, mean in packed.mean_widths().items():
        rows = pixel.model.get_submodule(name).weight.shape[0]
        want = torch.tensor([2.0, 4.0, 8.0])[torch.arange(rows) % 3].mean()
        assert mean == pytest.approx(float(want))
    narrow = pack(quantized(pixel, bits=Bits(4, 8)))
    assert set(narrow.mean_widths().values()) == {4.0}


def test_bytes_count_float_branches(pixel):
    model = quantized(pixel, [low_rank])
    branch = sum(
        4 * t.numel() for x in plain_layers(model) for t in x.option(LowRankBranch).state().values()
    )
    rest = [
        packed.bytes() - sum(leaf.packed_bytes for leaf in leaf_nodes(packed.module))
        for packed in (pack(quantized(pixel)), pack(model))
    ]
    assert rest[1] == rest[0] + branch


def test_a_refusal_names_the_layer(pixel):
    model = quantized(pixel)
    part = model.layers["conv_in"].only_part
    part.act_quantizer.set_groups(2, torch.zeros(16).long(), torch.ones(1), torch.zeros(1))
    with pytest.raises(Unsupported, match=r"^conv_in: groups of pixels along axis 2"):
        pack(model)


def test_weight_only_leaves_are_found(pixel):
    packed = pack(quantized(pixel, bits=Bits(4, 16)))
    assert all(isinstance(leaf, WeightOnlyLayer) for leaf in leaf_nodes(packed.module))


# ---- damage ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(pixel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("options")
    model = quantized(
        pixel, [table, bit_maps, low_rank], per_call=True, attention=AttentionBits(8, 8, 8, 8)
    )
    save_packed(pack(model), folder, meta={})
    return folder


def damaged(written, folder, *, tensors=None, document=None, honest=True):
    """A copy with other tensors or another description, its hashes made to fit where asked."""
    from safetensors.torch import load_file, save_file

    values = load_file(written / checkpoint.TENSORS)
    found = json.loads((written / checkpoint.DOCUMENT).read_text())
    if tensors:
        tensors(values)
    old = files.description_sha256(found)
    if document:
        document(found)
    digest = files.description_sha256(found) if honest else old
    folder.mkdir(exist_ok=True)
    file = folder / checkpoint.TENSORS
    save_file(values, file, {files.DIGEST: digest})
    found["sha256"] = files.file_sha256(file)
    found["bytes"]["file"] = file.stat().st_size
    (folder / checkpoint.DOCUMENT).write_text(json.dumps(found))
    with pytest.raises(BrokenModel) as caught:
        load_packed(folder, skeleton("pixel-unet"))
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("conv_in.inner.parts.1.codes", "conv_in has no codes"),
        ("conv_in.inner.parts.0.weight_scale", "conv_in checkpoint lacks weight_scale"),
        ("conv_in.inner.back", "conv_in 'back' is missing"),
        ("conv_in.down", "conv_in 'down' is missing"),
        ("conv_in.inner.parts.2.bias", "conv_in has not the bias"),
        ("time_embedding.values", "table time_embedding has no values"),
        ("mid_block.attentions.0.quantized_products/key/scale", "'scale' is missing"),
    ],
)
def test_a_missing_tensor_has_its_line(written, tmp_path, lost, message):
    assert message in damaged(written, tmp_path, tensors=lambda t: t.pop(lost))


def test_a_permutation_that_is_none(written, tmp_path):
    def twice(tensors):
        tensors["conv_in.inner.back"][0] = tensors["conv_in.inner.back"][1]

    assert "does not hold all" in damaged(written, tmp_path, tensors=twice)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["layers"]["conv_in"].update(form="magic"), "the form 'magic', known are"),
        (lambda d: d["layers"]["conv_in"]["inner"]["parts"].pop(), "does not hold all 6"),
        (
            lambda d: d["layers"].update(conv_in=d["layers"]["conv_in"]["inner"]),
            "conv_in has no codes",
        ),
        (lambda d: d["layers"]["conv_in"].pop("geometry"), "'geometry' is missing"),
        (lambda d: d.update(schedule={"sampler": ""}), "'timesteps' is missing"),
        (lambda d: d.update(tables=["nowhere"]), "a module nowhere, the network has none"),
        (lambda d: d.pop("attention"), "'attention' is missing"),
    ],
)
def test_a_wrong_description_has_its_line(written, tmp_path, change, message):
    assert message in damaged(written, tmp_path, document=change)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["schedule"]["timesteps"].pop(),
        lambda d: d.update(tables=[]),
        lambda d: d.update(attention={}),
        lambda d: d["layers"]["conv_in"]["inner"]["parts"][0]["meta"].update(act_bits=4),
    ],
)
def test_an_edited_description_is_found(written, tmp_path, change):
    assert "was edited" in damaged(written, tmp_path, document=change, honest=False)
