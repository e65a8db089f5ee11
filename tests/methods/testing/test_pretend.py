"""The pretended device: which operations it refuses, and that it computes what the CPU computes."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.packed.nodes.leaf import PackedLayer
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.core.quantizers.weight import WeightQuantizer
from quantarena.methods.info import Effort
from quantarena.methods.registry import entry
from quantarena.methods.testing.device_rules import DeviceFault
from quantarena.methods.testing.pretend import Pretended, pretended_cuda


@pytest.fixture
def cuda():
    """The pretended device, for the length of a test."""
    with pretended_cuda():
        yield torch.device("cuda", 0)


OPERATIONS = {
    "add": lambda here, there: here + there,
    "add a scalar tensor": lambda here, there: here + there.sum(),
    "a scalar tensor first": lambda here, there: there.sum() + here,
    "add a number": lambda here, there: here + 1,
    "add in place": lambda here, there: here.add_(there),
    "add in place to a scalar tensor": lambda here, there: there.sum().add_(here.sum()),
    "multiply out of place into": lambda here, there: torch.mul(here, here, out=there),
    "matrix product": lambda here, there: here @ there.T,
    "linear": lambda here, there: F.linear(here, here, there[0]),
    "convolution": lambda here, there: F.conv1d(here[None], there[None].transpose(0, 1)),
    "concatenate": lambda here, there: torch.cat([here, there]),
    "stack": lambda here, there: torch.stack([here, there]),
    "stack scalar tensors": lambda here, there: torch.stack([here.sum(), there.sum()]),
    "choose": lambda here, there: torch.where(here > 0, here, there),
    "choose a scalar tensor": lambda here, there: torch.where(here > 0, here, there.sum()),
    "choose by": lambda here, there: torch.where(there > 0, here, here),
    "clamp by a scalar tensor": lambda here, there: here.clamp(min=there.sum()),
    "largest": lambda here, there: torch.maximum(here, there),
    "gather": lambda here, there: here.gather(0, there.long() * 0),
    "scatter": lambda here, there: here.scatter_add(0, here.long() * 0, there),
    "select by index": lambda here, there: here.index_select(0, there[0].long() * 0),
    "index": lambda here, there: here[there[0].long() * 0],
    "put by index": lambda here, there: here.index_put_((here[0].long() * 0,), there),
    "put a scalar tensor": lambda here, there: here.index_put_((here[0].long() * 0,), there.sum()),
    "embedding": lambda here, there: F.embedding(there[0].long() * 0, here),
    "copy": lambda here, there: here.copy_(there),
    "put a slice": lambda here, there: here[:1].copy_(there[:1]),
    "equal": lambda here, there: here == there,
    "mask": lambda here, there: here.masked_fill(there > 0, 0.0),
    "normalize": lambda here, there: F.layer_norm(here, (3,), there[0]),
    "loss": lambda here, there: F.mse_loss(here, there),
    "cast like": lambda here, there: here.to(there),
    "interpolate": lambda here, there: torch.lerp(here, here, there.sum()),
    "attention": lambda here, there: F.scaled_dot_product_attention(
        here[None, None], here[None, None], there[None, None]
    ),
}


def refuses(operation, *values):
    try:
        operation(*values)
    except (RuntimeError, NotImplementedError):
        return True
    return False


@pytest.mark.parametrize("first", ["cuda", "cpu"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_it_refuses_what_fake_tensors_refuse(name, first):
    """With ``here`` on the device and ``there`` on the CPU, and the other way round."""
    devices = ("cuda", "cpu") if first == "cuda" else ("cpu", "cuda")
    with pretended_cuda():
        ours = refuses(OPERATIONS[name], *(torch.ones(3, 3, device=d) for d in devices))
    with FakeTensorMode():
        theirs = refuses(OPERATIONS[name], *(torch.ones(3, 3, device=d) for d in devices))
    stricter = (name, first) in {
        ("index", "cpu"),  # CUDA takes an index on the CPU, the CPU none on CUDA
    }
    assert ours == (theirs or stricter)


def test_both_outcomes_are_in_the_table(cuda):
    here, there = torch.ones(3, 3, device="cuda"), torch.ones(3, 3)
    outcomes = [refuses(operation, here.clone(), there) for operation in OPERATIONS.values()]
    assert 10 < sum(outcomes) < len(outcomes) - 5


FAULTS = {
    "a sum of both devices": lambda x: x + torch.ones(3),
    "an index on the device": lambda x: torch.ones(3)[x.long()],
    "a result on the CPU": lambda x: torch.zeros(()).add_(x.sum()),
    "a CPU generator": lambda x: torch.randn(3, device="cuda", generator=torch.Generator()),
    "a CPU generator in place": lambda x: x.normal_(generator=torch.Generator()),
    "a permutation drawn there": lambda x: torch.randperm(3, device="cuda"),
    "numbers drawn there": lambda x: torch.rand_like(x),
    "a drawn index": lambda x: torch.multinomial(x, 1),
    "a NumPy array": lambda x: x.numpy(),
    "an address": lambda x: x.data_ptr(),
    "an array of a view": lambda x: x[:2].detach().numpy(),
    "a pickle": lambda x: copy.copy(x),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_caught(name, cuda):
    x = torch.ones(3).to("cuda")
    with pytest.raises(DeviceFault):
        FAULTS[name](x)


def test_a_native_layer_refuses_a_tensor_of_the_device(cuda, pixel):
    model = entry("rtn").method().run(pixel.context(Bits(4, 8), "paper", Effort(4, 0)))
    layer = next(m for m in pack(model).module.modules() if isinstance(m, PackedLayer))
    x = torch.ones(1, layer.in_channels, *([4, 4] if len(layer.weight_shape) == 4 else []))
    assert layer(x) is not None
    with pytest.raises(ValueError, match=r"on the CPU, got torch\.float32 on cuda:0"):
        layer(x.to("cuda"))


def test_what_it_makes_and_moves(cuda):
    made = torch.zeros(2, 3, device="cuda")
    assert (made.device, made.is_cuda, made.is_cpu, made.get_device()) == (cuda, True, False, 0)
    assert made.to("cuda") is made
    assert made.cpu().device.type == "cpu"
    assert made.to("cpu", torch.float64).dtype == torch.float64
    for like in (made.new_ones(2), torch.empty_like(made), made[:1], made.clone().detach()):
        assert like.device == cuda
    assert torch.empty_like(made, device="cpu").device.type == "cpu"
    assert torch.tensor([1.0, 2.0], device="cuda").tolist() == [1.0, 2.0]
    assert torch.ones(3).to(made).device == cuda
    view = made[0]
    view += 1
    assert made.sum().item() == 3
    assert copy.deepcopy(made).device == cuda


def test_values_and_gradients_are_those_of_the_cpu(cuda, pixel):
    """Three steps of Adam on a whole network, bit for bit."""
    points = pixel.heldout
    networks = []
    for device in ("cpu", "cuda"):
        network = copy.deepcopy(pixel.model).to(device).requires_grad_(True)
        assert isinstance(next(network.parameters()), nn.Parameter)
        optimizer = torch.optim.Adam(network.parameters(), 1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            points.call(network).square().mean().backward()
            optimizer.step()
        networks.append(network)
    ours, theirs = (list(network.parameters()) for network in networks)
    assert all(isinstance(value, Pretended) for value in theirs)
    assert not all(map(torch.equal, ours, pixel.model.parameters()))
    assert all(torch.equal(a, b.cpu()) for a, b in zip(ours, theirs, strict=True))


def test_parameters_move_there_and_back_as_the_same_objects(cuda):
    layer = nn.Linear(2, 2)
    weight, value = layer.weight, layer.weight.detach().clone()
    assert layer.to("cuda").weight is weight
    assert weight.device == cuda
    assert layer.cpu().weight is weight
    assert type(weight) is nn.Parameter
    assert torch.equal(weight, value)
    assert weight.requires_grad


def test_gradients_go_through_a_move(cuda):
    x = torch.ones(3, requires_grad=True)
    (x.to("cuda") * 2).sum().backward()
    assert type(x.grad) is torch.Tensor
    assert x.grad.tolist() == [2, 2, 2]


def test_it_reaches_threads_and_ends_with_its_block():
    devices = []
    with pretended_cuda():
        thread = threading.Thread(
            target=lambda: devices.append(torch.ones(1, device="cuda").device)
        )
        thread.start()
        thread.join()
        x = torch.ones(1, device="cuda")
    assert [str(device) for device in devices] == ["cuda:0"]
    with pytest.raises(DeviceFault, match=r"outside of pretended_cuda"):
        x + 1


def make_fake(network, mode):
    """Put fake tensors on the device in place of a network's own."""
    for module in network.modules():
        if isinstance(module, WeightQuantizer):
            module._apply(lambda value: value)  # forgets the weight that its codes stand for
        for held in (module._parameters, module._buffers):
            for name, value in held.items():
                if value is not None:
                    fake = mode.from_tensor(value).detach().to("cuda")
                    held[name] = nn.Parameter(fake, False) if held is module._parameters else fake


