"""Networks whose islands visit a device: same numbers, and one island of memory."""

import copy
import gc
import inspect
import weakref

import pytest
import torch
from torch import nn

from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.network import device_of
from quantarena.methods.core.visits import (
    islands,
    on_host,
    resident,
    visited_device,
    visiting,
    visiting_as,
)
from quantarena.methods.testing.networks import transformer
from quantarena.methods.testing.pretend import Pretended, pretended_cuda

CUDA = torch.device("cuda")


def tall(layers):
    """A diffusion transformer that is mostly its blocks."""
    torch.manual_seed(0)
    network = transformer(layers, patch=4)
    return network.eval().requires_grad_(False)


INPUTS = {"timestep": torch.tensor([500, 20]), "class_labels": torch.tensor([1, 7])}


def predicted(network):
    sample = torch.linspace(-1, 1, 2 * 4 * 8 * 8).reshape(2, 4, 8, 8)
    with torch.no_grad():
        return network(sample, **INPUTS).sample


def bytes_of(module):
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


def all_home(network):
    tensors = (*network.parameters(), *network.buffers())
    return not any(isinstance(tensor, Pretended) for tensor in tensors)


class Pair(nn.Module):
    """Two layers, of which the first may be followed by anything."""

    def __init__(self, between=None):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.between = between or nn.Identity()

    def forward(self, x):
        return self.two(self.between(self.one(x)))


def test_islands_hold_every_weight_once_and_levels_come_apart(pixel):
    found = islands(pixel.model)
    assert "conv_in" in found
    assert "up_blocks.0.resnets.1" in found, "a level with several blocks is no island"
    assert not any(b.startswith(f"{a}.") for a in found for b in found)
    names = [name for name, _ in pixel.model.named_parameters()]
    assert all(sum(name.startswith(f"{path}.") for path in found) == 1 for name in names)


def test_a_stack_of_blocks_comes_apart_and_a_block_does_not():
    found = islands(tall(3))
    assert [path for path in found if "blocks" in path] == [
        f"transformer_blocks.{i}" for i in range(3)
    ]


def test_a_single_layer_is_its_own_island():
    assert islands(nn.Linear(2, 2)) == ("",)
    with pretended_cuda() as memory:
        layer = visiting(nn.Linear(2, 2), CUDA)
        with torch.no_grad():
            assert type(layer(torch.ones(1, 2))) is torch.Tensor
        assert memory.peak >= bytes_of(layer)


@pytest.mark.parametrize("probe", ["pixel", "conditional", "transformer"])
def test_the_output_is_that_of_the_whole_network(probe, request):
    found = request.getfixturevalue(probe)
    points = found.heldout.rows(slice(0, 2))
    with torch.no_grad():
        want = points.call(found.model)
        with pretended_cuda() as memory:
            network = visiting(copy.deepcopy(found.model), CUDA)
            got = points.call(network)
    assert type(got) is torch.Tensor, "what a network returns is on the host"
    assert torch.equal(got, want)
    assert memory.peak > 0
    assert memory.held == 0
    assert all_home(network)


def test_memory_is_that_of_the_largest_island_however_many_there_are():
    peaks, sizes = [], []
    for layers in (2, 8):
        network = tall(layers)
        sizes.append(bytes_of(network))
        with pretended_cuda() as memory:
            whole = copy.deepcopy(network).to("cuda")
            predicted_there(whole)
            activations = memory.peak - sizes[-1]
            del whole
            visiting(network, CUDA)
            assert memory.held == 0
            memory.restart()
            predicted(network)
        largest = max(bytes_of(network.get_submodule(path)) for path in islands(network))
        assert largest <= memory.peak <= largest + activations
        peaks.append(memory.peak)
    assert peaks[0] == peaks[1] < sizes[1] / 4
    assert sizes[1] > 3 * sizes[0]


def predicted_there(network):
    with torch.no_grad():
        given = {name: value.to("cuda") for name, value in INPUTS.items()}
        return network(torch.zeros(2, 4, 8, 8).to("cuda"), **given).sample


def test_weights_keep_their_memory_on_the_host(pixel):
    network = copy.deepcopy(pixel.model)
    before = {n: t.untyped_storage()._cdata for n, t in network.named_parameters()}
    with pretended_cuda():
        visiting(network, CUDA)
        with torch.no_grad():
            pixel.heldout.rows(slice(0, 1)).call(network)
    assert {n: t.untyped_storage()._cdata for n, t in network.named_parameters()} == before


def test_what_is_written_during_a_visit_comes_home():
    x = torch.arange(12.0).reshape(3, 4)
    plain, other = (Pair(nn.BatchNorm1d(4)).train().requires_grad_(False) for _ in range(2))
    plain(x)
    with pretended_cuda():
        visiting(other, CUDA)(x)
    assert plain.between.running_mean.abs().sum() > 0
    assert torch.equal(plain.between.running_mean, other.between.running_mean)
    assert int(other.between.num_batches_tracked) == 1


