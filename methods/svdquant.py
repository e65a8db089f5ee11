"""SVDQuant: outliers go into the weights, then into a low-rank branch (Li et al., ICLR 2025).

Layer by layer: (1) input channels are smoothed into the weight, ``W' = W f``, ``X' = X / f`` with
``f = max|X|^a / max|W|^b``; (2) ``W' = L + R``, L of small rank in floating point, R in codes. L is
found again from ``W' - Q(R)`` while the output gets better. The exponents are those of the smallest
output error with the branch in place. Weights have a scale, and tokens a range found at run time,
for every 64 input channels.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from quantarena.methods import hyper_parameters, published
from quantarena.methods.api import (
    FLOAT_WEIGHTS,
    SEARCHES,
    AtLeast,
    Capabilities,
    Method,
    MethodContext,
    MethodInfo,
    MethodOptions,
    QuantizedModel,
    QuantLayer,
    RangeSearch,
    Within,
    calibrate_activations,
    input_bounds,
    mse_act_range,
    register,
    smooth,
)
from quantarena.methods.core.model.options.input_scale import scale_input
from quantarena.methods.core.quantizers.activation import ActQuantizer
from quantarena.methods.core.quantizers.weight import WeightQuantizer
from quantarena.methods.techniques.calibrate.bounds import Bounds
from quantarena.methods.techniques.calibrate.layer_samples import layer_inputs
from quantarena.methods.techniques.scaling.low_rank import Branch, refine_branch

JUDGED_VALUES = 8192
"""Values that a static range is found on while exponents are compared."""

Exponents = tuple[float, float] | None


@register("svdquant")
class SvdQuant(Method):
    """Smoothing searched with the branch active, then the branch refined with its rest."""

    @dataclass(frozen=True)
    class Options(MethodOptions):
        """Options of SVDQuant.

        Attributes:
            rank: largest rank of the branch; 0 for no branch.
            share: largest rank of the branch as a share of the layer's smaller side.
            smoothing: search exponents; if false, inputs stay as they are.
            grid: the exponents a that are tried are 1/grid to (grid - 1)/grid, b is 0 or 1 - a;
                the published 20 at the published length.
            rounds: largest number of times that a branch is found; 1 for the plain decomposition.
            group: input channels of a linear layer that share a scale, where they divide it; 0 for
                one scale for all.
            dynamic: find the ranges of tokens at run time; if false, one range from calibration.
            one_sided: unsigned codes for tokens that are never far below zero, as after GELU.
            weight_search: range search of the rest.
            judged: points that output errors are taken on.
        """

        rank: Annotated[int, AtLeast(0)] = hyper_parameters.SVDQUANT_RANK
        share: Annotated[float, Within(0, 1)] = 1 / 8
        smoothing: bool = True
        grid: Annotated[int, AtLeast(1)] = 4
        rounds: Annotated[int, AtLeast(1)] = 100
        group: Annotated[int, AtLeast(0)] = 64
        dynamic: bool = True
        one_sided: bool = True
        weight_search: Literal["minmax", "mse"] = "minmax"
        judged: Annotated[int, AtLeast(1)] = 16

    info = MethodInfo(
        title="SVDQuant",
        venue="ICLR 2025",
        paper="arXiv:2411.05007",
        summary="smoothing, a low-rank branch in floating point, the rest in groups of 64",
        bibtex=(
            "@inproceedings{li2025svdquant, title={SVDQuant: Absorbing Outliers by Low-Rank "
            "Components for 4-Bit Diffusion Models}, author={Li, Muyang and Lin, Yujun and Zhang, "
            "Zhekai and Cai, Tianle and Li, Xiuyu and Guo, Junxian and Xie, Enze and Meng, Chenlin "
            "and Zhu, Jun-Yan and Han, Song}, booktitle={ICLR}, year={2025}}"
        ),
        deviations=(
            "rank 32 as far as it is at most an eighth of a layer's smaller side: on networks of "
            "64 to 192 channels 32 would be half of it",
            "convolutions have a scale an output channel and one range found in calibration: "
            "scales by pixel cannot leave the sum over a kernel",
            "layers that read one input each have a branch of their own (paper: q, k and v share "
            "the down-projection)",
            "unsigned codes after GELU come from an integer zero point (code: shift by 0.171875)",
            "the branch is in 32 bits, scales too (paper: 16); GPTQ and NVFP4 are not here",
            "layers that the policy keeps wider than requested have neither branch nor smoothing",
        ),
    )
    supports = Capabilities(most_iterations=0, board_bits=("w4a8", "w4a4"))
    published = published.SVDQUANT
    switches: ClassVar[Mapping[str, Any]] = {
        "rank": 0,
        "smoothing": False,
        "rounds": 1,
        "dynamic": False,
        "one_sided": False,
    }
    options: Options

    def quantize(self, ctx: MethodContext) -> QuantizedModel:
        """Set formats, then exponents and branch of each layer, then find ranges."""
        model = ctx.wrap()
        points = ctx.range_points()
        bounds, inputs = (
            input_bounds(model, points),
            layer_inputs(model, points, self.options.judged),
        )
        published = hyper_parameters.SVDQUANT_GRID
        grid = published if ctx.effort.as_published else self.options.grid
        notes: dict[str, Any] = {}
        for done, (name, layer) in enumerate(model.layers.items()):
            self.set_formats(layer, bounds[name])
            x = inputs.pop(name)
            if layer.groups == 1 and layer.bits == ctx.bits:
                notes[name] = self.decompose(layer, x, bounds[name].absmax, grid)
            ctx.progress(done + 1, len(model.layers))
        model.notes["branches"] = notes
        model.set_weight_ranges(SEARCHES[self.options.weight_search], symmetric=True)
        calibrate_activations(model, points, mse_act_range, FLOAT_WEIGHTS)
        return model

    def set_formats(self, layer: QuantLayer, bounds: Bounds) -> None:
        """Set groups of weights and run-time ranges, where integers allow them."""
        part = layer.only_part
        if layer.is_conv:
            return
        group = (
            self.options.group
            if self.options.group and layer.in_channels % self.options.group == 0
            else 0
        )
        part.use_weight_groups(group)
        if part.static is not None and self.options.dynamic:
            # symmetric codes would leave a quarter of themselves unused
            unsigned = self.options.one_sided and bool(-bounds.low.min() <= bounds.high.max() / 2)
            part.use_dynamic(symmetric=not unsigned, group_size=group)

    def decompose(self, layer: QuantLayer, x: Tensor, absmax: Tensor, grid: int) -> dict[str, Any]:
        """Smooth the layer and move its branch out, in place.

        Args:
            layer: of one part, formats set.
            x: its inputs, (rows, ...).
            absmax: largest magnitude of each input channel, (K,).
            grid: number of exponents to try, see ``Options``.

        Returns:
            What was chosen, and output errors relative to the output: without smoothing, with it,
            and with the branch refined.
        """
        trial = Trial(layer, x, SEARCHES[self.options.weight_search], self.rank_of(layer))
        weight = layer.weight.detach()
        first = trial.branch(None, 1)
        best: tuple[Exponents, Tensor | None, Branch] = (None, None, first)
        for a, b in exponents(grid) if self.options.smoothing else ():
            tried = smooth(absmax, weight, alpha=a, beta=b).factor
            found = trial.branch(tried, 1)
            if found.errors[0] < best[2].errors[0]:
                best = ((a, b), tried, found)
        chosen, factor, branch = best
        if trial.rank and self.options.rounds > 1:
            branch = trial.branch(factor, self.options.rounds)
        if factor is not None:
            layer.scale_input(factor)
        if trial.rank:
            layer.set_low_rank(branch.down, branch.up)
        errors = (first.errors[0], branch.errors[0], min(branch.errors))
        return {
            "exponents": chosen,
            "rank": trial.rank,
            "errors": [round(error, 6) for error in errors],
            "rounds": len(branch.errors),
        }

    def rank_of(self, layer: QuantLayer) -> int:
        """Rank of the layer's branch."""
        return min(self.options.rank, int(min(layer.weight.flatten(1).shape) * self.options.share))


