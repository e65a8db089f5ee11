"""ViDiT-Q: channel balancing, and a range for each token when it arrives (Zhao et al., ICLR 2025).

Order as in the released code: (1) averaged peaks of every input channel over calibration; (2) their
range is moved into the weights in part, ``f = peak^a / max|W|^(1 - a)``; (3) weights by min-max for
each output channel, rounded to nearest; (4) inputs of linear layers by the min-max of each token at
run time. Nothing is learned.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from quantarena.methods import published
from quantarena.methods.api import Capabilities, Method, MethodContext, MethodInfo
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.quantizers.activation import DynamicActQuantizer
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.record.steps import UniformStride
from quantarena.methods.registry import register
from quantarena.methods.techniques.calibrate.channel_peaks import mean_peaks
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.techniques.calibrate.plan import FLOAT_WEIGHTS
from quantarena.methods.techniques.ranges.named import SEARCHES, default_range
from quantarena.methods.techniques.scaling.channel_scaling import smooth

PAPER_MOMENTUM = 0.95
PIXART_ALPHA, VIDEO_ALPHA = 0.3, 0.11
"""Exponents of the released configurations; video has statistics for each half of the steps."""


@register("vidit_q")
class ViditQ(Method):
    """Balanced channels, dynamic ranges by token, weights to nearest.

    Attributes:
        balancing: move part of the channels' ranges into the weights.
        dynamic: ranges of tokens are found at run time; else one range from calibration.
        dynamic_images: convolutions too have one for each image at run time; else from calibration.
        alpha: 1 levels the inputs, 0 the weights.
        momentum: of the average of peaks over sampler calls.
        weight_search: range search of weights.
    """

    info = MethodInfo(
        title="ViDiT-Q",
        venue="ICLR 2025",
        paper="arXiv:2406.02540",
        summary="channels balanced into the weights, token ranges found at run time",
        bibtex=(
            "@inproceedings{zhao2025viditq, title={ViDiT-Q: Efficient and Accurate Quantization of "
            "Diffusion Transformers for Image and Video Generation}, author={Zhao, Tianchen and "
            "Fang, Tongcheng and Huang, Haofeng and Liu, Enshu and Wan, Rui and Soedarmadji, "
            "Widyadewi and Li, Shiyao and Lin, Zinan and Dai, Guohao and Yan, Shengen and Yang, "
            "Huazhong and Ning, Xuefei and Wang, Yu}, booktitle={ICLR}, year={2025}}"
        ),
        deviations=(
            "what the released code does for images: one statistic over all steps; for video it "
            "keeps two, and two copies of the weights, which is not here",
            "no rotation, which the later version of the paper adds, and no mixed precision, which "
            "the policies here do not allow",
            "widths are those asked for (the released w4a8 configurations have 6-bit weights)",
            "peaks are averaged over points by sampler call, in the sampler's order; the exponent "
            "is that of PixArt",
            "convolutions, which its models do not have, are balanced alike and have one range "
            "from calibration",
        ),
    )
    supports = Capabilities()
    published = published.VIDIT_Q
    switches: ClassVar[Mapping[str, Any]] = {"balancing": False, "dynamic": False}
    balancing = True
    dynamic = True
    dynamic_images = False
    alpha = PIXART_ALPHA
    momentum = PAPER_MOMENTUM
    weight_search: Literal["minmax", "mse"] = "minmax"

    def quantize(self, ctx: MethodContext) -> QuantizedModel:
        """Balance, then ranges."""
        model = ctx.wrap()
        points = ctx.draw(UniformStride(ctx.effort.samples))
        if self.balancing:
            model.notes["balancing"] = self.balance(model, points)
        model.set_weight_ranges(SEARCHES[self.weight_search])
        for layer in model.layers.values():
            self.set_formats(layer)
        calibrate_activations(model, points, default_range, FLOAT_WEIGHTS)
        return model

    def balance(self, model: QuantizedModel, points: CalibrationSet) -> dict[str, float]:
        """Move ranges into the weights of all layers but grouped convolutions, in place.

        Returns:
            How far apart the factors of each layer are, largest over smallest.
        """
        spread: dict[str, float] = {}
        for name, peaks in mean_peaks(model, points, momentum=self.momentum).items():
            layer = model.layers[name]
            if layer.groups == 1:
                factor = smooth(peaks, layer.weight.detach(), alpha=self.alpha).factor
                layer.scale_input(factor)
                spread[name] = round(float(factor.max() / factor.min()), 2)
        return spread

    def set_formats(self, layer: QuantLayer) -> None:
        """Ranges at run time, where asked for and where they have an integer form."""
        wanted = self.dynamic_images and layer.spatial == 2 if layer.is_conv else self.dynamic
        for part in layer.part_list():
            if wanted and part.static is not None:
                part.act_quantizer = DynamicActQuantizer(part.static.bits)
