"""The reconstruction engine: what it reads, what it learns, what it leaves behind."""

import dataclasses
import functools

import pytest
import torch

from quantarena.methods.techniques.learn import optimise
from quantarena.methods.techniques.learn.losses import RoundingTerm, layer_loss
from quantarena.methods.techniques.learn.param_groups import Group
from quantarena.methods.techniques.learn.reconstruct import reconstruct
from quantarena.methods.techniques.learn.schedule import Schedule

SPLIT = "up_blocks.1.resnets.0"


FIRST = "down_blocks.0.resnets.0"


def rounding(iterations, lr=0.1, **options):
    return Schedule(iterations, {"rounding": Group(lr)}, batch=8, **options)


QUICK = rounding(60)


def quantizers(model, block):
    return [
        (part.weight_quantizer, model.layers[name].part_weight(part))
        for name in block.layers
        for part in model.layers[name].parts
    ]


def codes(model, block):
    return torch.cat([q.codes.reshape(-1) for q, _ in quantizers(model, block)])


def inputs_of(model, names, points):
    seen = {}

    def note(name, module, args):
        seen.setdefault(name, args[0])

    handles = [
        model.get_submodule(n).register_forward_pre_hook(functools.partial(note, n)) for n in names
    ]
    with torch.no_grad():
        points.call(model)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("chunk", [0, 6])
def test_inputs_from_the_quantized_prefix_targets_from_full_precision(
    pixel, ground, watched, chunk
):
    model, blocks, points = ground
    names = list(blocks)[: list(blocks).index(SPLIT) + 1]
    schedule = rounding(4, mix=0.5)
    reconstruct(
        model, [blocks[n] for n in names], points, schedule, acts=False, seed=0, chunk=chunk
    )
    outputs = {}
    for name in names:
        pixel.model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: outputs.setdefault(name, output)
        )
    full = inputs_of(pixel.model, names, points)
    for name in names:
        pixel.model.get_submodule(name)._forward_hooks.clear()
    with model.using(weights=True, acts=False):
        ours = inputs_of(model.module, names, points)
    close = {"rtol": 1e-4, "atol": 1e-4}
    for ground_of in watched:
        name = ground_of.block.name
        assert torch.allclose(ground_of.target, outputs[name], **close), name
        assert torch.allclose(ground_of.full, full[name], **close), name
        assert torch.allclose(ground_of.inputs.stream, ours[name], **close), name
    late = watched[-1]
    assert (late.inputs.stream - late.full).abs().max() > 1e-2, "the prefix is not quantized"


def test_every_prefix_is_computed_once(ground):
    model, blocks, points = ground
    calls = []
    model.module.conv_in.register_forward_hook(lambda _, args, __: calls.append(len(args[0])))
    late = [b for n, b in blocks.items() if n not in ("time_embedding", "conv_in")]
    reconstruct(model, late, points, rounding(2), acts=False, seed=0)
    model.module.conv_in._forward_hooks.clear()
    assert calls.count(len(points)) == 2, "once quantized, once in full precision"
    assert sum(calls) <= 2 * len(points) + 6, "a few more points show what has rows"


def test_chunks_change_nothing_but_memory(make, cut, pixel, points):
    found = []
    for chunk in (0, 6):
        model = make(pixel)
        blocks = cut(model, points)
        reports = reconstruct(model, blocks, points, rounding(8), acts=False, seed=3, chunk=chunk)
        found.append((torch.cat([codes(model, b) for b in blocks]), [r.after for r in reports]))
    assert (found[0][0] == found[1][0]).float().mean() > 0.99  # sums differ in their last bits
    assert found[0][1] == pytest.approx(found[1][1], rel=0.1)


def test_files_of_rows_leave_nothing_behind(ground, tmp_path):
    model, blocks, points = ground
    some = [blocks[FIRST], blocks["mid_block"]]
    (first, _) = reconstruct(
        model, some, points, rounding(2), acts=False, seed=0, chunk=5, folder=tmp_path
    )
    assert first.cached_bytes > 0
    assert not list(tmp_path.iterdir())


def decided(monkeypatch, model, block, points, schedule):
    """Soft roundings at the end, part by part."""
    from quantarena.methods.techniques.learn.learning import Learning

    soft = []
    original = Learning.finish

    def finish(self):
        soft.extend(s.rounding().detach() for s in self.soft_roundings)
        return original(self)

    monkeypatch.setattr(Learning, "finish", finish)
    reconstruct(model, [block], points, schedule, acts=False, seed=0)
    return soft


def test_regulariser_reaches_zero_in_both_halves(ground, monkeypatch):
    model, blocks, points = ground
    soft = decided(monkeypatch, model, blocks[SPLIT], points, rounding(200))
    assert len(soft) == 1 + len(blocks[SPLIT].layers), "the split layer has two halves"
    for value in soft:
        assert (1 - (2 * value - 1).abs().pow(2)).mean() < 0.01


