import pytest
import torch
from torch import nn

from quantarena.methods.core.bits import FP, Bits
from quantarena.methods.core.errors import BrokenModel, Unsupported
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.model import wrap
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.model.time_table import ScheduledTable
from quantarena.methods.core.record.steps import UniformStride
from quantarena.methods.core.record.trajectory import CalibrationSet
from quantarena.methods.core.trace.network import trace
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.ranges.mse import mse_range


def quantized(probe, bits, *, splits=True, search=minmax_range):
    model = wrap(probe.model, probe.graph, UNIFORM.assign(probe.graph, bits), splits=splits)
    model.set_weight_ranges(search)
    calibrate_activations(model, UniformStride(16).draw(probe.trajectory, 0), search)
    model.freeze()
    return model


def test_wrap_leaves_the_original_alone(probe):
    before = {n: v.clone() for n, v in probe.model.state_dict().items()}
    model = quantized(probe, Bits(2, 2))
    with torch.no_grad():
        probe.heldout.call(model.module)
    assert not any(isinstance(m, QuantLayer) for m in probe.model.modules())
    assert all(torch.equal(v, before[n]) for n, v in probe.model.state_dict().items())


def test_quantizers_off_is_full_precision(probe):
    model = quantized(probe, Bits(4, 4))
    with torch.no_grad():
        target = probe.heldout.call(probe.model)
        with model.using(weights=False, acts=False):
            off = probe.heldout.call(model.module)
        on = probe.heldout.call(model.module)
    assert (off - target).abs().max() <= 1e-5 * target.abs().max()
    assert (on - target).abs().max() > 1e-2 * target.abs().max()


def test_fp_assignment_wraps_nothing(probe):
    assert wrap(probe.model, probe.graph, UNIFORM.assign(probe.graph, FP)).layers == {}


def test_using_restores_after_an_error(pixel):
    model = quantized(pixel, Bits(4, 4))
    with pytest.raises(RuntimeError), model.using(weights=False, acts=False):
        raise RuntimeError
    assert all(x.use_weight_quantizer and x.use_act_quantizer for x in model.layers.values())


def test_state_round_trip_is_exact(probe):
    model = quantized(probe, Bits(3, 5))
    other = wrap(probe.model, probe.graph, UNIFORM.assign(probe.graph, Bits(3, 5)), splits=True)
    other.load_state(model.state())
    with torch.no_grad():
        assert torch.equal(probe.heldout.call(model.module), probe.heldout.call(other.module))


def test_state_that_does_not_fit(pixel):
    state = quantized(pixel, Bits(4, 4), splits=False).state()
    whole = wrap(pixel.model, pixel.graph, UNIFORM.assign(pixel.graph, Bits(4, 4)))
    lost = {n: t for n, t in state.items() if n != "layer:conv_out/0/act_scale"}
    with pytest.raises(BrokenModel, match=r"conv_out.*scale.* is missing"):
        whole.load_state(lost)
    cut = state | {"layer:conv_out/0/weight_codes": state["layer:conv_out/0/weight_codes"][:2]}
    with pytest.raises(BrokenModel, match=r"conv_out: codes have shape"):
        whole.load_state(cut)


def test_state_of_an_unfrozen_model_is_an_error(pixel):
    model = wrap(pixel.model, pixel.graph, UNIFORM.assign(pixel.graph, Bits(4, 4)))
    model.set_weight_ranges(minmax_range)
    with pytest.raises(ValueError, match="not frozen"):
        model.state()


def test_minmax_ranges_hold_every_calibration_value(pixel):
    points = UniformStride(16).draw(pixel.trajectory, 0)
    model = quantized(pixel, Bits(8, 8))
    for name, layer in model.layers.items():

        def inside(module, args, name=name):
            for part in module.parts:
                x, params = module.part_input(part, args[0]), part.act_quantizer.params
                codes = x / params.scale + params.zero_point
                assert codes.min() >= -0.51, name
                assert codes.max() <= 255.51, name

        layer.register_forward_pre_hook(inside)
    with torch.no_grad(), model.using(weights=True, acts=False):
        points.call(model.module)


