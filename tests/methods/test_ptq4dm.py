"""PTQ4DM: which points it calibrates on, what its release does wrong, and where its idea wins."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from quantarena.methods.contract import MethodContext
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.model.policy import FLOAT, Policy
from quantarena.methods.core.record.steps import UniformStride
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.core.trace.network import Role, trace
from quantarena.methods.info import Capabilities, Effort
from quantarena.methods.ptq4dm import PTQ4DM, RECIPES, Mislabelled
from quantarena.methods.rtn import RoundToNearest
from quantarena.methods.techniques.calibrate.averaged import calibrate_averaged
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.techniques.points.censored_normal import CensoredNormalCalls
from quantarena.methods.techniques.ranges.ema import EmaRange
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.ranges.mse import mse_range
from quantarena.methods.techniques.ranges.threshold import mse_1d_range
from quantarena.methods.testing.conformance import check
from quantarena.methods.testing.networks import sampled

CALLS, ROWS = 50, 16


PAPER, RELEASE = RECIPES["paper"], RECIPES["release"]


def uniform_steps():
    return PTQ4DM(PTQ4DM.Options(ndtc=False))


def min_max():
    return PTQ4DM(PTQ4DM.Options(mse_ranges=False))


class Burst(nn.Module):
    """Its middle activations have rare outliers, and are ``gain`` times larger at timestep 0."""

    def __init__(self, gain):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 32), nn.Linear(32, 32), nn.Linear(32, 4)
        self.gain = gain

    def forward(self, sample, timestep, return_dict=True):
        near = (timestep < 0.5).float().reshape(-1, 1, 1)
        x = self.first(sample.flatten(2).mT) * (1 + (self.gain - 1) * near)
        return (self.last(self.middle(x)).mT.reshape(sample.shape),)


ENDS_FLOAT = Policy("flat", roles={Role.INPUT: FLOAT, Role.OUTPUT: FLOAT})


def recorded(rows=ROWS, seed=3):
    make = torch.Generator().manual_seed(seed)
    sample = torch.randn(CALLS, rows, 4, 6, 6, generator=make)
    outliers = torch.rand(sample.shape, generator=make) < 1e-3
    sample[outliers] *= 4
    return Trajectory(sample, torch.arange(CALLS).flip(0).float(), {})


def burst_error(method, gain):
    """Relative error at the last call, where the image is finished; 4-bit middle layer."""
    torch.manual_seed(0)
    network = Burst(gain).eval().requires_grad_(False)
    trajectory = recorded()
    graph = trace(network, trajectory.sample[0, :2], timestep=trajectory.timestep[:1])
    ctx = MethodContext(
        network, graph, trajectory, Bits(8, 4), ENDS_FLOAT, "paper", 0, Effort(100, 0)
    )
    made = method().run(ctx)
    held = recorded(seed=4)
    points = held.pick(torch.full((ROWS,), CALLS - 1), torch.arange(ROWS))
    with torch.no_grad():
        target = points.call(network)
        return float((made.run(points) - target).square().mean() / target.square().mean())


def test_steps_near_the_image_win_where_activations_grow_there():
    ours = burst_error(PTQ4DM, 4.0)
    assert 1.5 * ours <= burst_error(RoundToNearest, 4.0)
    assert 2 * ours <= burst_error(uniform_steps, 4.0), "the gain is not the steps'"
    assert 3 * ours <= burst_error(min_max, 4.0), "the gain is not the search's"


def test_steps_do_not_matter_where_all_are_alike():
    ours, uniform = burst_error(PTQ4DM, 1.0), burst_error(uniform_steps, 1.0)
    assert ours == pytest.approx(uniform, rel=0.1)


def test_points_are_the_samplers_own_inputs_at_their_timesteps(pixel):
    ctx = pixel.context(Bits(8, 8), "paper", Effort(24, 0))
    points = ctx.draw(PTQ4DM().steps(24, PAPER))
    assert len(points) == 24  # exactly what was asked
    start = pixel.trajectory.sample[0]
    again = sampled(pixel.model, start, {})  # the sampler once more, from the same noise
    for sample, timestep, step in zip(points.sample, points.timestep, points.step, strict=True):
        same = (again.sample[step] == sample).flatten(1).all(1)
        assert same.any(), "no input of the sampler"
        assert timestep == again.timestep[step], "not the timestep that it was fed with"


def test_steps_are_the_censored_normal_of_the_release():
    policy = PTQ4DM().steps(20000, PAPER)
    assert isinstance(policy, CensoredNormalCalls)
    wide = Trajectory(torch.zeros(250, 1, 1), torch.arange(250).flip(0), {})
    share = policy.counts(wide, seed=0) / 20000
    for call, mass in ((249, 0.161), (0, 0.068)):  # t = 0 is the last call
        sigma = math.sqrt(mass * (1 - mass) / 20000)
        assert abs(float(share[call]) - mass) < 3 * sigma + 5e-4


def test_more_points_than_images_repeat_instead_of_failing(pixel):
    ctx = pixel.context(Bits(4, 4), "paper", Effort(31, 0, 31))  # 8 images, 4 calls
    model = PTQ4DM().run(ctx)
    assert ctx.calibration["ranges"]["points"] == 31
    assert max(ctx.calibration["ranges"]["steps"].values()) > 8
    assert model.layers


def test_release_pairs_samples_with_mirrored_unmapped_labels():
    trajectory = replace(recorded(), timestep=torch.arange(CALLS).flip(0) * 50.0)
    policy = CensoredNormalCalls(64, repeat=True)
    meant = policy.draw(trajectory, 1)
    points = PTQ4DM().steps(64, RELEASE).draw(trajectory, 1)
    label = points.timestep
    assert torch.equal(label, meant.timestep / 50), "the label is t, not the model's timestep"
    assert torch.equal(points.step, (label.long() + 1).clamp(max=CALLS - 1))
    for sample, step in zip(points.sample, points.step, strict=True):
        assert (trajectory.sample[step] == sample).flatten(1).all(1).any()
    counts = Mislabelled(policy).counts(trajectory, 1)
    assert counts.tolist() == [points.histogram().get(k, 0) for k in range(CALLS)]
    # the cleanest label is on one of the noisiest samples
    assert set(points.step[label == 0].tolist()) == {1}


def test_variants_search_as_said(pixel):
    method = PTQ4DM()
    assert method.search(PAPER) is mse_range
    assert method.search(RELEASE) is mse_1d_range
    assert min_max().search(RELEASE) is minmax_range
    assert isinstance(uniform_steps().steps(8, PAPER), UniformStride)
    ours, theirs = (
        method.run(pixel.context(Bits(4, 4), variant, Effort(24, 0))).state()
        for variant in ("paper", "release")
    )
    moved = [n for n in ours if n.endswith("scale") and not torch.equal(ours[n], theirs[n])]
    assert len(moved) > len(ours) // 8


def test_weights_and_activations_have_one_range_a_channel_and_one_a_tensor(pixel):
    model = PTQ4DM().run(pixel.context(Bits(4, 4), "paper", Effort(16, 0)))
    for layer in model.layers.values():
        (part,) = layer.parts
        assert part.static.scale.shape == ()
        assert part.weight_quantizer.scale.numel() == layer.weight.shape[0]
        assert part.static.steps == 0


def test_averaged_ranges_follow_the_windows(pixel):
    ctx = pixel.context(Bits(8, 8), "paper", Effort(24, 0))
    points = ctx.draw(UniformStride(24))

    def layer_of(calibrate):
        model = ctx.wrap()
        model.set_weight_ranges(minmax_range)
        calibrate(model)
        return model.layers["conv_in"].only_part.static.scale

    whole = layer_of(lambda m: calibrate_activations(m, points, minmax_range))
    one = layer_of(lambda m: calibrate_averaged(m, points, minmax_range, seed=5))
    assert torch.allclose(one, whole, rtol=1e-6)
    three = layer_of(
        lambda m: calibrate_averaged(m, points, minmax_range, seed=5, momentum=0.5, window=8)
    )
    order = torch.randperm(24, generator=torch.Generator().manual_seed(5))
    running = EmaRange(0.5)
    for start in (0, 8, 16):  # conv_in is fed the samples themselves
        x = points.sample[order[start : start + 8]]
        running = running.update(x.min().clamp(max=0), x.max().clamp(min=0))
    # each window's bounds lie on its grid: half a step off at most
    assert three == pytest.approx(float(running.params(8).scale), rel=0.01)
    assert three < whole


@pytest.mark.parametrize("variant", ["paper", pytest.param("release", marks=pytest.mark.slow)])
def test_conforms(variant, monkeypatch):
    monkeypatch.setattr(PTQ4DM, "supports", Capabilities(variants=(variant,)))
    results = check("ptq4dm", effort=Effort(samples=8, iterations=0))
    assert [f"{r.name} on {r.model}: {r.detail}" for r in results if not r.passed] == []
    assert {"ndtc matters", "mse_ranges matters"} <= {r.name for r in results}
