"""PTQ4DM: calibration steps from a censored normal, ranges by MSE (Shang et al., CVPR 2023).

Nothing is learned. Calibration points are what the full-precision sampler fed the network, at steps
``t ~ clamp(floor(Normal(0.4 T, 0.4 T)))`` (Eq. 15: normally distributed time-step calibration,
NDTC), and ranges minimise ``mean |x - q(x)| ** 2.4``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from quantarena.methods import published
from quantarena.methods.api import Capabilities, Method, MethodContext, MethodInfo
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.quantizers.range_search import RangeSearch
from quantarena.methods.core.record.call_counts import CallPolicy, CountedCalls
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.record.steps import UniformStride
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.registry import register
from quantarena.methods.techniques.calibrate.averaged import calibrate_averaged
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.techniques.points.censored_normal import CensoredNormalCalls
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.ranges.mse import mse_range
from quantarena.methods.techniques.ranges.threshold import mse_1d_range

MEAN_FRACTION, STD_FRACTION = 0.4, 0.4
"""Of t over T in the released script; the paper asks for a mean of at most T / 2."""


@dataclass(frozen=True, slots=True)
class Mislabelled:
    """Points as the released code pairs them: sample and timestep do not belong together.

    Its loop counts steps from noise, compares that count with t, which counts from the clean image,
    and keeps the sample after the step: so t labels the sample that t + 1 steps have made. The bare
    network is given t itself, 0 to T - 1, and not the model timestep that it stands for. The sample
    after the last step is never fed to a network, so the recorded one before it stands in.

    Attributes:
        policy: draws t.
    """

    policy: CountedCalls

    def counts(self, trajectory: Trajectory, seed: int) -> Tensor:
        """Points whose sample each call gives, (S,) integers."""
        call, _, _ = self._places(trajectory, seed)
        return call.bincount(minlength=trajectory.calls)

    def draw(self, trajectory: Trajectory, seed: int) -> CalibrationSet:
        """The points; ``step`` is the call that the sample was recorded at."""
        call, row, label = self._places(trajectory, seed)
        points = trajectory.pick(call, row)
        return replace(points, timestep=label.to(points.timestep.dtype))

    def _places(self, trajectory: Trajectory, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Call, row and label of each point, (N,) each."""
        meant, row = self.policy.places(trajectory, seed)
        label = trajectory.calls - 1 - meant
        return (label + 1).clamp(max=trajectory.calls - 1), row, label


@register("ptq4dm")
class PTQ4DM(Method):
    """Normally distributed calibration steps and ranges by MSE.

    Attributes:
        ndtc: draw steps from the censored normal; off, they are evenly spaced.
        mse_ranges: search ranges by MSE; off, they are min-max.
    """

    info = MethodInfo(
        title="PTQ4DM",
        venue="CVPR 2023",
        paper="arXiv:2211.15736",
        summary="calibration steps from a censored normal, ranges by MSE, nothing is learned",
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
    supports = Capabilities(variants=("paper", "release"))
    published = published.PTQ4DM
    switches: ClassVar[Mapping[str, Any]] = {"ndtc": False, "mse_ranges": False}
    ndtc = True
    mse_ranges = True

    def quantize(self, ctx: MethodContext) -> QuantizedModel:
        """Draw points, then find weight and activation ranges."""
        released = ctx.variant == "release"
        model, search = ctx.wrap(), self.search(released)
        points = ctx.draw(self.steps(ctx.effort.samples, released))
        ctx.progress(0, 2)
        model.set_weight_ranges(search)
        ctx.progress(1, 2)
        if released:
            calibrate_averaged(model, points, search, seed=ctx.seed)
        else:
            calibrate_activations(model, points, search)
        ctx.progress(2, 2)
        return model

    def steps(self, samples: int, released: bool) -> CallPolicy:
        """Where calibration points come from."""
        policy: CountedCalls = UniformStride(samples)
        if self.ndtc:
            policy = CensoredNormalCalls(samples, MEAN_FRACTION, STD_FRACTION, repeat=True)
        return Mislabelled(policy) if released else policy

    def search(self, released: bool) -> RangeSearch:
        """Of weights and of activations."""
        if not self.mse_ranges:
            return minmax_range
        return mse_1d_range if released else mse_range
