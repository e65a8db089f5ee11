"""MPQ-DM: exact mean widths, relation distillation that has a gradient, where each idea wins."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from quantarena.methods import hyper_parameters
from quantarena.methods.core.affine import fake_quantize
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.packed.pack import observe, pack
from quantarena.methods.core.packed.parity import parity
from quantarena.methods.core.quantizers.weight import Rounding, WeightQuantizer
from quantarena.methods.info import Capabilities, Effort
from quantarena.methods.mpq_dm import (
    RECIPES,
    MpqDm,
    candidates,
    kurtosis,
    relation_loss,
    smooth_layers,
    spread,
)
from quantarena.methods.rtn import RoundToNearest
from quantarena.methods.techniques.calibrate.channel_widths import (
    best_swap,
    channel_errors,
    swapped_widths,
)
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.ranges.mse import mse_range
from quantarena.methods.testing.conformance import check

CALLS = 4
HEAVY = torch.arange(20) % 2 == 0


class Layers(nn.Module):
    """Three linears, the middle one in question."""

    def __init__(self, inputs=64):
        super().__init__()
        self.first, self.middle = nn.Linear(4, inputs), nn.Linear(inputs, 20)
        self.last = nn.Linear(20, 4)

    def gains(self, timestep):
        return torch.ones(1, 1, 1)

    def forward(self, sample, timestep=None, return_dict=True):
        gain = self.gains(timestep)
        x = torch.tanh(self.first(sample.flatten(2).mT)) * gain
        return (
            self.last(torch.tanh(self.middle(x / gain.amin(-1, True)))).mT.reshape(sample.shape),
        )


class Tails(Layers):
    """Every other output has one outlier, so coarse steps; the rest has two values and is exact."""

    def __init__(self):
        super().__init__()
        with torch.no_grad():
            self.middle.weight[HEAVY, 7] = 0.9
            self.middle.weight[~HEAVY] = 0.1 * (self.middle.weight[~HEAVY] > 0)


class Imbalanced(Layers):
    """Input channels of the middle layer differ a thousandfold, its weights undo it."""

    def gains(self, timestep):
        return torch.logspace(-1.5, 1.5, 64)

    def __init__(self):
        super().__init__()
        with torch.no_grad():
            self.middle.weight /= self.gains(None) / self.gains(None).amin()


class Stepped(Layers):
    """Activations 50 times larger at the last sampler call than at the first."""

    def gains(self, timestep):
        return 50.0 ** (timestep / (CALLS - 1)).reshape(-1, 1, 1)

    def forward(self, sample, timestep=None, return_dict=True):
        gain = self.gains(timestep)
        x = torch.tanh(self.first(sample.flatten(2).mT)) * gain
        return (self.last(torch.tanh(self.middle(x) / gain)).mT.reshape(sample.shape),)


def variant(**off):
    """MPQ-DM with some of its ideas set otherwise."""
    return lambda: MpqDm(MpqDm.Options(**off))


def test_widths_by_kurtosis_beat_rtn_where_tails_differ(judged):
    network = Tails()
    made, mixed = judged(MpqDm, network, Bits(3, 8))
    rtn = judged(RoundToNearest, network, Bits(3, 8))[1]
    equal = judged(variant(mixed=False), network, Bits(3, 8))[1]
    assert made.layers["middle"].parts[0].weight_quantizer.bit_map.tolist() == [4, 2] * 10
    assert rtn >= 2.5 * mixed
    assert equal >= 2.0 * mixed, "the gain is not the widths'"


@pytest.mark.parametrize(
    ("network", "off", "factor"),
    [(Imbalanced, {"smoothing": False}, 5.0), (Stepped, {"per_call": False}, 5.0)],
)
def test_activation_ideas_beat_rtn_where_their_structure_is(judged, network, off, factor):
    network = network()
    rtn, ours, without = (
        judged(method, network, Bits(8, 4))[1] for method in (RoundToNearest, MpqDm, variant(**off))
    )
    assert rtn >= factor * ours
    assert without >= factor * ours, f"the gain is not {off}'s"


def test_fine_tuning_beats_rtn_and_needs_its_updates(pixel):
    def judged(method, iterations):
        made = method().run(pixel.context(Bits(3, 8), "paper", Effort(24, iterations)))
        with torch.no_grad():
            target = pixel.heldout.call(pixel.model)
            return float((made.run(pixel.heldout) - target).square().mean())

    tuned = judged(variant(lora_lr=0.02), 160)
    assert judged(RoundToNearest, 0) >= 1.2 * tuned
    assert judged(variant(finetune=False), 0) >= 1.4 * tuned


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_mean_bits_are_exact_and_masks_partition(probe, bits):
    made = variant(finetune=False)().run(probe.context(Bits(bits, 8), "paper", Effort(16, 0)))
    # random weights have no heavy tails: take a swap where the search found none
    for layer in made.layers.values():
        quantizer = layer.parts[0].weight_quantizer
        count = len(layer.weight) // 10 * 2
        if layer.bits.weight == bits and count:
            widths = swapped_widths(kurtosis(layer.weight), bits, count)
            groups = [int((widths == bits + d).sum()) for d in (-1, 0, 1)]
            assert groups == [count, len(widths) - 2 * count, count]
            quantizer.set_bit_map(widths)
            layer.set_weight_ranges(minmax_range, symmetric=False)
            layer.freeze()
    packed = pack(made)
    assert parity(made, packed, probe.heldout).max_rel <= 1e-5
    seen = observe(made, packed, probe.model)  # refuses a mean that is not the declared width
    eight = [info for n, info in probe.graph.layers.items() if made.layers[n].bits.weight == 8]
    share = sum(i.weights for i in eight) / sum(i.weights for i in probe.graph.layers.values())
    assert seen.code_bits == pytest.approx(bits + (8 - bits) * share, abs=1e-6)
    other = probe.context(Bits(bits, 8), "paper", Effort(16, 0)).wrap()
    other.load_state(made.state())
    with torch.no_grad():
        assert torch.equal(other.run(probe.heldout), made.run(probe.heldout))


def test_a_heavy_channel_is_among_the_wider():
    weight = torch.randn(20, 40)
    weight[13, 5] = 30.0
    scores = kurtosis(weight)
    assert int(scores.argmax()) == 13
    assert int(swapped_widths(scores, 4, 2)[13]) == 5
    rows = weight.double()
    centred = rows - rows.mean(1, keepdim=True)
    wanted = centred.pow(4).mean(1) / rows.std(1).pow(4)
    assert torch.allclose(scores.double(), wanted, rtol=1e-5)
    assert kurtosis(torch.ones(3, 4)).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("channels", "most", "wanted"),
    [
        (9, 5, [0]),
        (10, 5, [0, 1, 2, 3, 4, 5]),
        (64, 5, [0, 6, 12, 18, 24, 30]),
        (64, 1, [0, 6]),
    ],
)
def test_candidates_are_tenths_of_the_channels(channels, most, wanted):
    assert candidates(channels, most) == wanted


def test_smoothing_keeps_the_function(probe):
    model = probe.context(Bits(4, 8), "paper", Effort(16, 0)).wrap()
    smooth_layers(model, probe.heldout)
    assert all(layer.input_factor is not None for layer in model.layers.values())
    with torch.no_grad(), model.using(weights=False, acts=False):
        target = probe.heldout.call(probe.model)
        gap = (model.run(probe.heldout) - target).abs().max() / target.abs().max()
    assert float(gap) <= 1e-5


def test_relation_is_zero_for_equals_and_blind_to_scale_and_rotation():
    features = [torch.randn(2, 6, 3, 4) for _ in range(2)]
    others = [f + 0.3 * torch.randn(f.shape) for f in features]
    loss = relation_loss(others, features)
    assert float(loss) > 1e-4
    assert float(relation_loss(features, features)) == pytest.approx(0.0, abs=1e-5)
    assert torch.allclose(relation_loss([7 * f for f in others], features), loss, rtol=1e-4)
    turn = torch.linalg.qr(torch.randn(6, 6))[0]
    turned = [torch.einsum("ij,bjhw->bihw", turn, f) for f in others]
    assert torch.allclose(relation_loss(turned, features), loss, rtol=1e-3)
    tokens = [[f.flatten(2).transpose(1, 2) for f in side] for side in (others, features)]
    assert torch.allclose(relation_loss(*tokens), loss, rtol=1e-5)


def test_relation_is_the_formula_written_out():
    ours, theirs = ([torch.randn(1, 3, 2, 2) for _ in range(2)] for _ in range(2))
    total = 0.0
    probabilities = []
    for side in (theirs, ours):
        mean = ((side[0] + side[1]) / 2)[0].flatten(1).T
        unit = [row / row.norm() for row in mean]
        rows = [torch.stack([a @ b for b in unit]).softmax(0) for a in unit]
        probabilities.append(rows)
    for wanted, found in zip(*probabilities, strict=True):
        total += float((wanted * (wanted / found).log()).sum())
    assert float(relation_loss(ours, theirs)) == pytest.approx(total, rel=1e-3)


def test_relation_pulls_and_its_branch_is_not_detached():
    ours = [torch.randn(2, 6, 3, 3, requires_grad=True) for _ in range(2)]
    relation_loss(ours, [torch.randn(2, 6, 3, 3) for _ in range(2)]).backward()
    assert all(float(f.grad.abs().max()) > 0 for f in ours)


def test_release_has_no_relation_and_two_candidates(pixel):
    effort = Effort(16, 4)
    models = {
        name: MpqDm().run(pixel.context(Bits(3, 8), name, effort)) for name in ("paper", "release")
    }
    features = {name: m.notes["distillation"]["feature"] for name, m in models.items()}
    assert features == {"paper": "up_blocks.1.resnets.1", "release": ""}
    for entry in models["release"].notes["widths"].values():
        assert entry["widened"] in (0, entry["channels"] // 10)
        assert entry["error"] <= 1.0
    assert models["paper"].notes["distillation"]["updates"] == pixel.trajectory.calls, "one walk"


def test_release_compares_widths_by_the_error_of_weights_alone(pixel):
    for name in RECIPES:
        context = pixel.context(Bits(3, 4), name, Effort(16, 0))
        points = spread(context.range_points(), 32)
        made, recipe = MpqDm().run(context), RECIPES[name]
        noted = {layer: entry["error"] for layer, entry in made.notes["widths"].items()}
        found = {}
        for quantized in (False, True):
            errors = channel_errors(made, points, noted, recipe.search, quantized_inputs=quantized)
            found[quantized] = {layer: error(made, layer, errors, recipe) for layer in noted}
        assert noted == pytest.approx(found[name == "paper"], abs=1e-3)
        assert noted != pytest.approx(found[name == "release"], abs=1e-3)


def error(model, layer, errors, recipe):
    """Output error with the best count of swapped channels over that with none."""
    score = kurtosis(model.layers[layer].weight)
    totals = best_swap(errors[layer], score, candidates(len(score), recipe.most))[1]
    return float(totals.min() / totals[0])


def test_release_starts_with_one_range_at_all_steps(pixel):
    for name, copied in (("paper", False), ("release", True)):
        context = pixel.context(Bits(4, 4), name, Effort(16, 0))
        for layer in MpqDm().run(context).layers.values():
            scale = layer.parts[0].static.scale
            assert scale.shape == (4,)
            if copied:
                assert bool((scale == scale[0]).all())


def test_merged_weight_requantizes_to_the_frozen_codes():
    weight, quantizer = torch.randn(12, 20), WeightQuantizer(3)
    quantizer.set_bit_map(swapped_widths(kurtosis(weight), 3, 2))
    quantizer.find_params(weight, mse_range, symmetric=False)
    quantizer.learn(weight, rounding=Rounding.LORA, scale=True, rank=4)
    with torch.no_grad():
        quantizer.lora_up.normal_()
        merged = weight + 1.0 * quantizer.lora_up @ quantizer.lora_down
        learned, params = quantizer(weight).clone(), quantizer.params
        apart = fake_quantize(weight, params) + quantizer.lora_up @ quantizer.lora_down
        assert torch.equal(learned, fake_quantize(merged, params))
        assert not torch.allclose(learned, apart, atol=0.05), "merging changes nothing here"
    quantizer.freeze(weight)
    assert quantizer.lora_up is None
    assert torch.equal(quantizer(weight), learned)


def test_ranges_follow_the_call_through_split_batches(pixel):
    made = variant(finetune=False)().run(pixel.context(Bits(4, 4), "paper", Effort(16, 0)))
    mixed = pixel.heldout.rows(torch.tensor([7, 0, 5, 2]))
    with torch.no_grad():
        whole = made.run(mixed)
        parts = torch.cat([made.run(part) for part in mixed.batches(1)])
    assert torch.allclose(whole, parts, atol=1e-5)
    assert F.mse_loss(whole, mixed.call(pixel.model)) > 0


def test_lengths_are_the_papers():
    schedule = MpqDm().schedule(Effort(128, 20_000), 20)
    assert (schedule.updates, schedule.rank, schedule.reduction) == (16_000, 32, "sum")
    assert schedule.groups == hyper_parameters.MPQ_DM.groups
    assert (MpqDm.Options().relation, MpqDm.Options().window) == (100.0, 2)
    assert MpqDm().schedule(Effort(128, 0), 20).updates == 0


def test_walks_are_finished_and_rates_fit_their_number():
    """Every sampler call learns equally often, and a longer run drifts no further."""
    for iterations, updates in ((1, 20), (100, 80), (101, 100), (400, 320), (6_400, 5_120)):
        found = MpqDm().schedule(Effort(128, iterations), 20)
        assert found.updates == updates
        travelled = {name: group.lr * updates for name, group in found.groups.items()}
        assert travelled["lora"] == pytest.approx(min(0.01 * updates, 1.6))
        assert travelled["weight_scale"] <= 0.4 + 1e-9
        assert travelled["act_scale"] <= 0.8 + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper", "release"])
def test_conformance(name, monkeypatch):
    others = {"paper": "release", "release": "paper"}
    monkeypatch.setattr(MpqDm, "supports", Capabilities(variants=(name, others[name])))
    if name == "release":  # which never has the term
        monkeypatch.setattr(
            MpqDm, "switches", {k: v for k, v in MpqDm.switches.items() if k != "relation"}
        )
    results = check("mpq_dm", effort=Effort(samples=8, iterations=4))
    assert {(r.name, r.model): r.detail for r in results if not r.passed} == {}
