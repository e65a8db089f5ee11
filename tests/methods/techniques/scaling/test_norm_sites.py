"""Where norms are read, by which rows they are modulated, and folds that keep the function."""

import pytest
import torch
from torch import nn

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.model.model import wrap
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.trace.network import trace
from quantarena.methods.techniques.scaling.norm_fold_sites import check_folds, fold_site
from quantarena.methods.techniques.scaling.norm_sites import norm_sites

WIDTH = 6


class Modulated(nn.Module):
    """Tokens through one norm with shift and gain from a linear, to two layers.

    Args:
        twist: what is done between norm and readers, or with the rows, that is no plain fold.
    """

    def __init__(self, twist=""):
        super().__init__()
        self.twist = twist
        self.first, self.norm = nn.Linear(4, WIDTH), nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.maker = nn.Linear(1, 3 * WIDTH)
        self.one, self.two, self.last = nn.Linear(WIDTH, 5), nn.Linear(WIDTH, 5), nn.Linear(5, 4)
        self.table = nn.Parameter(torch.randn(WIDTH))
        self.again = nn.LayerNorm(WIDTH, elementwise_affine=False)

    def forward(self, sample, timestep=None, return_dict=True):
        x = self.first(sample.flatten(2).transpose(1, 2))
        gate, gain, shift = self.maker(timestep.reshape(-1, 1)).chunk(3, dim=1)
        if self.twist == "table":
            shift = shift + self.table
        y = self.norm(x) * (1 + gain[:, None]) + shift[:, None]
        if self.twist == "silu":
            y = torch.nn.functional.silu(y)
        if self.twist == "residual":
            y = y + x
        if self.twist == "flip":
            y = y.flip(-1)
        z = self.one(y) * self.two(y)
        if self.twist == "rows":
            z = z + gain.mean(-1)[:, None, None]
        if self.twist == "shared":
            z = z + self.one(self.again(x) * (1 + gain[:, None]) + shift[:, None])
        if self.twist == "reader":
            z = z + y.mean(-1, keepdim=True)
        return (self.last(z + gate.mean(-1)[:, None, None]).transpose(1, 2).reshape(sample.shape),)


def points(count=4):
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(count, 4, 3, 3, generator=generator)
    step = torch.arange(count) % 2
    return CalibrationSet(sample, step.float(), step)


def ready(network):
    """The network wrapped in full precision quantizers' places, and its sites."""
    network = network.eval().requires_grad_(False)
    start = points().rows(slice(0, 2))
    graph = trace(network, start.sample, timestep=start.timestep)
    model = wrap(network, graph, dict.fromkeys(graph.layers, Bits(4, 4)))
    return model, norm_sites(network, graph.layers.keys(), points())


def test_rows_of_a_modulation_are_found_by_numbers():
    (site,) = ready(Modulated())[1]
    assert (site.norm, site.readers, site.modulation) == ("norm", ("one", "two"), "maker")
    assert (site.gain, site.shift) == ((WIDTH, 2 * WIDTH), (2 * WIDTH, 3 * WIDTH))


@pytest.mark.parametrize("twist", ["table", "silu", "residual", "flip", "shared", "reader"])
def test_what_the_readers_could_not_undo_is_no_site(twist):
    assert ready(Modulated(twist))[1] == ()


def test_a_reader_that_stays_in_floating_point_ends_the_site():
    network = Modulated().eval().requires_grad_(False)
    assert norm_sites(network, {"first", "one", "last", "maker"}, points()) == ()


def channelwise():
    scale = torch.logspace(-1, 0.5, WIDTH)
    return scale, torch.tensor([-3.0, 4.0, 8.0, 15.0, 20.0, 9.0])


def test_the_fold_keeps_the_function_and_moves_the_zero_point_into_the_codes():
    model, (site,) = ready(Modulated())
    original = {n: t.clone() for n, t in model.original.state_dict().items()}
    params = fold_site(model, site, *channelwise(), 4)
    assert check_folds(model, points()) <= 1e-6
    assert not torch.equal(model.layers["one"].weight, original["one.weight"])
    assert all(torch.equal(t, original[n]) for n, t in model.original.state_dict().items())
    assert torch.equal(params.scale, channelwise()[0].mean())
    assert params.zero_point == 9
    far = fold_site(model, site, channelwise()[0], channelwise()[1] + 100, 4)
    assert far.zero_point == 15
    assert check_folds(model, points()) <= 1e-4


def test_rows_that_are_used_elsewhere_are_noticed():
    model, (site,) = ready(Modulated("rows"))
    fold_site(model, site, *channelwise(), 4)
    with pytest.raises(Unsupported, match="used elsewhere"):
        check_folds(model, points())


@pytest.mark.parametrize(
    ("name", "count", "modulated"),
    [
        ("pixel", 4, 0),
        ("conditional", 16, 0),
        ("transformer", 5, 5),
    ],
)
def test_sites_of_real_networks_and_state_after_the_fold(name, count, modulated, request):
    probe = request.getfixturevalue(name)
    model = wrap(probe.model, probe.graph, dict.fromkeys(probe.graph.layers, Bits(8, 8)))
    sites = norm_sites(probe.model, model.layers.keys(), probe.heldout)
    assert len(sites) == count
    assert sum(site.modulation is not None for site in sites) == modulated
    for site in sites:
        width = model.layers[site.readers[0]].in_channels
        scale = torch.rand(width, generator=torch.Generator().manual_seed(0)) + 0.5
        fold_site(model, site, scale, torch.arange(width) % 256.0, 8)
    assert check_folds(model, probe.heldout) <= 1e-4
    outputs = [len(site.readers) for site in sites]
    assert max(outputs) == 3, "queries, keys and values share one norm"


def test_a_norm_or_layer_that_runs_twice_is_no_site():
    class Twice(Modulated):
        def forward(self, sample, timestep=None, return_dict=True):
            first = super().forward(sample, timestep)[0]
            return super().forward(first, timestep)

    assert ready(Twice())[1] == ()
