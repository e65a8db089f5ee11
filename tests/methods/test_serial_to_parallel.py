"""Serial-to-Parallel: consistent with full precision on its own walk, and what each part is for."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from quantarena.methods.contract import MethodContext
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.clock import CallSchedule
from quantarena.methods.core.errors import UserError
from quantarena.methods.core.model.policy import BUDGET, UNIFORM
from quantarena.methods.core.packed.pack import observe, pack
from quantarena.methods.core.packed.parity import parity
from quantarena.methods.core.record.announce import announcing
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.core.trace.network import Role, trace
from quantarena.methods.info import Effort
from quantarena.methods.rtn import RoundToNearest
from quantarena.methods.serial_to_parallel import SerialToParallel
from quantarena.methods.techniques.distill import serial_parallel as module
from quantarena.methods.testing.conformance import check

CALLS, IMAGES, HELD = 10, 12, 6
KEEP, TAKE = 1.1, -0.35


def variant(**options):
    """The method with some of its options set otherwise."""
    return lambda: SerialToParallel(SerialToParallel.Options(**options))


class Drifting(nn.Module):
    """A small denoiser that amplifies what it is fed, so errors carry a walk away."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.middle = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, sample, timestep=None, return_dict=True):
        gain = self.gain(timestep)
        x = torch.nn.functional.silu(self.first(sample)) * gain
        x = torch.nn.functional.silu(self.middle(x) / gain)
        return (sample + 2.0 * self.last(x),)

    def gain(self, timestep):
        return 1.0


class Stepped(Drifting):
    """Activations 40 times larger at the last call than at the first."""

    def gain(self, timestep):
        return 40.0 ** (timestep.float() / (CALLS - 1)).reshape(-1, 1, 1, 1)


def step(sample, prediction):
    return KEEP * sample + TAKE * prediction


class Restored(Drifting):
    """Full precision keeps its third channel near zero; rounding drives it away.

    Rows 8 to 15 of the middle layer cancel rows 0 to 7 in that channel. An outlier on an input that
    is always zero makes their steps coarse, so codes do not cancel. What pulls the channel back,
    ``guard``, has a range from recorded walks, on which there is next to nothing to pull.
    """

    def __init__(self):
        super().__init__()
        self.guard = nn.Conv2d(1, 1, 1, bias=False)
        with torch.no_grad():
            self.guard.weight.fill_(2.0)
            self.first.weight[:, 2], self.first.weight[15], self.first.bias[15] = 0, 0, 0
            self.middle.weight[8:] = self.middle.weight[:8]
            self.middle.bias[8:] = self.middle.bias[:8]
            self.middle.weight[8:, 15, 1, 1] = 2.0
            self.last.weight[2, 8:], self.last.bias[2] = -self.last.weight[2, :8], 0

    def forward(self, sample, timestep=None, return_dict=True):
        moved = super().forward(sample, timestep)[0] - nn.functional.pad(
            sample[:, 2:], (0, 0, 0, 0, 2, 0)
        )
        return (moved + nn.functional.pad(self.guard(sample[:, 2:]), (0, 0, 0, 0, 2, 0)),)


class Related(Drifting):
    """The channels that the middle layer reads depend on each other."""

    def __init__(self):
        super().__init__()
        with torch.no_grad():
            few = self.first.weight[:3].repeat(6, 1, 1, 1)[:16]
            self.first.weight.mul_(0.1).add_(few)


@torch.no_grad()
def walks(network, sample, clock=None):
    """Samples at every call of the sampler, (S + 1, N, ...)."""
    found = [sample]
    for call in range(CALLS):
        times = torch.full((len(sample),), float(call))
        if clock is not None:
            clock.set(call)
        found.append(step(found[-1], network(found[-1], timestep=times, return_dict=False)[0]))
    return torch.stack(found)


