"""RepQuant: channel-wise quantization folded into norms, log-sqrt2 softmax (Li et al., 2024).

Order: (1) what norms give to quantized layers gets a range for each channel; (2) both ends of those
ranges learn, towards the readers' outputs (dual clipping); (3) the fold: norm, or the linear that
modulates it, and readers change so that one range for the tensor gives the channel-wise codes; (4)
weight ranges are found again on what the fold made of the weights, all other inputs get one range;
(5) softmaxes, where they are quantized, get log-sqrt2 codes, which are shifts into two
accumulators; (6) weights are reconstructed on quantized inputs.

A reimplementation: RepQuant's code was not found; quantizers and fold are those of its forerunner
RepQ-ViT (ICCV 2023), whose code was read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from quantarena.methods import published
from quantarena.methods.api import (
    SEARCHES,
    AtLeast,
    CalibrationSet,
    Capabilities,
    Method,
    MethodContext,
    MethodInfo,
    MethodOptions,
    QuantizedModel,
    Schedule,
    UniformStride,
    calibrate_activations,
    for_activations,
    reconstruct,
    register,
)
from quantarena.methods.core.affine import QuantParams
from quantarena.methods.techniques.calibrate.layer_samples import layer_inputs
from quantarena.methods.techniques.calibrate.log_softmax import calibrate_log_scales
from quantarena.methods.techniques.calibrate.plan import FLOAT_WEIGHTS
from quantarena.methods.techniques.learn.column_rounding import reconstruct_columns
from quantarena.methods.techniques.learn.schedule import paced
from quantarena.methods.techniques.scaling.channel_clips import (
    channel_rows,
    clip_error,
    learn_clips,
    search_clips,
)
from quantarena.methods.techniques.scaling.norm_fold_sites import check_folds, fold_site
from quantarena.methods.techniques.scaling.norm_rows import NormSite
from quantarena.methods.techniques.scaling.norm_sites import norm_sites

SAMPLED_VALUES = 1 << 20
"""Largest number of values of each layer's input that weights are reconstructed on."""
CLIP_STEPS = 500
"""Maximum optimizer steps for dual clipping (capped by the preset's iterations per block)."""
CLIP_LENGTH = 100
"""Steps up to which the rate of dual clipping holds; more have less, see ``schedule.paced``."""


