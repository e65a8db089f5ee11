"""ViDiT-Q: channel balancing, and a range for each token when it arrives (Zhao et al., ICLR 2025).

Order as in the released code: (1) averaged peaks of every input channel over calibration; (2) their
range is moved into the weights in part, ``f = peak^a / max|W|^(1 - a)``; (3) the input channels of
linear layers, so balanced, are rotated (the later version of the paper); (4) weights by min-max for
each output channel, rounded to nearest; (5) inputs of linear layers by the min-max of each token at
run time. Nothing is learned. Under policy ``budget`` layers have widths of their own (the paper's
mixed precision): those of each type are judged by a metric of their own, and share a budget.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from quantarena.methods import published
from quantarena.methods.api import (
    FLOAT_WEIGHTS,
    SEARCHES,
    AtLeast,
    Bits,
    CalibrationSet,
    Capabilities,
    Method,
    MethodContext,
    MethodInfo,
    MethodOptions,
    QuantizedModel,
    QuantLayer,
    Within,
    calibrate_activations,
    default_range,
    register,
    smooth,
)
from quantarena.methods.core.record.points import evenly
from quantarena.methods.core.trace.attention_info import AttentionKind
from quantarena.methods.core.trace.network import Graph, Role
from quantarena.methods.techniques.calibrate.channel_peaks import mean_peaks
from quantarena.methods.techniques.widths.allocate import Allocation, allocate
from quantarena.methods.techniques.widths.layer_losses import (
    candidates,
    layer_losses,
    relative_error,
)

PAPER_MOMENTUM = 0.95
CONTENT_ROLES = (Role.CONTEXT, Role.ADALN, Role.EMB_PROJ, Role.FF)
PIXART_ALPHA, VIDEO_ALPHA = 0.3, 0.11
"""Exponents of the released configurations; video has statistics for each half of the steps."""


@register("vidit_q")
class ViditQ(Method):
    """Balanced and rotated channels, dynamic ranges by token, weights to nearest."""

    @dataclass(frozen=True)
    class Options(MethodOptions):
        """Options of ViDiT-Q.

        Attributes:
            balancing: move part of the channels' ranges into the weights.
            rotation: rotate the input channels of linear layers after they are balanced.
            dynamic: find the range of each token at run time; if false, one range from calibration.
            dynamic_images: find a range for each image at run time for convolutions too; if false,
                one range from calibration.
            alpha: exponent of the balancing; 1 levels the inputs, 0 the weights.
            momentum: momentum of the average of peaks over sampler calls.
            weight_search: range search of weights.
            mixed: choose widths by layer under policy budget; if false, all have those requested.
            decoupled: judge layers that carry content by structure and all others by squared error,
                each kind within a budget of its own; if false, all by squared error.
            steps: candidate weight widths, as differences to the requested one.
            points: calibration points that layers are judged on.
        """

        balancing: bool = True
        rotation: bool = True
        dynamic: bool = True
        dynamic_images: bool = False
        alpha: Annotated[float, Within(0, 1)] = PIXART_ALPHA
        momentum: Annotated[float, Within(0, 1)] = PAPER_MOMENTUM
        weight_search: Literal["minmax", "mse"] = "minmax"
        mixed: bool = True
        decoupled: bool = True
        steps: tuple[int, ...] = (-2, -1, 1, 2, 3, 4)
        points: Annotated[int, AtLeast(1)] = 32

    info = MethodInfo(
        title="ViDiT-Q",
        venue="ICLR 2025",
        paper="arXiv:2406.02540",
        summary="channels balanced and rotated into the weights, token ranges found at run time",
        version=2,
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
            "the rotation, which the later version of the paper adds and the code that was read "
            "lacks, is one of linear layers, with random signs and a fast matrix for every width",
            "mixed precision is under policy budget; layers are judged by one call of the network, "
            "structure or squared error, not by metrics of finished videos, and weights have any "
            "width near the requested one (paper: 4, 6 or 8 bits)",
            "widths are those asked for (the released w4a8 configurations have 6-bit weights)",
            "peaks are averaged over points by sampler call, in the sampler's order; the exponent "
            "is that of PixArt",
            "convolutions, which its models do not have, are balanced alike and have one range "
            "from calibration",
        ),
    )
    supports = Capabilities(most_iterations=0, board_bits=("w4a8", "w4a4"), budget=True)
    published = published.VIDIT_Q
    switches: ClassVar[Mapping[str, Any]] = {
        "balancing": False,
        "rotation": False,
        "dynamic": False,
        "mixed": False,
    }
    options: Options

    def quantize(self, ctx: MethodContext) -> QuantizedModel:
        """Choose widths where the policy allows, balance channels, then find ranges."""
        points = ctx.range_points()
        chosen = self.allocations(ctx, points) if self.options.mixed else {}
        widths = {n: bits for found in chosen.values() for n, bits in found.widths.items()}
        model = self.rounded(ctx, points, widths)
        for layer in model.layers.values():
            self.set_formats(layer)
        calibrate_activations(model, points, default_range, FLOAT_WEIGHTS)
        if chosen:
            model.notes["allocation"] = {kind: found.note() for kind, found in chosen.items()}
        return model

    def rounded(
        self, ctx: MethodContext, points: CalibrationSet, widths: Mapping[str, Bits]
    ) -> QuantizedModel:
        """The network at these widths, balanced and rotated, with its weight ranges."""
        model = ctx.wrap(widths=widths)
        if self.options.balancing:
            model.notes["balancing"] = self.balance(model, points)
        if self.options.rotation:
            rotate_layers(model, ctx.seed)
        model.set_weight_ranges(SEARCHES[self.options.weight_search])
        return model

    def allocations(self, ctx: MethodContext, points: CalibrationSet) -> dict[str, Allocation]:
        """Widths by kind of layer; none where the policy leaves no choice."""
        if ctx.budget is None:
            return {}
        content = content_layers(ctx.graph) if self.options.decoupled else set()
        losses = layer_losses(
            lambda widths: self.rounded(ctx, points, widths),
            ctx.budget.layers,
            candidates(ctx.bits, self.options.steps),
            points.rows(evenly(len(points), self.options.points)),
            {n: structure_loss if n in content else relative_error for n in ctx.budget.layers},
            acts=False,
            progress=ctx.progress,
        )
        kinds = {"content": content, "quality": losses.keys() - content}
        return {
            kind: allocate({n: row for n, row in losses.items() if n in names}, ctx.budget)
            for kind, names in kinds.items()
            if names & losses.keys()
        }

    def balance(self, model: QuantizedModel, points: CalibrationSet) -> dict[str, float]:
        """Move ranges into the weights of all layers but grouped convolutions, in place.

        Returns:
            How far apart the factors of each layer are, largest over smallest.
        """
        spread: dict[str, float] = {}
        for name, peaks in mean_peaks(model, points, momentum=self.options.momentum).items():
            layer = model.layers[name]
            if layer.groups == 1:
                factor = smooth(peaks, layer.weight.detach(), alpha=self.options.alpha).factor
                layer.scale_input(factor)
                spread[name] = round(float(factor.max() / factor.min()), 2)
        return spread

    def set_formats(self, layer: QuantLayer) -> None:
        """Find ranges at run time, where asked for and where they have an integer form."""
        wanted = (
            self.options.dynamic_images and layer.spatial == 2
            if layer.is_conv
            else self.options.dynamic
        )
        for part in layer.parts:
            if wanted and part.static is not None:
                part.use_dynamic()


def rotate_layers(model: QuantizedModel, seed: int) -> None:
    """Rotate the input channels of all linear layers whose inputs are quantized, in place.

    Args:
        model: the model; ranges are to be found afterwards.
        seed: seed of the random signs.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in model.layers.values():
        if not layer.is_conv and layer.only_part.act_quantizer is not None:
            signs = torch.randint(0, 2, (layer.in_channels,), generator=generator)
            layer.rotate_input(2.0 * signs - 1.0)


