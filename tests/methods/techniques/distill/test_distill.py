"""End-to-end distillation: whose walk it is, what its gradients are, what an interrupt leaves."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.errors import UserError
from quantarena.methods.core.model.model import wrap
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.quantizers.weight import WeightQuantizer
from quantarena.methods.core.record.steps import UniformStride
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.techniques.distill.distill import Distillation, distill
from quantarena.methods.techniques.distill.walk import Driver, Walk
from quantarena.methods.techniques.distill.window_terms import TaughtCall, WindowTerm, add_gradients
from quantarena.methods.techniques.learn.module_outputs import module_outputs
from quantarena.methods.techniques.learn.param_groups import Decay, Group
from quantarena.methods.techniques.ranges.minmax import minmax_range

TIMES = torch.tensor([900, 600, 300, 1])
LORA = {"lora": Group(0.05, Decay.LINEAR, relative=True)}
FEATURE = "up_blocks.1.resnets.1"


def relation(ours, theirs):
    """MPQ-DM's: Kullback-Leibler divergence of pixel similarities, features averaged over calls."""

    def rows(features):
        mean = F.normalize(torch.stack(list(features)).mean(0).flatten(2), dim=1)
        return (mean.transpose(1, 2) @ mean).log_softmax(-1)

    return F.kl_div(rows(ours), rows(theirs), log_target=True, reduction="sum")


@pytest.fixture
def student(pixel):
    model = wrap(pixel.model, pixel.graph, UNIFORM.assign(pixel.graph, Bits(3, 8)))
    model.set_weight_ranges(minmax_range)
    calibrate_activations(model, UniformStride(16).draw(pixel.trajectory, 0), minmax_range)
    return model


def walk_of(pixel, driver=Driver.TEACHER, seen=None):
    """A sampler that takes a tenth of the prediction away."""

    def start(generator):
        points = pixel.heldout.rows(slice(0, 4))
        noise = torch.randn(points.sample.shape, generator=generator)
        return dataclasses.replace(points, sample=noise)

    def step(prediction, call, sample):
        if seen is not None:
            seen.append((prediction.clone(), call, sample.clone()))
        return sample - 0.1 * prediction

    return Walk(TIMES, start, step, driver)


def test_loss_falls_and_codes_are_frozen(pixel, student):
    ticks = []
    groups = LORA | {"act_scale": Group(1e-2, relative=True)}
    report = distill(
        student,
        pixel.model,
        walk_of(pixel),
        Distillation(60, groups, rank=4),
        seed=0,
        progress=lambda done, total: ticks.append((done, total)),
    )
    assert report.updates == 60
    assert sum(report.losses[-8:]) < 0.8 * sum(report.losses[:8])
    assert ticks[-1] == (60, 60)
    for layer in student.layers.values():
        assert all(part.weight_quantizer.codes is not None for part in layer.parts)
    assert not any(p.requires_grad for p in pixel.model.parameters())


@pytest.mark.parametrize("driver", list(Driver))
def test_the_driver_takes_the_walk_on(pixel, student, driver):
    seen = []
    still = Distillation(5, {"act_scale": Group(0.0)})
    distill(student, pixel.model, walk_of(pixel, driver, seen), still, seed=0)
    assert [call for _, call, _ in seen] == [0, 1, 2], "the last call needs no further sample"
    points = pixel.heldout.rows(slice(0, 4))
    for prediction, call, sample in seen:
        with torch.no_grad():
            arguments = {"timestep": TIMES[call].expand(4), "return_dict": False}
            theirs = pixel.model(sample, **arguments, **points.conditions)[0]
            with student.clock.at(torch.full((4,), call)):
                ours = student.module(sample, **arguments, **points.conditions)[0]
        wanted, other = (theirs, ours) if driver is Driver.TEACHER else (ours, theirs)
        assert torch.allclose(prediction, wanted, atol=1e-6)
        assert not torch.allclose(prediction, other, atol=1e-4)
    assert torch.allclose(seen[1][2], seen[0][2] - 0.1 * seen[0][0])


def window_of(pixel, count):
    points = pixel.heldout.rows(slice(0, 4))
    window = []
    for _ in range(count):
        with torch.no_grad(), module_outputs(pixel.model, [FEATURE]) as features:
            target = points.call(pixel.model)
        window.append(TaughtCall(points, target, dict(features)))
        points = points.rows(torch.tensor([1, 2, 3, 0]))
    return window


