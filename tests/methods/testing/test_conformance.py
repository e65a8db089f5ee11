from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from quantarena.methods.core.errors import UnknownName, UserError
from quantarena.methods.info import Effort
from quantarena.methods.registry import entry
from quantarena.methods.testing import conformance
from quantarena.methods.testing.conformance import check

HEAD = """
import torch
from quantarena.methods.api import Capabilities, Method, MethodInfo
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.core.record.steps import UniformStride
from quantarena.methods.registry import register


@register("mine")
class Mine(Method):
    info = MethodInfo(title="Mine", venue="-", paper="-", summary="-")
    supports = Capabilities()

    def quantize(self, ctx):
        model = ctx.wrap()
        first = next(iter(model.layers.values()), None)
        model.set_weight_ranges(minmax_range)
        calibrate_activations(model, ctx.draw(UniformStride(ctx.effort.samples)), minmax_range)
"""


def run(tmp_path, text, name="mine"):
    file = tmp_path / "mine.py"
    file.write_text(text)
    return check(name, [file], effort=Effort(8, 1))


@pytest.fixture
def only_transformer(transformer, monkeypatch):
    """One network instead of three, where one is enough."""
    copy = replace(transformer, model=deepcopy(transformer.model))
    monkeypatch.setattr(conformance, "probes", lambda: iter([copy]))


def failures(results):
    return {(r.name, r.model): r.detail for r in results if not r.passed}


@pytest.mark.parametrize("name", ["fp", "rtn", pytest.param("q_diffusion", marks=pytest.mark.slow)])
def test_builtins_conform(name):
    results = check(name, effort=Effort(samples=8, iterations=2))
    assert failures(results) == {}
    networks, method = {"pixel-unet", "conditional-unet", "transformer"}, entry(name).method
    others = method.supports.variants[1:]
    named = {f"{network}, {variant}" for network in networks for variant in others}
    assert {r.model for r in results} == {"-"} | networks | named
    # each switch is tried on every network, then judged
    assert len(results) == 2 + 27 * len(method.supports.variants) + 4 * len(method.switches)
    assert all(r.detail for r in results)


def test_a_plugin_in_one_file_conforms(tmp_path):
    assert failures(run(tmp_path, HEAD + "        return model\n")) == {}


@pytest.mark.parametrize(
    ("body", "check_name", "message"),
    [
        ("raise RuntimeError('boom')", "quantizes", "RuntimeError: boom (mine.py:"),
        (
            "first.parts[0].weight_quantizer.scale.fill_(float('nan')); return model",
            "quantizes",
            "weight scale that is not positive",
        ),
        (
            "from quantarena.methods.core.quantizers.activation import ActQuantizer; "
            "first.parts[0].act_quantizer = ActQuantizer(8); return model",
            "quantizes",
            "has no activation range",
        ),
        ("model.layers.popitem(); return model", "quantizes", "disagree about"),
        (
            "torch.manual_seed(__import__('time').time_ns()); "
            "first.parts[0].act_quantizer.scale.data *= 1 + torch.rand(()); return model",
            "deterministic",
            "differs between two runs",
        ),
        (
            "next(iter(ctx.model.parameters())).data.add_(1e-3); return model",
            "quantizes",
            "changed the full-precision network",
        ),
        (
            "first.parts[0].act_quantizer.forward = lambda x, mult=None: x; return model",
            "packed equals fake",
            "packed and fake quantization differ",
        ),
        (
            "first.weight = torch.nn.Parameter(first.weight * 1.5); return model",
            "pass-through",
            "differ from full precision",
        ),
        (
            "first.parts[0].act_quantizer.scale.data *= 90 ** (ctx.bits.act == 8); return model",
            "error falls with bits",
            "fewer bits are better",
        ),
    ],
)
def test_each_check_can_fail(only_transformer, tmp_path, body, check_name, message):
    found = failures(run(tmp_path, f"{HEAD}        {body}\n"))
    assert message in found[(check_name, "transformer")]


def test_points_that_the_context_did_not_draw_are_noticed(only_transformer, tmp_path):
    drawn = "ctx.draw(UniformStride(ctx.effort.samples))"
    aside = "UniformStride(ctx.effort.samples).draw(ctx.trajectory, ctx.seed)"
    assert drawn in HEAD
    found = failures(run(tmp_path, HEAD.replace(drawn, aside) + "        return model\n"))
    assert "ctx.draw" in found[("calibration noted", "transformer")]


def test_unsupported_must_be_said(only_transformer, tmp_path):
    text = HEAD + "        return model\n\n    def check(self, bits, variant):\n        pass\n"
    found = failures(run(tmp_path, text))
    assert "was accepted" in found[("unsupported said so", "-")]


def test_a_class_that_is_not_complete(tmp_path):
    text = HEAD.partition("    def quantize")[0]
    with pytest.raises(UserError, match="class Mine does not define quantize"):
        run(tmp_path, text)


def test_unknown_method():
    with pytest.raises(UnknownName, match="did you mean rtn"):
        check("rtm")


def test_global_random_state_is_not_what_decides(only_transformer):
    torch.manual_seed(123)
    one = check("rtn", effort=Effort(8, 1))
    torch.manual_seed(321)
    assert one == check("rtn", effort=Effort(8, 1))