@pytest.fixture(scope="module")
def toys():
    """By network: what a method gets, held-out noise, and full precision's images of it."""
    found = {}
    for kind in (Drifting, Stepped, Restored, Related):
        torch.manual_seed(0)
        network = kind().eval().requires_grad_(False)
        noise = torch.randn(IMAGES + HELD, 3, 8, 8)
        if kind is Restored:
            noise[:, 2] *= 0.02
        full = walks(network, noise)
        times = torch.arange(CALLS).float()
        schedule = CallSchedule("", tuple(times.tolist()))
        recorded = Trajectory(full[:-1, :IMAGES], times, {}, schedule=schedule)
        graph = trace(network, noise[:2], timestep=times[:1].expand(2))

        def context(bits, iterations, network=network, graph=graph, recorded=recorded):
            effort = Effort(CALLS * IMAGES, iterations)
            return MethodContext(network, graph, recorded, bits, UNIFORM, "paper", 0, effort)

        found[kind] = (context, noise[IMAGES:], full[-1, IMAGES:])
    return found


def final_error(toys, kind, method, bits, iterations=100):
    """Relative squared error of the finished images, of noise that the method has not seen."""
    context, noise, target = toys[kind]
    made = method().run(context(bits, iterations))
    image = walks(made.module, noise, made.clock)[-1]
    return float((image - target).square().mean() / target.square().mean())


def test_untouched_quantizers_walk_bit_for_bit_as_full_precision(toys):
    context, noise, target = toys[Stepped]
    made = variant(rounds=0)().run(context(Bits(4, 4), 0))
    with made.using(weights=False, acts=False):
        assert torch.equal(walks(made.module, noise, made.clock)[-1], target)


def test_its_own_walk_is_what_it_learns_from(toys):
    """Full precision's walks do not show where rounding leads; one walk without batches is slow."""
    scales = {
        "weight_lr": 0.0,
        "weight_scale_lr": 6e-3,
        "act_scale_lr": 0.03,
        "window": 5,
        "batch": 24,
        "rounds": 2,
    }
    ours, alone, serial, untrained = (
        final_error(toys, Restored, variant(**{**scales, **options}), Bits(3, 8), 200)
        for options in ({"epochs": 2}, {"serial": False, "epochs": 3}, {"epochs": 0}, {"rounds": 0})
    )
    assert untrained >= 4 * ours
    assert alone >= 2 * ours, "with more updates on full precision's samples, so the gain is theirs"
    assert serial >= 2 * ours, "the parallel stage adds nothing"


def test_ranges_by_call_win_where_activations_follow_the_call(toys):
    ours, shared, rtn = (
        final_error(toys, Stepped, method, Bits(8, 4))
        for method in (SerialToParallel, variant(per_call=False), RoundToNearest)
    )
    assert rtn >= 3 * ours
    assert shared >= 1.5 * ours, "the gain is not the ranges'"


def test_weights_start_better_where_columns_make_errors_good(toys):
    """Inputs that depend on each other: what one column loses, the next ones can give back."""
    for options in ({"rounds": 0}, {}):
        ours, nearest = (
            final_error(toys, Related, variant(column_start=start, **options), Bits(3, 8))
            for start in (True, False)
        )
        assert nearest >= 1.5 * ours, options


def test_another_number_of_steps_is_an_error(pixel):
    from diffusers import DDIMScheduler

    made = variant(rounds=0)().run(pixel.context(Bits(4, 4), "paper", Effort(16, 0)))
    scheduler = DDIMScheduler()
    with (
        pytest.raises(UserError, match="calibrated for 4 calls"),
        announcing(scheduler, made.clock),
    ):
        scheduler.set_timesteps(8)