def test_no_regulariser_leaves_rounding_soft(ground, monkeypatch):
    model, blocks, points = ground
    schedule = rounding(60, 1e-2, rounding=RoundingTerm(strength=0.0))
    soft = decided(monkeypatch, model, blocks[SPLIT], points, schedule)
    undecided = torch.cat([value.reshape(-1) for value in soft])
    assert ((undecided > 0.05) & (undecided < 0.95)).float().mean() > 0.3


def test_hardening_gap_is_reported(ground):
    model, blocks, points = ground
    block = blocks[SPLIT]
    soft = rounding(60, rounding=RoundingTerm(strength=0.0))
    (report,) = reconstruct(model, [block], points, soft, acts=False, seed=0)
    assert report.gap == report.after - report.soft
    assert report.gap > 0.5 * report.soft, "undecided roundings harden at a price"


def test_settled_roundings_stop_early(make, cut, pixel, points):
    taken = []
    for settled in (0.0, 0.02):
        model = make(pixel)
        block = next(b for b in cut(model, points) if b.name == SPLIT)
        schedule = rounding(240, settled=settled)
        (report,) = reconstruct(model, [block], points, schedule, acts=False, seed=0)
        taken.append((report.iterations, report.after))
    assert taken[0][0] == 240
    assert taken[1][0] < 230
    assert taken[1][1] < 1.1 * taken[0][1]


def test_hard_codes_are_neighbours_of_the_weight(ground):
    model, blocks, points = ground
    reconstruct(model, [blocks[SPLIT]], points, QUICK, acts=False, seed=0)
    moved = 0
    for quantizer, weight in quantizers(model, blocks[SPLIT]):
        position = weight / quantizer.scale + quantizer.zero_point
        inside = (position >= 0) & (position <= 2**quantizer.bits - 1)
        assert ((weight - quantizer(weight)).abs() <= 1.0001 * quantizer.scale)[inside].all()
        moved += int((quantizer.codes != position.round().clamp(0, 15))[inside].sum())
    assert moved > 0, "nothing was rounded against the nearest: no learning"


@pytest.mark.parametrize("name", [FIRST, "mid_block", SPLIT])
def test_reconstruction_lowers_the_loss(ground, name):
    model, blocks, points = ground
    (report,) = reconstruct(model, [blocks[name]], points, QUICK, acts=False, seed=0)
    assert report.name == name
    assert report.after < 0.8 * report.before


def test_other_blocks_are_untouched(ground):
    model, blocks, points = ground
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    reconstruct(model, [blocks[SPLIT]], points, QUICK, acts=False, seed=0)
    after = model.module.state_dict()
    changed = {n for n in after if n not in before or not torch.equal(after[n], before[n])}
    assert changed
    assert all(name.startswith(SPLIT) and name.endswith("codes") for name in changed)
    assert not [m for m in model.module.modules() if m._forward_pre_hooks or m._forward_hooks]


def test_zero_iterations_round_to_nearest(ground):
    model, blocks, points = ground
    nearest = [
        (w / q.scale + q.zero_point).round().clamp(0, 15)
        for q, w in quantizers(model, blocks[SPLIT])
    ]
    (report,) = reconstruct(model, [blocks[SPLIT]], points, rounding(0), acts=False, seed=0)
    assert report.iterations == 0
    assert report.before == pytest.approx(report.after, rel=1e-5)
    for (quantizer, _), wanted in zip(quantizers(model, blocks[SPLIT]), nearest, strict=True):
        assert (quantizer.codes.float() == wanted).float().mean() > 0.999


@pytest.fixture
def run_codes(make, cut):
    def run_codes(probe, points, schedule, name="mid_block", seed=5):
        model = make(probe)
        block = next(b for b in cut(model, points) if b.name == name)
        reconstruct(model, [block], points, schedule, acts=False, seed=seed)
        return codes(model, block)

    return run_codes