class Tokens(nn.Module):
    """Tokens of 64 channels, the first of which is quiet, through one linear in the middle."""

    def __init__(self):
        super().__init__()
        self.before, self.middle, self.after = nn.Linear(2, 64), nn.Linear(64, 64), nn.Linear(64, 2)
        self.before.weight.data[0] = 0
        self.before.bias.data[0] = 0

    def forward(self, sample, timestep=None, return_dict=True):
        return (self.after(self.middle(self.before(sample))),)


def test_large_inputs_are_sampled_over_all_channels():
    # 64 points of 256 tokens of 64 channels: any even stride would see some channels only
    torch.manual_seed(1)
    network = Tokens()
    points = CalibrationSet(
        torch.randn(128, 256, 2), torch.zeros(128), torch.zeros(128, dtype=torch.long)
    )
    graph = trace(network, points.sample[:2])
    model = wrap(network, graph, dict.fromkeys(graph.layers, Bits(8, 4)))
    model.set_weight_ranges(minmax_range)
    calibrate_activations(model, points, mse_range)
    found = float(model.layers["middle"].only_part.act_quantizer.scale)
    with torch.no_grad():
        whole = mse_range(network.before(points.sample), 4)
    assert found == pytest.approx(float(whole.scale), rel=0.1)


def test_nan_activations_are_refused(pixel):
    model = wrap(pixel.model, pixel.graph, UNIFORM.assign(pixel.graph, Bits(8, 8)))
    model.set_weight_ranges(minmax_range)
    points = UniformStride(8).draw(pixel.trajectory, 0)
    points.sample[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        calibrate_activations(model, points, minmax_range)


def test_changed_floating_tensors_and_tables_travel_with_the_state(pixel):
    model = quantized(pixel, Bits(4, 8), splits=False)
    norm = model.module.conv_norm_out
    with torch.no_grad():
        norm.weight.mul_(1.5)
    name = next(n for n in model.layers if n.endswith("time_emb_proj"))
    width = model.layers[name].weight.shape[0]
    model.tabulate(name, ScheduledTable(torch.randn(4, width)))
    other = wrap(pixel.model, pixel.graph, UNIFORM.assign(pixel.graph, Bits(4, 8)))
    other.load_state(model.state())
    assert name not in other.layers
    points = UniformStride(8).draw(pixel.trajectory, 0)
    with torch.no_grad():
        assert torch.equal(other.run(points), model.run(points))
        again = quantized(pixel, Bits(4, 8), splits=False)
        assert not torch.equal(other.run(points), again.run(points))


def test_state_of_another_shape_is_one_line(pixel):
    model = quantized(pixel, Bits(4, 8), splits=False)
    lost = model.state() | {"float:conv_norm_out.weight": torch.ones(3)}
    with pytest.raises(BrokenModel, match=r"conv_norm_out.weight is \(8,\), the state's is \(3,\)"):
        model.load_state(lost)
    with pytest.raises(BrokenModel, match=r"it has no nowhere.weight"):
        model.load_state(model.state() | {"float:nowhere.weight": torch.ones(3)})


class Lower(nn.Module):
    """A layer in another type than the network around it."""

    def __init__(self, dtype, autocast):
        super().__init__()
        self.first, self.low = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)
        self.dtype, self.autocast = dtype, autocast
        if not autocast:
            self.low.to(dtype)

    def forward(self, x):
        x = self.first(x)
        if not self.autocast:
            return self.low(x.to(self.dtype)).float()
        with torch.autocast("cpu", dtype=self.dtype):
            return self.low(x).float()


@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [
        (torch.bfloat16, False),
        (torch.float16, False),
        (torch.float64, False),
        (torch.bfloat16, True),
    ],
)
def test_a_layer_in_another_type_is_refused_by_name(dtype, autocast):
    network = Lower(dtype, autocast)
    graph = trace(network, torch.randn(2, 4, 5, 5))
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(Unsupported, match=f"^low computes in {name} inside the network"):
        wrap(network, graph, UNIFORM.assign(graph, Bits(8, 8)))
    kept = UNIFORM.assign(graph, Bits(8, 8)) | {"low": FP}
    assert list(wrap(network, graph, kept).layers) == ["first"]