class Trial:
    """Output errors of one layer under smoothing factors and branches.

    Args:
        layer: of one part, formats set, not changed.
        x: its inputs, (rows, ...).
        search: weight ranges.
        rank: of branches.
    """

    def __init__(self, layer: QuantLayer, x: Tensor, search: RangeSearch, rank: int) -> None:
        self.layer, self.x, self.search, self.rank = layer, x, search, rank
        self.part = layer.only_part
        self.target = layer.affine(x, layer.weight, None)
        self.power = max(float(self.target.square().sum()), 1e-30)

    def branch(self, factor: Tensor | None, rounds: int) -> Branch:
        """The branch under this factor, by output error relative to the output."""
        layer, scaled, weight = self.layer, self.x, self.layer.weight.detach()
        if factor is not None:
            shape = [-1, *[1] * layer.spatial] if layer.is_conv else [-1]
            scaled, weight = (
                self.x * factor.reciprocal().reshape(shape),
                scale_input(weight, factor),
            )
        seen = self.quantized(scaled)

        def error(low: Tensor, rest: Tensor) -> float:
            output = layer.affine(seen, rest, None) - self.target
            if self.rank:
                output += layer.affine(scaled, low, None)
            return float(output.square().sum()) / self.power

        return refine_branch(weight, self.rank, self.rest, error, rounds=rounds)

    def quantized(self, x: Tensor) -> Tensor:
        """Inputs as the layer's codes have them."""
        quantizer = self.part.act_quantizer
        if isinstance(quantizer, ActQuantizer):
            drawn = torch.Generator().manual_seed(0)
            some = x.flatten()[torch.randint(x.numel(), (JUDGED_VALUES,), generator=drawn)]
            other = ActQuantizer(quantizer.bits)
            other.set_params(mse_act_range(some, quantizer.bits))
            quantizer = other
        seen: Tensor = x if quantizer is None else quantizer(x)
        return seen

    def rest(self, weight: Tensor) -> Tensor:
        """What codes of ``weight`` stand for."""
        quantizer = self.part.weight_quantizer
        assert quantizer is not None
        other = WeightQuantizer(quantizer.bits, quantizer.group_size)
        other.find_params(weight, self.search, symmetric=True)
        value: Tensor = other(weight)
        return value.detach()


def exponents(grid: int) -> Iterator[tuple[float, float]]:
    """Pairs (a, b) of the search, but for no smoothing."""
    for step in range(1, grid):
        a = step / grid
        yield a, 0.0
        yield a, 1 - a
