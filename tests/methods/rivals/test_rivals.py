"""Each rival on tiny networks, where its library is installed, and what it says where it is not."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch
from torch import nn

from quantarena.methods import rival as contract
from quantarena.methods.builtin import builtins
from quantarena.methods.core.bits import parse_bits
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.packed.number_format import InFormat
from quantarena.methods.info import Effort
from quantarena.methods.registry import entry
from quantarena.methods.rivals import held, torch_dynamic
from quantarena.methods.rivals.stand_in import StandIn
from quantarena.methods.testing.networks import probes

RIVALS = [found for found in builtins().values() if found.rival]
CASES = [(found.name, bits) for found in RIVALS for bits in found.board_bits]
CLOSE = {"fp": 0.1, "w8a16": 0.05, "w8a8": 0.35, "w4a16": 0.5}
"""Largest error of one call relative to its size; tiny random networks are far from robust."""


@pytest.fixture(scope="module")
def networks():
    return {probe.name: probe for probe in probes()}


@pytest.mark.parametrize("kind", ["conditional-unet", "transformer"])
@pytest.mark.parametrize(("name", "bits"), CASES)
def test_a_rival_stands_in_for_the_network(networks, name, bits, kind, tmp_path):
    rival = entry(name).method()
    for library, found in rival.versions().items():
        if found is None:
            pytest.skip(f"{library} is not installed")
    ctx = networks[kind].context(parse_bits(bits), "paper", Effort(16, 0))
    try:
        made = rival.run(ctx, tmp_path, build=True)
    except Unsupported as error:
        pytest.skip(str(error))
    points = ctx.trajectory.pick(torch.zeros(3, dtype=torch.long), torch.arange(3))
    with torch.no_grad():
        wanted = points.call(ctx.model)
        found = points.call(made.module)
        again = points.rows(slice(0, 2)).call(made.module)
    assert found.dtype == torch.float32
    assert (found - wanted).norm() / wanted.norm() < CLOSE[bits]
    assert again.shape[0] == 2, "a last batch may be smaller"
    assert made.module.config is ctx.model.config, "pipelines read attributes of their denoiser"
    if bits == "fp":
        assert made.widths == {}
    else:
        assert {str(each) for each in made.widths.values()} == {bits}
        full = held.network_bytes(ctx.model)
        assert made.packed_bytes < full


@pytest.mark.parametrize("found", [f for f in RIVALS if f.board_bits], ids=lambda f: f.name)
def test_an_absent_library_is_named_with_the_command_that_installs_it(found, monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(contract, "version", absent)
    rival = entry(found.name).method()
    bits = parse_bits(found.board_bits[0])
    if not rival.needs:
        rival.check(bits, "paper")
        return
    with pytest.raises(Unsupported, match=r"not installed: pip install 'quantarena\[rivals\]'"):
        rival.check(bits, "paper")


def test_bitsandbytes_says_why_it_does_not_run():
    with pytest.raises(Unsupported, match="CUDA"):
        entry("bitsandbytes").method().check(parse_bits("w4a16"), "paper")


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_torch_names_its_saturation_where_it_has_it(networks, capability, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    ctx = networks["transformer"].context(parse_bits("w8a8"), "paper", Effort(16, 0))
    made = entry("torch_dynamic").method().run(ctx, tmp_path, build=True)
    assert (torch_dynamic.SATURATES in made.lines) == (capability == "AVX2")


def test_torchao_refuses_what_it_has_not():
    if version_of("torchao") is None:
        pytest.skip("torchao is not installed")
    with pytest.raises(Unsupported, match="no w4a8"):
        entry("torchao").method().check(parse_bits("w4a8"), "paper")


def version_of(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def test_listing_rivals_imports_no_library():
    heavy = "{'torchao', 'optimum', 'openvino', 'nncf'}"
    code = (
        "import sys\nfrom quantarena.methods import registry\n"
        "for name in registry.names(): registry.entry(name)\n"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Codes(torch.Tensor):
    """What libraries do: a subclass that stands for floats and holds int8 codes."""

    @staticmethod
    def __new__(cls, codes, scale):
        made = torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)
        made.codes, made.scale = codes, scale
        return made

    def __tensor_flatten__(self):
        return ["codes", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(function)


def test_bytes_and_bits_are_those_of_the_tensors_inside():
    layer = nn.Linear(8, 4)
    weight = Codes(torch.zeros(4, 8, dtype=torch.int8), torch.ones(4, 1))
    layer.weight = nn.Parameter(weight, requires_grad=False)
    assert held.network_bytes(layer) == 4 * 8 + 4 * 4 + 4 * 4
    assert held.code_bits(layer.weight) == 8
    assert held.code_bits(torch.ones(2, 2)) is None
    network = nn.ModuleDict({"a": layer, "b": nn.Linear(8, 4)})
    widths = held.observed_widths(network, ("a", "b"), held.float_act)
    assert {name: str(bits) for name, bits in widths.items()} == {"a": "w8a16"}
    assert held.untouched(("a", "b"), widths) == ("1 of 2 layers stay in floating point",)
    assert held.untouched(("a",), widths) == ()


class Doubling(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.config = {"in_channels": 3}

    def forward(self, hidden, timestep, labels=None, return_dict=True):
        self.seen = (hidden.dtype, timestep, labels)
        return (hidden * 2 * self.weight,)


def test_a_stand_in_takes_a_denoisers_arguments():
    original, other = Doubling(), Doubling()
    module = StandIn(original, other)
    x = torch.ones(2)
    for output in (module(x, 3, labels="l"), module(hidden=x, timestep=3, labels="l")):
        assert torch.equal(output.sample, 2 * x)
        assert output[0] is output.sample
        assert other.seen == (torch.float32, 3, "l")
    assert module.config == original.config
    assert len(list(module.parameters())) == 1, "the original's are not its own"
    with pytest.raises(AttributeError, match="nothing"):
        _ = module.nothing


def test_bfloat16_keeps_timesteps():
    module = InFormat(Doubling())
    times = torch.tensor([999.0])
    (output,) = module(torch.ones(2), timestep=times, labels=torch.ones(1))
    dtype, seen, labels = module.network.seen
    assert (dtype, labels.dtype, output.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert seen is times