@pytest.mark.parametrize("bits", [Bits(4, 8), Bits(8, 8)])
def test_a_quantized_network_runs_on_fake_tensors(bits, conditional):
    """Where values decide nothing, ``FakeTensorMode`` itself runs: all calls of a sampler."""
    from diffusers import DDIMScheduler

    model = entry("rtn").method().run(conditional.context(bits, "paper", Effort(4, 0)))
    points, scheduler = conditional.heldout.rows(slice(0, 2)), DDIMScheduler()
    scheduler.set_timesteps(3)
    timesteps = scheduler.timesteps.tolist()
    network = copy.deepcopy(model.module)
    with FakeTensorMode() as mode, torch.no_grad():
        make_fake(network, mode)
        sample = mode.from_tensor(points.sample).to("cuda")
        given = {
            name: mode.from_tensor(value).to("cuda") for name, value in points.conditions.items()
        }
        for name in ("alphas_cumprod", "final_alpha_cumprod"):  # tables of the sampler's step
            setattr(scheduler, name, mode.from_tensor(getattr(scheduler, name)))
        for timestep in timesteps:
            output = network(sample, timestep, return_dict=False, **given)[0]
            sample = scheduler.step(output, timestep, sample).prev_sample
    assert all(isinstance(value, FakeTensor) for value in network.parameters())
    assert sample.device == torch.device("cuda", 0)
    assert sample.shape == points.sample.shape