def content_layers(graph: Graph) -> set[str]:
    """Layers that decide what is drawn: the condition's, those of cross-attention, feed-forward.

    All others decide how well it is drawn (the division of MixDQ, Zhao et al., ECCV 2024, which
    ViDiT-Q takes over for videos).
    """
    found = {name for name, info in graph.layers.items() if info.role in CONTENT_ROLES}
    for info in graph.attention.values():
        if info.kind is AttentionKind.CROSS:
            found |= {*info.query, *info.key, *info.value}
    return found


def structure_loss(output: Tensor, target: Tensor) -> float:
    """``1 - SSIM`` of two outputs, (N, C, ...), with one window that covers a channel."""
    x, y = (
        t.double().flatten(2) if t.dim() > 2 else t.double()[..., None] for t in (output, target)
    )
    unit = 0.01 * y.var().clamp(min=1e-30)
    mean_x, mean_y = x.mean(-1), y.mean(-1)
    gap_x, gap_y = x - mean_x[..., None], y - mean_y[..., None]
    covariance = (gap_x * gap_y).mean(-1)
    means = (2 * mean_x * mean_y + unit) / (mean_x**2 + mean_y**2 + unit)
    spreads = (2 * covariance + unit) / (gap_x.square().mean(-1) + gap_y.square().mean(-1) + unit)
    return max(0.0, float(1 - (means * spreads).mean()))