def test_it_learns_packs_and_says_what_it_cost(probe):
    context = probe.context(Bits(4, 4), "paper", Effort(16, 4))
    made = SerialToParallel().run(context)
    packed = pack(made)
    assert parity(made, packed, probe.heldout.rows(slice(0, 4))).max_rel <= 1e-5
    observe(made, packed, probe.model)  # refuses widths that were not declared
    notes = made.notes["learning"]
    calls, rows = probe.trajectory.calls, probe.trajectory.rows
    assert notes["updates"] == {"serial": calls // 2, "parallel": calls * rows // 8}
    assert made.notes["training"]["rows"] == 2 * calls * rows
    walked = context.calibration["walks"]["points"]
    assert notes["full_precision_rows"] == 2 * walked, "recorded walks and those that were met"
    assert context.calibration["ranges"]["images"] == probe.trajectory.images
    assert notes["step_fit"] >= 0
    again = SerialToParallel().run(probe.context(Bits(4, 4), "paper", Effort(16, 4)))
    ours, theirs = made.state(), again.state()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_lengths_follow_the_preset(toys):
    for iterations, rounds in ((0, 0), (20, 1), (100, 1), (160, 2)):
        ticks = []
        context = toys[Drifting][0](Bits(8, 8), iterations)
        context = replace(context, progress=lambda *tick, ticks=ticks: ticks.append(tick))
        made = variant(epochs=0, window=5)().run(context)
        assert len(ticks) == 4 * rounds, "12 images walk in two lots, each ten calls in two windows"
        assert ("learning" in made.notes) == (rounds > 0)


@pytest.mark.parametrize("policy", [UNIFORM, BUDGET], ids=lambda policy: policy.name)
def test_tables_of_quantized_time_layers_change_no_output_bit(probe, policy):
    context = replace(probe.context(Bits(4, 4), "paper", Effort(16, 4)), policy=policy)
    fast = {"steps": (-1, 1), "points": 8, "mixed": policy is UNIFORM}
    made, without = (variant(tables=tables, **fast)().run(context) for tables in (True, False))
    assert made.tables
    assert made.replaced.keys() == made.tables.keys() == without.layers.keys() - made.layers.keys()
    points = context._table_points()  # sums are in one order where the batch is the same
    for call in range(context.trajectory.calls):
        here = points.rows(points.step == call)
        with torch.no_grad():
            assert torch.equal(made.run(here), without.run(here))
    packed = pack(made)
    assert parity(made, packed, probe.heldout).max_rel <= 1e-5
    seen = observe(made, packed, probe.model, context.budget)
    assert seen.bops < observe(without, pack(without), probe.model, context.budget).bops
    other = context.restore({}, made.notes)
    other.load_state(made.state())
    with torch.no_grad():
        assert torch.equal(other.run(probe.heldout), made.run(probe.heldout))


def test_bits_go_to_layers_that_matter_at_the_same_mean(judged, uneven):
    (made, ours), (_, equal) = (
        # the start by columns mends a part of what equal widths lose, and is another idea
        judged(variant(mixed=mixed, column_start=False), uneven, Bits(3, 8), BUDGET)
        for mixed in (True, False)
    )
    assert equal >= 3 * ours
    widths = [made.layers[f"middle.{i}"].bits.weight for i in range(6)]
    assert min(widths[1], widths[4]) > 3 > max(widths[0], widths[2])


def test_layers_that_become_tables_keep_their_widths(pixel):
    """They do not run: bits taken from them would be bits that nobody sees."""
    context = replace(pixel.context(Bits(4, 8), "paper", Effort(16, 0)), policy=BUDGET)
    made = variant(steps=(-2, 1, 2), points=8)().run(context)
    free = context.budget.layers.keys() & made.replaced.keys()
    assert {made.replaced[name].bits for name in free} == {Bits(4, 8)}
    assert len({layer.bits.weight for layer in made.layers.values()}) > 2
    observe(made, pack(made), pixel.model, context.budget)


def test_tables_are_of_full_precision_where_the_policy_leaves_time_layers(probe):
    time = {Role.TIME_EMBED, Role.EMB_PROJ}
    names = {n for n, info in probe.graph.layers.items() if info.role in time}
    context = probe.context(Bits(8, 8), "paper", Effort(16, 0))
    context = replace(context, policy=SerialToParallel.published)
    made = SerialToParallel().run(context)
    assert set(made.tables) == names
    assert not set(made.layers) & names
    packed = pack(made)
    assert parity(made, packed, probe.heldout).max_rel <= 1e-5
    without = variant(tables=False)().run(replace(context))
    seen, plain = (observe(m, pack(m), probe.model) for m in (made, without))
    assert seen.bops < plain.bops, "tables cost no products"
    assert seen.packed_bytes < plain.packed_bytes
    # In full precision but for the weights: between quantized activations a last bit moves a code.
    with torch.no_grad(), made.using(weights=True, acts=False):
        tabulated = made.run(probe.heldout)
    with torch.no_grad(), without.using(weights=True, acts=False):
        assert torch.allclose(tabulated, without.run(probe.heldout), atol=1e-5)
    one, two = made.state(), without.state()
    assert one.keys() - two.keys() == {name for name in one if name.startswith("table")}
    for name in one.keys() & two.keys():
        assert torch.allclose(one[name].double(), two[name].double(), rtol=1e-4), name
    other = context.wrap()
    other.load_state(made.state())
    with torch.no_grad():
        assert torch.equal(other.run(probe.heldout), made.run(probe.heldout))


def test_mixed_channels_keep_the_declared_mean_and_help_where_channels_differ(toys):
    class Uneven(Drifting):
        def __init__(self):
            super().__init__()
            with torch.no_grad():
                self.middle.weight[::2] *= 0.01

    context, noise, _ = toys[Drifting]
    torch.manual_seed(0)
    network = Uneven().eval().requires_grad_(False)
    context = context(Bits(3, 8), 0)
    context = replace(context, model=network)
    made, equal = (variant(mixed_channels=mixed)().run(context) for mixed in (True, False))
    note = made.notes["widths"]["middle"]
    assert note["widened"] >= 4
    assert note["error"] <= 0.5
    widths = made.layers["middle"].parts[0].weight_quantizer.bit_map.float()
    assert widths.mean() == 3
    assert widths[::2].mean() < 3 < widths[1::2].mean(), "bits go to the channels that matter"
    packed = pack(made)
    observe(made, packed, network)
    times = torch.zeros(HELD)
    with torch.no_grad(), made.clock.at(0), equal.clock.at(0):
        target = network(noise, timestep=times)[0]
        gaps = [
            (m.module(noise, timestep=times)[0] - target).square().mean() for m in (made, equal)
        ]
    assert gaps[1] >= 1.1 * gaps[0]


def test_options_of_the_second_version_matter(pixel):
    def output(**options):
        made = variant(rounds=3, epochs=2, weight_lr=0.5, **options)()
        made = made.run(pixel.context(Bits(3, 8), "paper", Effort(16, 100)))
        with torch.no_grad():
            return made.run(pixel.heldout), made.notes["learning"]

    plain, notes = output()
    assert notes["frozen"] == 0
    for options in ({"feature_weight": 1.0}, {"freezing": True}, {"serial_first": False}):
        other, found = output(**options)
        assert not torch.equal(other, plain)
        assert (found["frozen"] > 0) == ("freezing" in options)
        more = found["full_precision_rows"] > notes["full_precision_rows"]
        assert more == ("feature_weight" in options), "features cost calls of full precision"


def test_rounds_walk_with_other_images_and_a_long_run_drifts_no_further(toys):
    context = toys[Drifting][0](Bits(8, 8), 300)
    images = []
    plain = module.student_walk

    def seen(walks, chosen, predict):
        images.append(set(chosen.tolist()))
        return plain(walks, chosen, predict)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "student_walk", seen)
        variant(images=4, epochs=0)().run(context)
    assert set.union(*images) == set(range(IMAGES)), "three rounds of four"
    short, long = (
        SerialToParallel().groups(updates)["weight"].lr * updates for updates in (100, 10_000)
    )
    assert short == pytest.approx(0.5)
    assert long == pytest.approx(2.0)


@pytest.mark.slow
def test_conformance():
    results = check("serial_to_parallel", effort=Effort(samples=8, iterations=4))
    assert {(r.name, r.model): r.detail for r in results if not r.passed} == {}
