"""PTQ4DM: calibration steps from a censored normal, ranges by MSE (Shang et al., CVPR 2023).

Nothing is learned. Calibration points are what the full-precision sampler fed the network, at steps
``t ~ clamp(floor(Normal(0.4 T, 0.4 T)))`` (Eq. 15: normally distributed time-step calibration,
NDTC), and ranges minimise ``mean |x - q(x)| ** 2.4``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from quantarena.methods import published
from quantarena.methods.api import (
    CalibrationSet,
    CallPolicy,
    Capabilities,
    CensoredNormalCalls,
    Method,
    MethodContext,
    MethodInfo,
    MethodOptions,
    QuantizedModel,
    RangeSearch,
    UniformStride,
    minmax_range,
    mse_range,
    register,
)
from quantarena.methods.core.record.call_counts import CountedCalls
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.techniques.calibrate.averaged import Calibrate, all_at_once, averaged
from quantarena.methods.techniques.ranges.threshold import mse_1d_range

MEAN_FRACTION, STD_FRACTION = 0.4, 0.4
"""Mean and deviation of t over T in the release; the paper asks for a mean of at most T / 2."""


@dataclass(frozen=True, slots=True)
class Mislabelled:
    """Points as the released code pairs them: a sample and a timestep that do not belong together.

    Its loop counts steps from noise, compares that count with t, which counts from the clean image,
    and keeps the sample after the step: so t labels the sample that t + 1 steps have made. The bare
    network is given t itself, 0 to T - 1, and not the model timestep that it stands for. The sample
    after the last step is never fed to a network, so the recorded one before it stands in.

    Attributes:
        policy: policy that draws t.
    """

    policy: CountedCalls

    def counts(self, trajectory: Trajectory, seed: int) -> Tensor:
        """Number of points whose sample comes from each call, (S,) integers."""
        call, _, _ = self._places(trajectory, seed)
        return call.bincount(minlength=trajectory.calls)

    def draw(self, trajectory: Trajectory, seed: int) -> CalibrationSet:
        """Draw the points; ``step`` is the call that the sample was recorded at."""
        call, row, label = self._places(trajectory, seed)
        points = trajectory.pick(call, row)
        return replace(points, timestep=label.to(points.timestep.dtype))

    def _places(self, trajectory: Trajectory, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Call, row and label of each point, (N,) each."""
        meant, row = self.policy.places(trajectory, seed)
        label = trajectory.calls - 1 - meant
        return (label + 1).clamp(max=trajectory.calls - 1), row, label


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a variant of PTQ4DM calibrates.

    Attributes:
        search: range search of both weights and activations.
        points: turns the policy that draws t into the policy that draws the points.
        calibrate: sets activation ranges from a model, its points, a range search and a seed.
    """

    search: RangeSearch
    points: Callable[[CountedCalls], CallPolicy]
    calibrate: Calibrate


RECIPES = {
    "paper": Recipe(mse_range, lambda policy: policy, all_at_once),
    "release": Recipe(mse_1d_range, Mislabelled, averaged),
}


@register("ptq4dm")
class PTQ4DM(Method):
    """Normally distributed calibration steps and ranges by MSE."""

    @dataclass(frozen=True)
    class Options(MethodOptions):
        """Options of PTQ4DM.

        Attributes:
            ndtc: draw calibration steps from the censored normal; if false, they are evenly spaced.
            mse_ranges: search ranges by MSE; if false, they are min-max.
        """

        ndtc: bool = True
        mse_ranges: bool = True

    info = MethodInfo(
        title="PTQ4DM",
        venue="CVPR 2023",
        paper="arXiv:2211.15736",
        summary="calibration steps from a censored normal, ranges by MSE, nothing is learned",
        version=2,
        bibtex=(
            "@inproceedings{shang2023ptq4dm, title={Post-training Quantization on Diffusion "
            "Models}, author={Shang, Yuzhang and Yuan, Zhihang and Xie, Bin and Wu, Bingzhe and "
            "Yan, Yan}, booktitle={CVPR}, year={2023}}"
        ),
        deviations=(
            "layer inputs are quantized, which integer kernels need (paper: layer outputs, so the "
            "next layer's real input stays in floating point)",
            "points follow the preset and share the recorded images; a step that is drawn more "
            "often than there are images repeats points (paper: 1,024 points, each of its own run)",
            "the normal's deviation is 0.4 T, the released script's (paper: ambiguous)",
            "ranges are found by shrinking min-max at a loss of power 2.4 (paper: loss and power, "
            "not the search); release: thresholds with the zero point in the middle or at an end, "
            "averaged over batches of 256",
            "release: the sample after the last step is recorded nowhere, the one before stands in",
        ),
    )
    supports = Capabilities(variants=tuple(RECIPES), most_iterations=0)
    published = published.PTQ4DM
    switches: ClassVar[Mapping[str, Any]] = {"ndtc": False, "mse_ranges": False}
    options: Options

    def quantize(self, ctx: MethodContext) -> QuantizedModel:
        """Draw points, then find weight and activation ranges."""
        recipe = RECIPES[ctx.variant]
        model, search = ctx.wrap(), self.search(recipe)
        points = ctx.range_points(self.steps(ctx.range_samples, recipe))
        ctx.progress(0, 2)
        model.set_weight_ranges(search)
        ctx.progress(1, 2)
        recipe.calibrate(model, points, search, ctx.seed)
        ctx.progress(2, 2)
        return model

    def steps(self, samples: int, recipe: Recipe) -> CallPolicy:
        """The policy that draws the calibration points."""
        policy: CountedCalls = UniformStride(samples)
        if self.options.ndtc:
            policy = CensoredNormalCalls(samples, MEAN_FRACTION, STD_FRACTION, repeat=True)
        return recipe.points(policy)

    def search(self, recipe: Recipe) -> RangeSearch:
        """The range search of both weights and activations."""
        return recipe.search if self.options.mse_ranges else minmax_range