class Replaces(nn.Module):
    """Gives its parameter other memory when it runs, as a zero point does that settles."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4), requires_grad=False)

    def forward(self, x):
        self.scale.data = self.scale * 2
        return x * self.scale


def test_a_parameter_with_other_memory_comes_home_too():
    network = Pair(Replaces()).requires_grad_(False)
    with pretended_cuda():
        visiting(network, CUDA)(torch.ones(1, 4))
    assert network.between.scale.tolist() == [2, 2, 2, 2]


def test_a_copy_visits_by_itself():
    with pretended_cuda() as memory, torch.no_grad():
        network = visiting(tall(2), CUDA)
        twin = copy.deepcopy(network)
        for parameter in network.parameters():
            parameter.zero_()
        got = predicted(twin)
        assert memory.peak > 0
    assert visited_device(twin) == CUDA
    assert torch.equal(got, predicted(tall(2)))


def test_a_changed_copy_has_the_islands_of_the_original_and_those_that_came():
    network = visiting(Pair(), CUDA)
    twin = copy.deepcopy(network)
    twin.two, twin.three = nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 4)
    visiting_as(twin, network)
    kinds = {name: module.forward.island for name, module in twin.named_modules() if name}
    assert kinds == {"one": True, "two": True, "two.0": False, "three": True, "between": False}
    assert visiting_as(Pair(), Pair()).forward.__self__ is not None, "nothing visits"


def test_a_gradient_through_a_visit_is_refused_and_through_a_resident_block_is_right():
    x = torch.linspace(-1, 1, 8).reshape(2, 4)
    plain = Pair()
    plain.one(x).square().sum().backward()
    with pretended_cuda():
        network = visiting(Pair(), CUDA)
        with pytest.raises(Unsupported, match=r"a gradient through Linear, .* without --offload"):
            network(x)
        with resident(network.one):
            output = network.one(x)
            assert output.device.type == "cuda", "what a resident block returns stays there"
            output.square().sum().backward()
            assert torch.equal(network.one.weight.grad.cpu(), plain.one.weight.grad)
            assert device_of(network.one).type == "cuda"
            assert device_of(network).type == "cpu"
        assert network.one.weight.grad is None
        assert all_home(network)


class Stop(BaseException):
    """What ends a pass from outside."""


def test_a_pass_that_ends_early_leaves_nothing_on_the_device():
    def stop(*given):
        raise Stop

    with pretended_cuda() as memory:
        network = visiting(tall(2), CUDA)
        handle = network.transformer_blocks[1].attn1.to_q.register_forward_hook(stop)
        with pytest.raises(Stop):
            predicted(network)
        assert memory.peak > 0
        assert memory.held == 0
        assert all_home(network)
        handle.remove()
        assert torch.equal(predicted(network), predicted(tall(2)))


def test_a_layer_that_is_called_from_outside_its_island_visits_by_itself():
    seen = []
    with pretended_cuda() as memory, torch.no_grad():
        network = visiting(tall(2), CUDA)
        layer = network.transformer_blocks[0].ff.net[2]
        layer.register_forward_pre_hook(lambda module, args: seen.append(type(args[0])))
        out = layer(torch.ones(1, layer.in_features))
        assert memory.peak >= bytes_of(layer)
    assert type(out) is torch.Tensor
    assert seen == [torch.Tensor]


def test_on_the_host_nothing_moves():
    with pretended_cuda() as memory:
        network = visiting(tall(2), CUDA)
        with on_host():
            got = predicted(network)
        assert memory.peak == 0
        predicted(network)
        assert memory.peak > 0
    assert torch.equal(got, predicted(tall(2)))


def test_what_cannot_visit_is_named():
    with pretended_cuda(), pytest.raises(ValueError, match=r"one\.weight is not on the host"):
        visiting(Pair().to("cuda"), CUDA)
    patched = Pair()
    patched.two.forward = lambda x: x
    with pytest.raises(Unsupported, match="two: its forward was replaced"):
        visiting(patched, CUDA)


def test_a_network_is_gone_as_soon_as_nobody_holds_it():
    network = visiting(tall(1), CUDA)
    watched = weakref.ref(network.transformer_blocks[0])
    assert list(inspect.signature(network.forward).parameters)[:2] == ["hidden_states", "timestep"]
    gc.disable()
    try:
        forward = network.transformer_blocks[0].forward
        del network
        assert watched() is None
    finally:
        gc.enable()
    with pytest.raises(ReferenceError, match="gone"):
        forward(torch.ones(1))
