"""NNCF: OpenVINO's post-training quantization to int8, on OpenVINO's int8 kernels."""

import contextlib
import io
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quantarena.methods.contract import MethodContext
from quantarena.methods.core.record.steps import UniformStride
from quantarena.methods.info import Capabilities, MethodInfo
from quantarena.methods.options import MethodOptions
from quantarena.methods.registry import register
from quantarena.methods.rival import Prepared, Rival
from quantarena.methods.rivals import ov_network
from quantarena.methods.rivals.held import untouched
from quantarena.methods.rivals.positional import arguments
from quantarena.methods.rivals.stand_in import StandIn

BATCH = 8
"""Points of one calibration item."""


@register("nncf")
class Nncf(Rival):
    """``nncf.quantize``: ranges, SmoothQuant and fast bias correction on recorded points."""

    @dataclass(frozen=True)
    class Options(MethodOptions):
        """Options of NNCF.

        Attributes:
            preset: ``mixed`` has zero points in activations, ``performance`` has none.
            transformer: the hint for networks with attention, which turns SmoothQuant on.
        """

        preset: Literal["mixed", "performance"] = "mixed"
        transformer: bool = True

    info = MethodInfo(
        title="NNCF int8",
        venue="library",
        paper="-",
        summary="nncf.quantize on recorded points, run by OpenVINO's int8 kernels",
        url="https://github.com/openvinotoolkit/nncf",
        licence="Apache-2.0",
    )
    supports = Capabilities(
        weight_bits=(8,), act_bits=(8,), most_iterations=0, board_bits=("w8a8",)
    )
    needs = ("openvino", "nncf")
    options: Options

    def build(self, ctx: MethodContext, folder: Path) -> None:
        """Convert the network and quantize it on as many points as methods learn from."""
        import nncf

        points = ctx.draw(UniformStride(ctx.effort.samples))
        items = [
            [tensor.numpy() for tensor in arguments(p.sample, p.timestep, p.conditions)]
            for p in points.batches(BATCH)
        ]
        ctx.progress(0, 1)
        nncf.set_log_level(logging.ERROR)
        model = ov_network.convert(ctx.model, points.rows(slice(0, 2)))
        with contextlib.redirect_stdout(io.StringIO()):  # bars of its own
            quantized = nncf.quantize(
                model,
                nncf.Dataset(items),
                subset_size=len(items),
                preset=nncf.QuantizationPreset(self.options.preset),
                model_type=nncf.ModelType.TRANSFORMER if self.options.transformer else None,
                fast_bias_correction=True,
            )
        ctx.progress(1, 1)
        ov_network.save(quantized, folder)

    def prepare(self, ctx: MethodContext, folder: Path) -> Prepared:
        """The quantized network; what is not in int8 stays in fp32."""
        network = ov_network.OpenVinoNetwork(folder / ov_network.MODEL, ov_network.F32)
        compiled = network.compiled_for(UniformStride(2).draw(ctx.trajectory, ctx.seed))
        widths = ov_network.integer_layers(compiled, ctx.graph.layers)
        return Prepared(
            StandIn(ctx.model, network),
            "openvino int8",
            ov_network.constant_bytes(compiled),
            widths,
            lines=untouched(ctx.graph.layers, widths),
        )
