"""Methods on a network whose blocks only visit the device, which is pretended: see ``pretend``.

Their results are those of the CPU, bit for bit, as in ``test_devices``; no tensor of the model
stays on the device; and the device holds as much for a deep network as for a shallow one.
"""

import copy
import dataclasses
from functools import partial

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
from quantarena.methods.core.trace.network import trace
from quantarena.methods.core.visits import visited_device, visiting
from quantarena.methods.info import Effort
from quantarena.methods.registry import entry, method_entry
from quantarena.methods.testing.networks import probe, sampled, transformer
from quantarena.methods.testing.pretend import Pretended, pretended_cuda

EFFORT = Effort(samples=8, iterations=1, range_samples=8)
CUDA = torch.device("cuda")
METHODS = {name: entry(name).method for name in builtins()}
WHOLE = sorted(name for name, kind in METHODS.items() if kind.supports.whole_network)


@pytest.fixture(autouse=True)
def _torch_roundings(monkeypatch):
    monkeypatch.setattr(soft_weight, "find", lambda *tensors: None)  # see test_devices


@pytest.fixture
def place(monkeypatch):
    """``core.cuda.place``, whose kernels are computed by the integer oracle."""
    pytest.importorskip("triton", reason="triton is not installed; torch's CUDA wheels bring it")
    with interpreted_without_gpu():
        from quantarena.methods.core.cuda import place
        from quantarena.methods.testing import oracle_launch as leaves
    monkeypatch.setattr(leaves.CudaPackedLayer, "_launch", leaves.oracle_launch)
    return place


def offloaded(found):
    """The probe with a network that visits the pretended device."""
    return dataclasses.replace(found, model=visiting(copy.deepcopy(found.model), CUDA))


def context(found, name, policy=None):
    method = METHODS[name]
    known = method.supports
    weight = 4 if 4 in known.weight_bits else max(known.weight_bits)
    bits = Bits(weight, 8 if 8 in known.act_bits else max(known.act_bits))
    made = found.context(bits, known.variants[0], EFFORT)
    return made if policy is None else dataclasses.replace(made, policy=policy)


def on_device(model):
    tensors = (*model.module.parameters(), *model.module.buffers(), *model.state().values())
    return [tensor for tensor in tensors if isinstance(tensor, Pretended)]


@pytest.mark.parametrize(
    "name", ["rtn", "q_diffusion", "svdquant", "tfmq_dm", "eda_dm", "repquant", "vidit_q", "dgq"]
)
def test_a_method_gives_the_same(name, transformer):
    method = method_entry(name)
    ours = method().run(context(transformer, name, method.published))
    with pretended_cuda() as memory:
        theirs = method().run(context(offloaded(transformer), name, method.published))
        assert on_device(theirs) == []
        want, got = ours.state(), theirs.state()
        assert memory.peak > 0
    assert want.keys() == got.keys()
    assert [n for n, value in want.items() if not torch.equal(value, got[n])] == []


def test_a_unet_with_split_shortcuts_gives_the_same(pixel):
    ours = method_entry("q_diffusion")().run(context(pixel, "q_diffusion"))
    with pretended_cuda():
        theirs = method_entry("q_diffusion")().run(context(offloaded(pixel), "q_diffusion"))
    want, got = ours.state(), theirs.state()
    assert [n for n, value in want.items() if not torch.equal(value, got[n])] == []


@pytest.mark.parametrize("name", ["rtn", "svdquant", "repquant"])
def test_packed_layers_visit_too(name, transformer, place):
    """Parity holds, and a step is the one of the packed network that is there as a whole."""
    policy, points = METHODS[name].published, transformer.heldout.rows(slice(0, 2))
    ours = method_entry(name)().run(context(transformer, name, policy))
    with pretended_cuda() as memory:
        whole = place.on_cuda(pack(ours).module, "cuda")
        with torch.no_grad(), ours.clock.at(points.step):
            want = points.call(whole).cpu()
        del whole
        theirs = method_entry(name)().run(context(offloaded(transformer), name, policy))
        packed = pack(theirs)
        network = place.on_cuda(packed.module, "cuda")
        assert visited_device(network) == CUDA
        layers = {path: network.get_submodule(path) for path in packed.layers}
        moved = dataclasses.replace(
            packed, module=network, layers=layers, attention=installed(network)
        )
        parity(theirs, moved, points)
        memory.restart()
        before = memory.held
        with torch.no_grad(), theirs.clock.at(points.step):
            got = points.call(network)
        assert before < memory.peak
        assert not any(isinstance(t, Pretended) for t in network.state_dict().values())
    assert type(got) is torch.Tensor
    assert torch.equal(got, want)