def test_same_seed_same_codes(run_codes, pixel, points):
    found = [run_codes(pixel, points, QUICK, seed=seed) for seed in (5, 5, 6)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_layer_weight_zero_is_plain_block_reconstruction(run_codes, pixel, points):
    plain, zero, fine = (
        run_codes(pixel, points, dataclasses.replace(rounding(30), **options))
        for options in ({}, {"layers": 0.0}, {"layers": 0.8})
    )
    assert torch.equal(plain, zero)
    assert not torch.equal(plain, fine)


def test_layer_terms_reach_every_layer_but_the_last(ground, watched):
    model, blocks, points = ground
    block, alphas = blocks[FIRST], {}

    def only_layers(step):
        assert [*step.layers] == list(block.layers[:-1])
        if not alphas:
            for name in block.layers:
                part = model.layers[name].parts[0]
                alphas[name] = part.weight_quantizer.soft.alpha
            loss = layer_loss(step, 2.0)
            found = torch.autograd.grad(
                loss, [*alphas.values()], retain_graph=True, allow_unused=True
            )
            grads.update(zip(alphas, found, strict=True))
        return step.output.sum() * 0

    grads = {}
    schedule = rounding(2, layers=0.8, terms=(only_layers,))
    reconstruct(model, [block], points, schedule, acts=False, seed=0)
    *inner, last = block.layers
    assert all(grads[name].abs().max() > 0 for name in inner)
    assert grads[last] is None, "the last layer's output is the block's, it has no term of its own"
    targets = watched[0].layer_targets
    full = {}
    for name in inner:
        model.layers[name].register_forward_hook(lambda m, a, o, n=name: full.setdefault(n, o))
    with torch.no_grad(), model.using(weights=False, acts=False):
        points.call(model.module)
    for name in inner:
        model.layers[name]._forward_hooks.clear()
        assert torch.allclose(targets[name], full[name], rtol=1e-4, atol=1e-4)


def test_user_terms_steer(run_codes, pixel, points):
    def louder(step):
        return 1e3 * (step.output.mean() - step.target.mean() - 1).square()

    plain = run_codes(pixel, points, rounding(30))
    steered = run_codes(pixel, points, rounding(30, terms=(louder,)))
    assert not torch.equal(plain, steered)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixing_takes_that_share_from_full_precision(ground, monkeypatch, share):
    model, blocks, points = ground
    seen = []
    original = optimise.BlockProblem.run

    def spy(self, index, stream=None):
        seen.append((self, index, stream))
        return original(self, index, stream)

    monkeypatch.setattr(optimise.BlockProblem, "run", spy)
    some = [b for n, b in blocks.items() if n in (FIRST, SPLIT)]
    reconstruct(model, some, points, rounding(3, mix=share), acts=False, seed=0)
    trained = [call for call in seen if call[0].block.name == SPLIT and len(call[1]) == 8]
    for where, index, stream in trained:
        if not share:
            assert stream is None
            continue
        ours, full = where.inputs.stream[index], where.full[index]
        assert ((stream == ours) | (stream == full)).all()
        differ = ours != full
        assert float((stream == full)[differ].float().mean()) == pytest.approx(share, abs=0.03)
    assert len(trained) == 3


@pytest.mark.parametrize(
    "groups",
    [
        {"weight": Group(1e-3), "weight_scale": Group(1e-2, relative=True)},
        {"lora": Group(1e-2)},
        {"weight_scale": Group(1e-2, relative=True), "weight_zero": Group(0.05)},
    ],
    ids=lambda groups: "+".join(groups),
)
def test_other_groups_learn(make, cut, pixel, points, groups):
    model = make(pixel)
    block = next(b for b in cut(model, points) if b.name == "mid_block")
    schedule = Schedule(60, groups, batch=8, rank=4)
    (report,) = reconstruct(model, [block], points, schedule, acts=False, seed=0)
    assert report.after < 0.9 * report.before
    assert all(q.codes is not None for q, _ in quantizers(model, block))


def test_temporal_block_is_reconstructed_together(make, cut, pixel, points):
    temporal = [n for n in pixel.graph.layers if "time_emb" in n]
    model = make(pixel)
    (block,) = [b for b in cut(model, points, temporal) if b.tails]
    (report,) = reconstruct(model, [block], points, QUICK, acts=False, seed=0)
    assert report.after < 0.8 * report.before
    assert all(q.codes is not None for q, _ in quantizers(model, block))


def test_every_block_is_reported_in_order(ground):
    model, blocks, points = ground
    ticks = []
    reports = reconstruct(
        model,
        [*blocks.values()],
        points,
        rounding(1),
        acts=False,
        seed=0,
        progress=lambda done, total: ticks.append((done, total)),
    )
    assert [report.name for report in reports] == [*blocks]
    assert ticks == [(i + 1, len(blocks)) for i in range(len(blocks))]
    assert all(q.codes is not None for b in blocks.values() for q, _ in quantizers(model, b))
    assert all(r.seconds > 0 and r.cached_bytes > 0 for r in reports)


def test_an_interrupt_leaves_hard_codes_and_no_hooks(ground):
    model, blocks, points = ground

    def stop(step):
        raise KeyboardInterrupt

    block = blocks["mid_block"]
    with pytest.raises(KeyboardInterrupt):
        reconstruct(model, [block], points, rounding(4, terms=(stop,)), acts=False, seed=0)
    assert all(q.codes is not None for q, _ in quantizers(model, block))
    assert not [m for m in model.module.modules() if m._forward_pre_hooks or m._forward_hooks]


def test_errors_of_the_network_come_out(ground):
    model, blocks, points = ground

    def broken(module, args):
        raise RuntimeError("boom")

    model.module.conv_in.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="boom"):
        reconstruct(model, [blocks["mid_block"]], points, QUICK, acts=False, seed=0)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"rounding": Group(1), "weight": Group(1)}, "one way"),
        ({"alpha": Group(1)}, "nothing learns under 'alpha'"),
        ({"rounding": Group(1), "weight_scale": Group(1)}, "AdaRound"),
    ],
)
def test_impossible_schedules_are_refused(ground, groups, message):
    model, blocks, points = ground
    with pytest.raises(ValueError, match=message):
        reconstruct(model, [blocks[FIRST]], points, Schedule(1, groups), acts=False, seed=0)


def test_fixed_codes_cannot_learn(ground):
    model, blocks, points = ground
    model.freeze()
    with pytest.raises(ValueError, match=rf"{FIRST}.*codes are fixed"):
        reconstruct(model, [blocks[FIRST]], points, QUICK, acts=False, seed=0)
