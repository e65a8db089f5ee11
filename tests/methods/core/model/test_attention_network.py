"""Quantized attention products in a network: their place, state, calibration and parity."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch.nn import functional as F

from quantarena.methods.core.bits import FP, AttentionBits
from quantarena.methods.core.errors import BrokenModel, QuantArenaError
from quantarena.methods.core.kernels.native import library as native_library
from quantarena.methods.core.model.attention_hooks import CHILD, installed, wrap_attention
from quantarena.methods.core.model.attention_mode import Fake, Plain
from quantarena.methods.core.model.model import QuantizedModel, wrap
from quantarena.methods.core.packed.attention_parity import attention_parity
from quantarena.methods.core.packed.native_attention import Native, kernel_products
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.core.packed.parity import parity
from quantarena.methods.core.trace.network import AttentionKind, trace
from quantarena.methods.techniques.calibrate.attention import calibrate_attention
from quantarena.methods.techniques.calibrate.plan import CalibrationPlan
from quantarena.methods.techniques.ranges.minmax import minmax_range

EIGHT = AttentionBits(8, 8, 8, 8)


def wrapped(probe, bits=EIGHT, graph=None):
    """A network with nothing but its attention products quantized, ranges not set."""
    graph = graph or probe.graph
    model = wrap(probe.model, graph, dict.fromkeys(graph.layers, FP))
    widths = dict.fromkeys(graph.attention, bits)
    model.attention = wrap_attention(model.module, graph, widths, model.clock)
    return model


@torch.no_grad()
def error(model: QuantizedModel, probe):
    target = probe.heldout.call(probe.model)
    return float((model.run(probe.heldout) - target).square().mean() / target.square().mean())


def test_error_falls_with_bits_and_off_is_full_precision(probe):
    errors = []
    for bits in (8, 4, 2):
        model = wrapped(probe, AttentionBits(bits, bits, bits, bits))
        assert [q.unset() for q in model.attention.values()] == [
            ["query", "key", "value", "softmax"]
        ] * len(probe.graph.attention)
        calibrate_attention(model, probe.heldout, minmax_range)
        assert not any(quant.unset() for quant in model.attention.values())
        errors.append(error(model, probe))
    assert 0 < errors[0] < errors[1] < errors[2]
    for quant in model.attention.values():
        quant.mode = Plain()
    assert error(model, probe) == 0.0


def test_paths_stay(probe):
    model = wrapped(probe)
    before = {name for name, _ in probe.model.named_modules()}
    assert before <= {name for name, _ in model.module.named_modules()}
    assert set(installed(model.module)) == set(probe.graph.attention)
    assert not any(m._forward_pre_hooks for m in probe.model.modules())


def test_written_out_attention_gives_the_same(conditional):
    other = copy.deepcopy(conditional.model)
    other.set_attn_processor(AttnProcessor())
    first = conditional.heldout.rows(slice(0, 2))
    graph = trace(other, first.sample, timestep=first.timestep, **first.conditions)
    fused = wrapped(conditional)
    written = wrap(other, graph, dict.fromkeys(graph.layers, FP))
    widths = dict.fromkeys(graph.attention, EIGHT)
    written.attention = wrap_attention(written.module, graph, widths, written.clock)
    calibrate_attention(fused, conditional.heldout, minmax_range, CalibrationPlan(per_head=True))
    for name, quant in written.attention.items():
        assert not quant.info.fused
        quant.load(fused.attention[name].state())
        quant.excluded = fused.attention[name].excluded = 1
    with torch.no_grad():
        one, two = (model.run(conditional.heldout) for model in (fused, written))
    assert float((one - two).abs().max()) <= 1e-3 * float(one.abs().max())  # a tie may flip
    assert error(written, conditional) > 0


def test_a_copy_has_its_own_quantizers(pixel):
    model = wrapped(pixel)
    calibrate_attention(model, pixel.heldout, minmax_range)
    twin = copy.deepcopy(model.module)
    before = error(model, pixel)
    for quant in installed(twin).values():
        quant.static("value").scale.data *= 30
    assert error(model, pixel) == before
    model.module = twin
    assert error(model, pixel) > 10 * before


@pytest.mark.parametrize("per_call", [False, True])
@pytest.mark.parametrize("log", [False, True])
def test_state_round_trip(conditional, per_call, log):
    model = wrapped(conditional)
    calibrate_attention(
        model,
        conditional.heldout,
        minmax_range,
        CalibrationPlan(per_call=per_call, per_head=True, symmetric=True),
    )
    if log:
        for quant in model.attention.values():
            quant.use_log(per_octave=2, axes=2, zero_code=True)
            quant.excluded = 1
    other = wrapped(conditional)
    other.load_state(model.state())
    with torch.no_grad():
        one, two = (m.run(conditional.heldout) for m in (model, other))
    assert torch.equal(one, two)


def test_passes_in_two_threads_keep_their_modes_apart(conditional):
    model = wrapped(conditional)
    name, quant = next(iter(model.attention.items()))
    module = model.module.get_submodule(name)
    hooks = module.get_submodule(CHILD)
    hooks.enter(module, ())
    with ThreadPoolExecutor(1) as other:
        with quant.using(Plain()):
            other.submit(hooks.enter, module, ()).result()
        hooks.leave(module, (), None)
        assert torch.overrides._len_torch_function_stack() == 0
        other.submit(hooks.leave, module, (), None).result()


def test_other_attention_than_traced_is_an_error(conditional):
    model = wrapped(conditional)
    calibrate_attention(model, conditional.heldout, minmax_range)
    model.module.set_attn_processor(AttnProcessor())
    with pytest.raises(BrokenModel, match="computed 0 attentions in a call, 1 when it was traced"):
        model.run(conditional.heldout)


def test_a_failing_forward_leaves_nothing_behind(pixel):
    model = wrapped(pixel)
    calibrate_attention(model, pixel.heldout, minmax_range)
    name = next(iter(model.attention))

    def fail(*_):
        raise RuntimeError("stop")

    handle = model.module.get_submodule(f"{name}.to_out.0").register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        model.run(pixel.heldout)
    handle.remove()
    q, k, v = torch.randn(3, 3, 2, 6, 8)
    assert torch.equal(
        F.scaled_dot_product_attention(q, k, v), F.scaled_dot_product_attention(q, k, v)
    )
    assert torch.overrides._get_current_function_mode_stack() == []
    assert error(model, pixel) > 0


def test_calibration_takes_extremes_by_call_and_head(transformer):
    seen: dict[tuple[str, str], list[torch.Tensor]] = {}
    model = wrapped(transformer)
    watches = {
        name: lambda operand, x, name=name: seen.setdefault((name, operand), []).append(x)
        for name in model.attention
    }
    with torch.no_grad(), model.watching(watches):
        model.run(transformer.heldout)
    calibrate_attention(
        model, transformer.heldout, minmax_range, CalibrationPlan(per_call=True, per_head=True)
    )
    steps = transformer.heldout.step
    for (name, operand), (x,) in seen.items():
        quantizer = model.attention[name].static(operand)
        assert quantizer.scale.shape == (4, 2)
        for call in range(4):
            for head in range(2):
                params = minmax_range(x[steps == call][:, head], 8)
                assert float(quantizer.scale[call, head]) == pytest.approx(float(params.scale))
    zero = model.attention[name].static("softmax").zero_point
    assert not bool(zero.any())
    assert model.clock.schedule is not None


@pytest.mark.parametrize("log", [False, True])
def test_parity_of_every_module(conditional, log):
    model = wrapped(conditional)
    calibrate_attention(model, conditional.heldout, minmax_range, CalibrationPlan(per_call=True))
    for quant in model.attention.values():
        if log:
            quant.use_log(per_octave=2)
        quant.excluded = int(quant.info.kind is AttentionKind.CROSS)
    gaps = attention_parity(model, conditional.heldout.rows(slice(0, 4)))
    assert set(gaps) == set(conditional.graph.attention)
    assert max(gaps.values()) <= 1e-5
    assert all(q.mode == Fake() for q in model.attention.values())


@pytest.mark.parametrize("log", [False, True])
def test_packed_products_are_native_and_held_to_the_integers(conditional, log):
    model = wrapped(conditional)
    calibrate_attention(
        model, conditional.heldout, minmax_range, CalibrationPlan(per_call=True, per_head=True)
    )
    for quant in model.attention.values():
        if log:
            quant.use_log(per_octave=2, axes=2)
        quant.excluded = int(quant.info.kind is AttentionKind.CROSS)
    packed = pack(model)
    native = native_library().attention is not None
    assert packed.backend == ("packed" if native else "reference")
    assert all(quant.mode == Fake() for quant in model.attention.values())
    assert all(quant.mode == Native() for quant in packed.attention.values())
    assert all(kernel_products(q).apply() is native for q in packed.attention.values())
    points = conditional.heldout
    assert parity(model, packed, points).max_rel <= 1e-5
    with torch.no_grad(), model.clock.at(points.step):
        fake, found = model.run(points), points.call(packed.module)
    assert float((fake - found).abs().median()) <= 1e-5 * float(fake.abs().max())
    name = next(iter(packed.attention))
    packed.attention[name].static("key").scale.data *= 1.001
    with pytest.raises(QuantArenaError, match=f"packed and fake .* at {name}"):
        parity(model, packed, points)


def test_parity_catches_a_fractional_zero_point(pixel):
    model = wrapped(pixel)
    calibrate_attention(model, pixel.heldout, minmax_range)
    name = next(iter(model.attention))
    model.attention[name].static("value").zero_point.data += 0.4
    gaps = attention_parity(model, pixel.heldout)
    assert gaps[name] > 1e-3
    assert model.attention[name].settle() == pytest.approx(0.4, abs=1e-4)
    assert attention_parity(model, pixel.heldout)[name] <= 1e-5
