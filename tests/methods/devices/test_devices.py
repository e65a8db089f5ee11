"""Every built-in method on a CUDA device that is only pretended: no operation mixes devices.

Calibration branches on values, so ``FakeTensorMode`` cannot run it. ``testing.pretend`` has values,
and so its results are compared bit for bit with those of the CPU, by one exception: AdaRound's soft
weights come from a native kernel on the CPU, whose last bits differ from torch's. It is off here.
"""

import copy
import dataclasses

import pytest
import torch

from quantarena.methods.api import Schedule, UniformStride, minmax_range, reconstruct
from quantarena.methods.builtin import builtins
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.cuda.device import interpreted_without_gpu
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.kernels import soft_weight
from quantarena.methods.core.model.attention_hooks import installed
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.core.packed.parity import parity
from quantarena.methods.info import Effort
from quantarena.methods.registry import entry, method_entry
from quantarena.methods.testing.networks import sampled
from quantarena.methods.testing.pretend import Pretended, pretended_cuda

EFFORT = Effort(samples=8, iterations=1, range_samples=8)
METHODS = [name for name, found in builtins().items() if not found.rival]
W4A8 = Bits(4, 8)
LIGHT = [  # network, method, bits; what the pixel U-Net at w4a8 does not reach
    ("transformer", "rtn", Bits(8, 8)),
    ("transformer", "repquant", W4A8),  # adaptive norms
    ("transformer", "svdquant", W4A8),  # groups of weights
    ("transformer", "vidit_q", W4A8),  # rotations
    ("conditional", "dgq", W4A8),  # a start token
    ("conditional", "tuneqdm", Bits(8, 16)),
    ("conditional", "mpq_dm", W4A8),  # conditions in a network that learns as a whole
    ("pixel", "q_diffusion", Bits(2, 4)),
]


@pytest.fixture(scope="module")
def on_cuda():
    """Networks of probes on the pretended device, each copied there once."""
    networks = {}

    def find(probe):
        if probe.name not in networks:
            with pretended_cuda():
                networks[probe.name] = copy.deepcopy(probe.model).to("cuda")
        return dataclasses.replace(probe, model=networks[probe.name])

    return find


@pytest.fixture
def place():
    """``core.cuda.place``, with Triton's kernels run by the interpreter where there is no GPU."""
    pytest.importorskip("triton", reason="triton is not installed; torch's CUDA wheels bring it")
    with interpreted_without_gpu():
        from quantarena.methods.core.cuda import place
    return place


@pytest.fixture(autouse=True)
def _torch_roundings(monkeypatch):
    monkeypatch.setattr(soft_weight, "find", lambda *tensors: None)


def width_of(method):
    """w4a8, or what the method has instead."""
    known = method.supports
    weight = 4 if 4 in known.weight_bits else max(known.weight_bits)
    return Bits(weight, 8 if 8 in known.act_bits else max(known.act_bits))


def context(probe, method, bits, policy=None):
    made = probe.context(bits, method.supports.variants[0], EFFORT)
    return made if policy is None else dataclasses.replace(made, policy=policy)


def on_both(probe, on_cuda, name, bits=None, policy=None):
    """The model made on the CPU and the one made on the device, whose states are equal."""
    method = method_entry(name)
    bits = bits or width_of(method)
    ours = method().run(context(probe, method, bits, policy))
    with pretended_cuda():
        theirs = method().run(context(on_cuda(probe), method, bits, policy))
        want, got = ours.state(), theirs.state()
        assert want.keys() == got.keys()
        differ = [n for n, value in want.items() if not torch.equal(value, got[n].cpu())]
    assert differ == []
    return ours, theirs


def run(model, network, points):
    with torch.no_grad(), model.clock.at(points.step):
        return points.call(network)


def placed(packed, place):
    """The packed model on the device."""
    clock = {id(packed.clock): packed.clock}
    network = place.on_cuda(copy.deepcopy(packed.module, clock), "cuda")
    layers = {name: network.get_submodule(name) for name in packed.layers}
    return dataclasses.replace(packed, module=network, layers=layers, attention=installed(network))


def check_packed(ours, theirs, points, place):
    """Pack both models; run the network on the CPU, and its layers on the device."""
    with pretended_cuda():
        packed = pack(theirs)
        assert not any(isinstance(t, Pretended) for t in packed.module.state_dict().values())
        parity(theirs, packed, points)
        got = run(theirs, packed.module, points)
        moved = placed(packed, place)
        parity(theirs, moved, points)
        assert run(theirs, moved.module, points).device.type == "cuda"
        assert all(t.device.type == "cuda" for t in moved.module.buffers())
    assert torch.equal(got, run(ours, pack(ours).module, points))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_gives_the_same_on_the_device(name, pixel, on_cuda, place, monkeypatch):
    with_oracle = pytest.importorskip("quantarena.methods.testing.oracle_launch")
    monkeypatch.setattr(with_oracle.CudaPackedLayer, "_launch", with_oracle.oracle_launch)
    method = method_entry(name)
    ours, theirs = on_both(pixel, on_cuda, name, policy=method.published)
    if ours.layers:
        check_packed(ours, theirs, pixel.heldout.rows(slice(0, 2)), place)