def test_a_recording_is_that_of_the_whole_network(conditional):
    first = conditional.trajectory.pick(torch.zeros(2, dtype=torch.long), torch.arange(2))
    want = sampled(conditional.model, first.sample, first.conditions)
    with pretended_cuda() as memory:
        got = sampled(offloaded(conditional).model, first.sample, first.conditions)
        assert memory.peak > 0
    assert torch.equal(want.sample, got.sample)


def test_the_trace_is_that_of_the_whole_network(pixel):
    first = pixel.trajectory.pick(torch.zeros(2, dtype=torch.long), torch.arange(2))
    with pretended_cuda():
        graph = trace(offloaded(pixel).model, first.sample, timestep=first.timestep)
    assert graph == pixel.graph
    assert any(info.splits for info in graph.layers.values()), "skips are found"


def peak_of_learning(found, folder):
    """Most bytes on the device while blocks learn, with points in chunks; codes that they get."""
    with pretended_cuda() as memory:
        ctx = context(offloaded(found), "rtn")
        model, points = ctx.wrap(), ctx.draw(UniformStride(6))
        model.set_weight_ranges(minmax_range)
        blocks = ctx.blocks(model, points)
        memory.restart()
        schedule = dataclasses.replace(Schedule.fast(1), batch=2)
        reconstruct(model, blocks, points, schedule, acts=False, seed=0, chunk=2, folder=folder)
        peak = memory.peak
        model.freeze()
        assert on_device(model) == []
    return peak, [n for n in model.state() if n.endswith("codes")]


def peak_of_ranges(found):
    with pretended_cuda() as memory:
        method_entry("rtn")().run(context(offloaded(found), "rtn"))
        return memory.peak


@pytest.fixture(scope="module")
def depths():
    """A network of one block, and one of twelve."""
    return [probe(f"tall-{layers}", partial(transformer, layers, patch=4)) for layers in (1, 12)]


def test_a_deep_network_takes_no_more_of_the_device(depths, tmp_path):
    """Neither in calibration nor while blocks learn: one block and one chunk are there at most."""
    sizes = [sum(p.nbytes for p in found.model.parameters()) for found in depths]
    assert sizes[1] > 6 * sizes[0]
    ranges = [peak_of_ranges(found) for found in depths]
    assert ranges[1] == ranges[0] < sizes[1] / 4
    (shallow, few), (deep, many) = (peak_of_learning(found, tmp_path) for found in depths)
    assert len(many) > 6 * len(few)
    assert deep == shallow < 0.8 * sizes[1], "with gradients, and the optimiser's memory"


def test_rows_in_files_teach_a_visiting_block_the_same(transformer, tmp_path):
    states = []
    for found in (transformer, None):
        with pretended_cuda():
            ctx = context(found or offloaded(transformer), "rtn")
            model, points = ctx.wrap(), ctx.draw(UniformStride(6))
            model.set_weight_ranges(minmax_range)
            schedule = dataclasses.replace(Schedule.fast(2), mix=0.5, layers=0.5)
            blocks = ctx.blocks(model, points)
            reconstruct(
                model, blocks, points, schedule, acts=False, seed=0, chunk=2, folder=tmp_path
            )
            model.freeze()
            states.append(model.state())
    ours, theirs = states
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_weights_still_share_the_memory_of_the_original(transformer):
    with pretended_cuda():
        there = offloaded(transformer)
        model = context(there, "rtn").wrap()
        with model.using(weights=False, acts=False):
            model.run(transformer.heldout.rows(slice(0, 1)))
    for name, layer in model.layers.items():
        original = there.model.get_submodule(name).weight
        assert layer._weight.untyped_storage()._cdata == original.untyped_storage()._cdata


def test_methods_that_learn_the_whole_network_are_those_that_say_so():
    assert WHOLE == ["efficient_dm", "mpq_dm", "quest", "serial_to_parallel", "tuneqdm"]


@pytest.mark.parametrize("name", WHOLE)
def test_a_method_that_learns_the_whole_network_is_refused(name, transformer):
    with pretended_cuda() as memory:
        ctx = context(offloaded(transformer), name)
        line = f"{name} learns the whole network at once, .* without --offload"
        with pytest.raises(Unsupported, match=line):
            method_entry(name)().run(ctx)
        assert memory.peak == 0, "nothing ran before"


def test_a_rival_is_refused(transformer, tmp_path):
    with pretended_cuda():
        ctx = offloaded(transformer).context(Bits(16, 16), "paper", EFFORT)
        with pytest.raises(Unsupported, match="fp@bf16 runs the whole network by a library"):
            entry("fp@bf16").method().run(ctx, tmp_path, build=True)
