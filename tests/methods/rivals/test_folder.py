"""The rival ``folder``: exports of ours and folders of diffusers stand in for the network."""

import json

import pytest
import torch

from quantarena.methods.core.bits import parse_bits
from quantarena.methods.core.errors import BrokenModel, Unsupported, UserError
from quantarena.methods.core.packed.checkpoint import save_packed
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.info import Effort
from quantarena.methods.registry import entry
from quantarena.methods.rivals.folder import Folder
from quantarena.methods.testing.networks import probes


@pytest.fixture(scope="module")
def probe():
    return next(probe for probe in probes() if probe.name == "pixel-unet")


def context(probe, bits):
    return probe.context(parse_bits(bits), "paper", Effort(16, 0))


def rival(folder):
    return Folder(Folder.Options(path=str(folder)))


@pytest.fixture(scope="module")
def packed(probe, tmp_path_factory):
    """A packed network, and the pipeline folder that it was saved in."""
    network = pack(entry("rtn").method().run(context(probe, "w4a8")))
    folder = tmp_path_factory.mktemp("folders") / "w4a8"
    save_packed(network, folder / "unet", meta={})
    return network, folder


def outputs(probe, module):
    points = probe.trajectory.pick(torch.zeros(3, dtype=torch.long), torch.arange(3))
    with torch.no_grad():
        return points.call(module)


def test_an_export_draws_what_it_drew_and_its_widths_are_observed(probe, packed, tmp_path):
    network, folder = packed
    made = rival(folder).run(context(probe, "w4a8"), tmp_path, build=True)
    assert torch.equal(outputs(probe, made.module), outputs(probe, network.module))
    assert made.widths == network.widths()
    assert made.packed_bytes == network.bytes()
    assert not torch.equal(outputs(probe, probe.model), outputs(probe, made.module))


def test_widths_that_it_does_not_have_are_refused(probe, packed, tmp_path):
    with pytest.raises(Unsupported, match=r"holds w4a8 layers, not w8a8: ask for --bits w4a8"):
        rival(packed[1]).run(context(probe, "w8a8"), tmp_path, build=True)


def test_a_folder_of_diffusers_is_full_precision_where_nothing_is_quantized(probe, tmp_path):
    folder = tmp_path / "plain"
    probe.model.save_pretrained(folder / "unet")
    made = rival(folder).run(context(probe, "fp"), tmp_path, build=True)
    assert torch.equal(outputs(probe, made.module), outputs(probe, probe.model))
    assert made.widths == {}
    with pytest.raises(Unsupported, match="ask for --bits fp"):
        rival(folder).run(context(probe, "w4a8"), tmp_path, build=True)


def test_the_content_is_that_of_all_files(packed, tmp_path):
    _, folder = packed
    before = rival(folder).content()
    assert before == rival(folder).content()
    copy = tmp_path / "copy"
    for file in (f for f in folder.rglob("*") if f.is_file()):
        target = copy / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    assert rival(copy).content() == before
    (copy / "README.md").write_text("changed")
    assert rival(copy).content() != before


@pytest.mark.parametrize("path", ["", "relative", "/no/such/folder"])
def test_a_path_that_is_none_is_refused_before_anything_runs(path):
    with pytest.raises(UserError, match=r"--option folder\.path must be the absolute path"):
        Folder(Folder.Options(path=path)).check(parse_bits("w4a8"), "paper")


def test_another_network_is_refused(probe, tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"_class_name": "Other"}))
    with pytest.raises(BrokenModel, match="holds no UNet2DModel"):
        rival(tmp_path).run(context(probe, "w4a8"), tmp_path, build=True)