@register("repquant")
class RepQuant(Method):
    """Norm outputs coded channel by channel at the price of one range, weights reconstructed."""

    @dataclass(frozen=True)
    class Options(MethodOptions):
        """Options of RepQuant.

        Attributes:
            fold: fold channel-wise ranges of norm outputs; if false, one range for each tensor.
            clipping: learn the ends of the channel-wise ranges.
            reconstruction: how weights are reconstructed on quantized inputs: each layer in closed
                form (``columns``), block by block by AdaRound (``blocks``), or not at all.
            damp: damping of the closed form, relative to an input's mean second moment.
            log_softmax: log-sqrt2 codes for the softmax; acts where the policy quantizes it.
            zero_code: let the softmax's last code stand for 0.
            search: range search of weights, and of activations in its form for them.
            clip_lr: learning rate of dual clipping in up to 100 steps; more have less.
        """

        fold: bool = True
        clipping: bool = True
        reconstruction: Literal["columns", "blocks", "none"] = "columns"
        damp: Annotated[float, AtLeast(0)] = 0.1
        log_softmax: bool = True
        zero_code: bool = False
        search: Literal["minmax", "mse", "shrink", "percentile_mse"] = "percentile_mse"
        clip_lr: Annotated[float, AtLeast(0)] = 0.05

    info = MethodInfo(
        title="RepQuant",
        venue="arXiv 2024",
        paper="arXiv:2402.05628",
        summary="channel-wise ranges folded into norms, learned clipping, log-sqrt2 softmax",
        version=3,
        bibtex=(
            "@article{li2024repquant, title={RepQuant: Towards Accurate Post-Training "
            "Quantization of Large Transformer Models via Scale Reparameterization}, "
            "author={Li, Zhikai and Liu, Xuewen and Zhang, Jing and Gu, Qingyi}, "
            "journal={arXiv:2402.05628}, year={2024}}"
        ),
        deviations=(
            "a reimplementation: no code of RepQuant was found, and its clipping and weight "
            "reconstruction are known from the abstract alone",
            "the layer-wise zero point is an integer, which makes the fold exact and packs (the "
            "code of RepQ-ViT takes the mean of the channels' unrounded)",
            "the fold also goes into the linear that modulates a norm (DiT) and into a GroupNorm "
            "that linears read without a nonlinearity in between; the paper has LayerNorms alone",
            "clipping factors start at the searched ranges; weights are reconstructed layer by "
            "layer in closed form, by least squares on quantized inputs and GPTQ's rounding",
            "min-max is a candidate beside the three percentiles (RepQ-ViT: percentiles alone)",
            "all log-sqrt2 codes fit the width (the code of RepQ-ViT adds a zero beside them); "
            "the uniform policy leaves attention products in floating point",
        ),
    )
    supports = Capabilities(board_bits=("w4a8", "w4a4"))
    published = published.REPQUANT
    switches: ClassVar[Mapping[str, Any]] = {
        "fold": False,
        "clipping": False,
        "reconstruction": "none",
    }
    options: Options

    def quantize(self, ctx: MethodContext) -> QuantizedModel:
        """Fold, calibrate, reconstruct."""
        model = ctx.wrap()
        points, ranges = ctx.draw(UniformStride(ctx.effort.samples)), ctx.range_points()
        sites = self.sites(ctx, model, points) if self.options.fold else ()
        folded = self.fold_sites(ctx, model, ranges, sites)
        search = SEARCHES[self.options.search]
        model.set_weight_ranges(search)
        if self.options.log_softmax:
            for products in model.attention.values():
                if "softmax" in products.quantizers:
                    products.use_log(per_octave=2, zero_code=self.options.zero_code)
            calibrate_log_scales(model, ranges)
        calibrate_activations(model, ranges, for_activations(search), FLOAT_WEIGHTS)
        for site in sites:
            for name in site.readers:
                quantizer = model.layers[name].only_part.static
                assert quantizer is not None
                quantizer.set_params(folded[site.norm])
        if self.options.reconstruction == "columns":
            model.notes["reconstruction"] = self.reconstruct_layers(ctx, model, points)
        elif self.options.reconstruction == "blocks" and ctx.effort.iterations:
            reports = reconstruct(
                model,
                ctx.blocks(model, points),
                points,
                Schedule.fast(ctx.effort.iterations),
                acts=True,
                seed=ctx.seed,
                progress=ctx.progress,
                held_out=ctx.held_out(points),
            )
            model.notes["reconstruction"] = [report.note() for report in reports]
        return model

    def reconstruct_layers(
        self, ctx: MethodContext, model: QuantizedModel, points: CalibrationSet
    ) -> dict[str, float]:
        """Reconstruct each layer in closed form; return its output error over that of rounding."""
        inputs = layer_inputs(model, points, ctx.effort.samples, most=SAMPLED_VALUES)
        errors: dict[str, float] = {}
        for done, (name, layer) in enumerate(model.layers.items()):
            x = inputs.pop(name)
            if layer.groups == 1:
                search = SEARCHES[self.options.search]
                errors[name] = round(
                    reconstruct_columns(layer, x, search, damp=self.options.damp), 4
                )
            ctx.progress(done + 1, len(model.layers))
        return errors

    def sites(
        self, ctx: MethodContext, model: QuantizedModel, points: CalibrationSet
    ) -> tuple[NormSite, ...]:
        """The norms to fold: those whose readers' inputs all have one width."""
        static = {n: q.bits for n, x in model.layers.items() if (q := x.only_part.static)}
        found = norm_sites(ctx.model, static.keys(), points)
        return tuple(site for site in found if len({static[name] for name in site.readers}) == 1)

    def fold_sites(
        self,
        ctx: MethodContext,
        model: QuantizedModel,
        points: CalibrationSet,
        sites: tuple[NormSite, ...],
    ) -> dict[str, QuantParams]:
        """Find, learn and fold channel-wise ranges; return the readers' input ranges by norm."""
        rows = channel_rows(model, points, {site.readers[0] for site in sites})
        steps = min(CLIP_STEPS, ctx.effort.iterations)
        folded: dict[str, QuantParams] = {}
        notes: dict[str, dict[str, Any]] = {}
        for site in sites:
            x, bits = rows[site.readers[0]], model.layers[site.readers[0]].bits.act
            gram = output_gram([model.layers[name].weight for name in site.readers])
            clips = search_clips(x, bits, for_activations(SEARCHES[self.options.search]))
            before = clip_error(x, gram, clips, bits)
            if self.options.clipping:
                clips = learn_clips(
                    x,
                    gram,
                    clips,
                    bits,
                    steps=steps,
                    lr=paced(self.options.clip_lr, CLIP_LENGTH, steps),
                    seed=ctx.seed,
                )
            params = clips.params(bits)
            folded[site.norm] = fold_site(model, site, params.scale, params.zero_point, bits)
            notes[site.norm] = {
                "readers": list(site.readers),
                "modulation": site.modulation or "",
                "imbalance": round(float(params.scale.max() / params.scale.min()), 2),
                "clipped": round(clip_error(x, gram, clips, bits) / max(before, 1e-30), 4),
            }
        model.notes["folds"] = notes
        if sites:
            model.notes["fold_moves"] = check_folds(model, points)
        return folded


def output_gram(weights: list[Tensor]) -> Tensor:
    """``W^T W`` of layers with the same input, each (O, K) or 1x1 (O, K, ...): (K, K)."""
    wide = torch.cat([weight.detach().flatten(1) for weight in weights])
    return wide.T @ wide
