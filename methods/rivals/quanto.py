"""optimum-quanto: Hugging Face's quantized modules for PyTorch, linear layers and convolutions."""

import copy
from pathlib import Path

import torch

from quantarena.methods.contract import MethodContext
from quantarena.methods.core.bits import FP_WIDTH
from quantarena.methods.core.record.steps import UniformStride
from quantarena.methods.info import Capabilities, MethodInfo
from quantarena.methods.registry import register
from quantarena.methods.rival import Prepared, Rival
from quantarena.methods.rivals.held import act_bits, network_bytes, observed_widths, untouched
from quantarena.methods.rivals.stand_in import StandIn

BATCH = 16
"""Points of one calibration pass; quanto averages ranges over passes."""


@register("quanto")
class Quanto(Rival):
    """Weights by output channel (int4: in groups); inputs and outputs by tensor, calibrated."""

    devices = ("cpu", "cuda")
    info = MethodInfo(
        title="optimum-quanto",
        venue="library",
        paper="-",
        summary="quantize, calibrate and freeze: int8 or int4 weights, int8 inputs on request",
        url="https://github.com/huggingface/optimum-quanto",
        licence="Apache-2.0",
    )
    supports = Capabilities(
        weight_bits=(4, 8),
        act_bits=(8, FP_WIDTH),
        most_iterations=0,
        board_bits=("w8a16", "w8a8", "w4a16"),
    )
    needs = ("optimum-quanto",)

    def prepare(self, ctx: MethodContext, folder: Path) -> Prepared:
        """A copy with quanto's modules, frozen."""
        from optimum.quanto import Calibration, freeze, qint4, qint8, quantize

        network = copy.deepcopy(ctx.model)
        acts = qint8 if ctx.bits.act == 8 else None
        quantize(network, weights=qint8 if ctx.bits.weight == 8 else qint4, activations=acts)
        if acts is not None:
            points = ctx.draw(UniformStride(ctx.effort.samples))
            with torch.no_grad(), Calibration():
                for index, batch in enumerate(points.batches(BATCH)):
                    batch.call(network)
                    ctx.progress(min((index + 1) * BATCH, len(points)), len(points))
        freeze(network)
        widths = observed_widths(network, ctx.graph.layers, act_bits)
        return Prepared(
            StandIn(ctx.model, network),
            f"quanto int{ctx.bits.weight}" + (" with int8 inputs" if acts else " weight-only"),
            network_bytes(network),
            widths,
            lines=untouched(ctx.graph.layers, widths),
        )