def test_window_gradients_are_those_of_one_whole_graph(pixel, student):
    """Recomputing call by call must not change the gradient."""
    from quantarena.methods.techniques.learn.learning import start_learning

    learning = start_learning(student.layers, [], ["lora"], 4)
    parameters = [x.parameter for x in learning.parameters["lora"]]
    for parameter in parameters:
        parameter.data += 0.01 * torch.randn_like(parameter)
    window = window_of(pixel, 3)
    term = WindowTerm(FEATURE, relation, calls=3, weight=2.0)
    found = []
    with student.using(weights=True, acts=True):
        *_, rows = add_gradients(student, window, 2, (term,), "sum")
        assert rows == sum(len(entry.points) for entry in window), "all of the window learns"
        *_, alone = add_gradients(student, window, 1, (term,), "sum")
        assert alone == len(window[-1].points), "the term is not due at this call"
        for parameter in parameters:
            parameter.grad = None
        add_gradients(student, window, 2, (term,), "sum")
        found.append([p.grad.clone() for p in parameters])
        ours = []
        for entry in window:
            with module_outputs(student.module, [FEATURE]) as features:
                prediction = student.run(entry.points)
            ours.append(features[FEATURE])
        loss = (prediction - window[-1].target).square().sum()
        plain = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        loss = loss + 2.0 * relation(ours, [entry.features[FEATURE] for entry in window])
        whole = torch.autograd.grad(loss, parameters)
    changed = 0.0
    for got, want, without in zip(found[0], whole, plain, strict=True):
        assert torch.allclose(got, want, rtol=1e-3, atol=1e-5 * float(want.abs().max()) + 1e-7)
        changed = max(changed, float((want - without).abs().max()) / float(want.abs().max()))
    assert changed > 1e-3, "the term has no gradient: a branch was detached"


def test_relation_of_equal_features_is_nothing():
    features = [torch.randn(2, 4, 3, 3) for _ in range(2)]
    assert float(relation(features, features)) == pytest.approx(0.0, abs=1e-5)


def test_terms_act_once_a_window_over_consecutive_calls(pixel, student):
    seen = []

    def note(ours, theirs):
        seen.append((len(ours), len(theirs), [float(f.detach().sum()) for f in theirs]))
        return relation(ours, theirs)

    term = WindowTerm(FEATURE, note, calls=2)
    distill(
        student, pixel.model, walk_of(pixel), Distillation(9, LORA, terms=(term,), rank=4), seed=0
    )
    assert [(a, b) for a, b, _ in seen] == [(2, 2)] * 4, "9 calls, walks of 4: at calls 1 and 3"
    first, second = seen[0][2], seen[1][2]
    assert not set(first) & set(second)


def test_only_asked_groups_change(pixel, student):
    before = {n: x.parts[0].act_quantizer.scale.clone() for n, x in student.layers.items()}
    scales = {n: x.parts[0].weight_quantizer.scale.clone() for n, x in student.layers.items()}
    groups = {"act_scale": Group(1e-2, relative=True)}
    distill(student, pixel.model, walk_of(pixel), Distillation(3, groups), seed=0)
    for name, layer in student.layers.items():
        part = layer.only_part
        assert not torch.equal(part.act_quantizer.scale, before[name]), name
        assert torch.equal(part.weight_quantizer.scale, scales[name])


def test_banks_learn_at_the_calls_walked(pixel, student):
    layer = student.layers["mid_block.resnets.0.conv1"].parts[0]
    scale, zero = layer.act_quantizer.scale.detach(), layer.act_quantizer.zero_point.detach()
    layer.act_quantizer.set_bank(scale.repeat(4), zero.repeat(4))
    groups = {"act_scale": Group(1e-2, relative=True)}
    distill(student, pixel.model, walk_of(pixel), Distillation(2, groups), seed=0)
    moved = layer.act_quantizer.scale.detach() != scale
    assert moved.tolist() == [True, True, False, False]


def test_an_interrupt_leaves_a_usable_model(pixel, student):
    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(
            student,
            pixel.model,
            walk_of(pixel),
            Distillation(50, LORA, rank=4),
            seed=0,
            progress=stop,
        )
    assert student.state()
    with torch.no_grad():
        assert torch.isfinite(student.run(pixel.heldout)).all()
    assert not any(m._forward_hooks for m in student.module.modules())


def test_divergence_is_said(pixel, student):
    wild = {"weight": Group(float("inf"))}
    with pytest.raises(UserError, match="diverged at update 1"):
        distill(student, pixel.model, walk_of(pixel), Distillation(4, wild), seed=0)


def test_weights_are_quantized_once_an_update_whatever_the_window(pixel, student, monkeypatch):
    counts = []
    plain = WeightQuantizer.latent

    def counted(quantizer, weight):
        counts.append(quantizer)
        return plain(quantizer, weight)

    monkeypatch.setattr(WeightQuantizer, "latent", counted)
    term = WindowTerm(FEATURE, relation, calls=2)
    schedule = Distillation(4, LORA, terms=(term,), rank=4)
    distill(student, pixel.model, walk_of(pixel), schedule, seed=0)
    layers = len(student.layers)
    assert len(counts) == (4 + 1) * layers, "each update once, then to freeze the codes"
    assert all(part.weight_quantizer.held is None for part in parts(student))


def parts(model):
    return [part for layer in model.layers.values() for part in layer.parts]
