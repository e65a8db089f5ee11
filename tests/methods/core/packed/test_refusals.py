"""Tools of diffusers that read float weights are refused, however they are reached."""

import copy

import pytest
import torch
from diffusers.models.attention_processor import Attention

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.errors import QuantArenaError
from quantarena.methods.core.model.model import wrap
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.packed.checkpoint import load_packed, save_packed
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.core.record.steps import UniformStride
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.techniques.ranges.minmax import minmax_range

ROADS = {
    "packed": lambda packed, original, folder: packed.module,
    "copied": lambda packed, original, folder: copy.deepcopy(packed.module),
    "loaded": lambda packed, original, folder: loaded(packed, original, folder),
}


def loaded(packed, original, folder):
    save_packed(packed, folder, meta={})
    return load_packed(folder, copy.deepcopy(original)).module


@pytest.fixture(scope="module")
def packed(conditional):
    model = wrap(
        conditional.model, conditional.graph, UNIFORM.assign(conditional.graph, Bits(8, 8))
    )
    model.set_weight_ranges(minmax_range)
    calibrate_activations(model, UniformStride(16).draw(conditional.trajectory, 0), minmax_range)
    model.freeze()
    return pack(model)


@pytest.fixture(params=ROADS)
def network(request, packed, conditional, tmp_path):
    return ROADS[request.param](packed, conditional.model, tmp_path / "packed")


def test_projections_are_not_fused(network, conditional):
    points = conditional.heldout.rows(slice(0, 2))
    with torch.no_grad():
        before = points.call(network)
    owners = [network, *(m for m in network.modules() if isinstance(m, Attention))]
    assert len(owners) > 1
    for owner in owners:
        fuse = owner.fuse_qkv_projections if owner is network else owner.fuse_projections
        with pytest.raises(QuantArenaError, match="projections cannot be fused: their integers"):
            fuse()
    network.unfuse_qkv_projections()
    with torch.no_grad():
        assert torch.equal(points.call(network), before)


def test_diffusers_writes_no_packed_network(network, tmp_path):
    with pytest.raises(QuantArenaError, match="cannot be saved by diffusers: copy the folder"):
        network.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_the_network_that_was_quantized_keeps_its_tools(packed, conditional, tmp_path):
    conditional.model.save_pretrained(tmp_path / "float")
    assert (tmp_path / "float" / "diffusion_pytorch_model.safetensors").exists()
    copy.deepcopy(conditional.model).fuse_qkv_projections()
