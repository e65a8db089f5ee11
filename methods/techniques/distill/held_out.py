"""Errors of the prediction on points whose images no walk of a distillation has visited.

Which images walk is known only afterwards. So every point is measured before and after, and those
of images that walked are left out then.
"""

from collections.abc import Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.record.points import CalibrationSet

NOTHING_HELD = "no error on unseen images: every recorded image walked"
"""What the notes of a row say instead of such errors."""


@dataclass(frozen=True, slots=True)
class Judge:
    """Measures how far the quantized network predicts from full precision.

    Attributes:
        points: the points to measure on, with their images.
        targets: full precision's predictions there.
    """

    points: CalibrationSet
    targets: Tensor

    @classmethod
    def of(cls, teacher: nn.Module, points: CalibrationSet) -> "Judge":
        """Runs the teacher once on the points."""
        with torch.no_grad():
            return cls(points, torch.cat([few.call(teacher).cpu() for few in points.batches()]))

    @torch.no_grad()
    def errors(self, model: QuantizedModel) -> Tensor:
        """Squared error of each point's prediction over the squared prediction, (N,)."""
        with model.using(weights=True, acts=True):
            found = torch.cat([model.run(few).cpu() for few in self.points.batches()])
        wrong = (found - self.targets).square().flatten(1).sum(1)
        whole = self.targets.square().flatten(1).sum(1)
        return wrong / whole.clamp_min(torch.finfo(whole.dtype).tiny)

    def unseen(self, errors: Tensor, walked: Set[int]) -> float | None:
        """The mean over points of images that did not walk; None where there are none."""
        assert self.points.image is not None
        kept = [i for i, image in enumerate(self.points.image.tolist()) if image not in walked]
        return float(errors[kept].mean()) if kept else None