@pytest.mark.parametrize(("network", "name", "bits"), LIGHT)
def test_other_networks_and_widths(network, name, bits, on_cuda, request):
    on_both(request.getfixturevalue(network), on_cuda, name, bits)


def test_a_recording_made_on_the_device_is_on_the_host(conditional, on_cuda):
    first = conditional.trajectory.pick(torch.zeros(2, dtype=torch.long), torch.arange(2))
    want = sampled(conditional.model, first.sample, first.conditions)
    with pretended_cuda():
        got = sampled(on_cuda(conditional).model, first.sample.to("cuda"), first.conditions)
    for name in ("sample", "timestep"):
        ours, theirs = getattr(want, name), getattr(got, name)
        assert type(theirs) is torch.Tensor
        assert torch.equal(ours, theirs)
    assert type(got.conditions["encoder_hidden_states"]) is torch.Tensor


@pytest.mark.parametrize("mix", [0.0, 0.5])
def test_rows_in_files_of_the_host_teach_a_block_on_the_device(mix, transformer, on_cuda, tmp_path):
    """With points in chunks no more than one batch of a block's rows is on the device."""
    states = []
    with pretended_cuda():
        for probe in (transformer, on_cuda(transformer)):
            ctx = context(probe, method_entry("rtn"), W4A8)
            model, points = ctx.wrap(), ctx.draw(UniformStride(6))
            model.set_weight_ranges(minmax_range)
            schedule = dataclasses.replace(Schedule.fast(2), mix=mix, layers=0.5)
            blocks = ctx.blocks(model, points)
            reconstruct(
                model, blocks, points, schedule, acts=False, seed=0, chunk=2, folder=tmp_path
            )
            model.freeze()
            states.append({n: v.cpu() for n, v in model.state().items() if n.endswith("codes")})
    ours, theirs = states
    assert ours.keys() == theirs.keys() != set()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_kernels_are_launched_on_what_the_device_holds(pixel, on_cuda, place, monkeypatch):
    """A placed network through the Triton kernels themselves, whose operands are all there."""
    runtime = pytest.importorskip("triton.runtime.interpreter")
    inner, launches = runtime.GridExecutor.__call__, []

    def launch(self, *args, **kwargs):
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        assert all(isinstance(value, Pretended) for value in given)
        launches.append(len(given))
        values = [value.held if isinstance(value, Pretended) else value for value in args]
        return inner(self, *values, **kwargs)

    monkeypatch.setattr(runtime.GridExecutor, "__call__", launch)
    method = method_entry("rtn")
    with pretended_cuda():
        model = method().run(context(on_cuda(pixel), method, W4A8))
        moved = placed(pack(model), place)
        parity(model, moved, pixel.heldout.rows(slice(0, 1)))
    assert len(launches) >= len(moved.layers)


RIVALS = {
    "fp@bf16": Bits(16, 16),
    "torch_dynamic": Bits(8, 8),
    "torchao": Bits(8, 8),
    "quanto": Bits(8, 16),  # its other kernels ask CUDA's driver what the GPU can do
}


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_gives_the_same_on_the_device_or_says_where_it_runs(
    name, transformer, on_cuda, tmp_path
):
    rival = entry(name).method
    if absent := [n for n, found in rival.versions().items() if found is None]:
        pytest.skip(f"{absent[0]} is not installed")
    points, probe = transformer.heldout.rows(slice(0, 2)), on_cuda(transformer)
    with torch.no_grad(), pretended_cuda():
        ask = probe.context(RIVALS[name], "paper", EFFORT)
        if "cuda" not in rival.devices:
            with pytest.raises(Unsupported, match="runs on cpu, the network is on cuda"):
                rival().run(ask, tmp_path, build=True)
            return
        theirs = rival().run(ask, tmp_path, build=True)
        ours = rival().run(
            transformer.context(RIVALS[name], "paper", EFFORT), tmp_path, build=False
        )
        got = points.call(theirs.module)
        assert got.device.type == "cuda"
        assert torch.equal(got.cpu(), points.call(ours.module))
    assert (theirs.packed_bytes, theirs.widths) == (ours.packed_bytes, ours.widths)


def test_rivals_of_the_cpu_refuse_the_device():
    rivals = [entry(name).method for name, found in builtins().items() if found.rival]
    assert {r.name for r in rivals if "cuda" in r.devices} == {
        "fp@bf16",
        "fp@compile",
        "torchao",
        "quanto",
    }
    for rival in rivals:
        if "cuda" not in rival.devices:
            with pytest.raises(Unsupported, match="leave it out there, or run it with the network"):
                rival().check_place(torch.device("cuda"))
