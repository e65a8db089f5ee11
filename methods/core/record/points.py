"""Calibration points: recorded inputs of the network, with one row for each point."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.clock import CallSchedule
from quantarena.methods.core.nested import leaves, map_leaves, prediction
from quantarena.methods.core.network import device_of

BATCH = 64
"""Points of one forward pass, where the caller has no wish."""
NUMBERS = BATCH * 3 * 32 * 32
"""Numbers of their network inputs at most: 12 points of 64x64 latents, 3 of 128x128."""


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """Network inputs with one row for each calibration point.

    Attributes:
        sample: noisy inputs, (N, C, H, W) or another shape that the network takes.
        timestep: model timestep of each point, (N,), as the sampler passed it.
        step: sampler call index of each point, (N,).
        conditions: further inputs by keyword, nested as the network takes them: tensors (N, ...),
            tensors named in ``fixed``, and constants.
        fixed: paths of the tensors in ``conditions`` that belong to all points and have no rows.
        image: index of each point's image, (N,), from 0; None where unknown.
        half: guidance half of each point, (N,), 0 for the first half of the sampler's batch; None
            where unknown. Stable Diffusion puts the unconditional half first, DiT last.
        schedule: the sampler calls that ``step`` counts; None where unknown.
    """

    sample: Tensor
    timestep: Tensor
    step: Tensor
    conditions: Mapping[str, Any] = field(default_factory=dict)
    fixed: frozenset[str] = frozenset()
    image: Tensor | None = None
    half: Tensor | None = None
    schedule: CallSchedule | None = None

    def __len__(self) -> int:
        return int(self.sample.shape[0])

    def rows(self, index: Tensor | slice) -> "CalibrationSet":
        """A subset, in the order of ``index``."""

        def pick(path: str, leaf: Any) -> Any:
            return leaf[index] if isinstance(leaf, Tensor) and path not in self.fixed else leaf

        return CalibrationSet(
            self.sample[index],
            self.timestep[index],
            self.step[index],
            map_leaves(pick, self.conditions),
            self.fixed,
            None if self.image is None else self.image[index],
            None if self.half is None else self.half[index],
            self.schedule,
        )

    def batches(self, size: int = 0) -> Iterator["CalibrationSet"]:
        """Consecutive subsets of at most ``size`` points.

        By default ``BATCH`` of them, and fewer where inputs are larger than 32x32 pixels, so that
        the activations of a pass take about as much room at any resolution.
        """
        size = size or max(1, min(BATCH, NUMBERS * len(self) // max(1, self.sample.numel())))
        for start in range(0, len(self), size):
            yield self.rows(slice(start, start + size))

    def call(self, model: nn.Module) -> Any:
        """Run ``model`` on these points; ranges by call need its clock set, see ``core.clock``.

        The points stay on the host; what the network is given is moved to its device here, and its
        output is there. So no more than one batch of a recording is ever on the device.
        """
        given = self.on(device_of(model))
        output = model(given.sample, timestep=given.timestep, return_dict=False, **given.conditions)
        return prediction(output, model)

    def on(
        self, device: torch.device | str | None, dtype: torch.dtype | None = None
    ) -> "CalibrationSet":
        """The same points with what a network is given on a device; the rest stays on the host.

        Args:
            device: where the network is; None for a network without tensors, which takes all as is.
            dtype: type of samples and of float conditions; None for their own. Timesteps keep
                theirs, for bfloat16 has no odd number above 256.
        """
        if device is None:
            return self

        def moved(_: str, leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return leaf.to(device, dtype if leaf.is_floating_point() else None)

        return replace(
            self,
            sample=moved("", self.sample),
            timestep=self.timestep.to(device),
            conditions=map_leaves(moved, self.conditions),
        )

    def histogram(self) -> dict[int, int]:
        """Number of points at each sampler call."""
        steps, counts = torch.unique(self.step, return_counts=True)
        return {int(s): int(c) for s, c in zip(steps, counts, strict=True)}

    def sha256(self) -> str:
        """Hash of samples, timesteps, steps and conditions: names, types, shapes and values."""
        digest = hashlib.sha256()
        inputs = {"sample": self.sample, "timestep": self.timestep, "step": self.step}
        for name, value in sorted((inputs | leaves({"conditions": self.conditions})).items()):
            if isinstance(value, Tensor):
                digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}:".encode())
                digest.update(raw_bytes(value))
            else:
                digest.update(f"{name}:{value!r}:".encode())
        return digest.hexdigest()


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor of any dtype; they are copied only where the tensor is strided."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def evenly(total: int, count: int) -> Tensor:
    """``count`` of ``total`` indices, evenly spread from first to last; all if there are fewer."""
    return torch.linspace(0, total - 1, min(count, total)).round().long()


def bank_schedule(points: CalibrationSet) -> CallSchedule:
    """The sampler calls that a bank of ranges found on these points has entries for."""
    calls = calls_of(points)
    if points.schedule is not None:
        return points.schedule
    times = [float(points.timestep[points.step == call][0]) for call in calls]
    return CallSchedule("", tuple(times))


def calls_of(points: CalibrationSet) -> list[int]:
    """The sampler calls of the points, 0 to S - 1.

    Raises:
        ValueError: a sampler call has no points.
    """
    calls = sorted(points.histogram())
    count = calls[-1] + 1 if points.schedule is None else len(points.schedule.timesteps)
    if calls != list(range(count)):
        missing = min(set(range(count)) - set(calls))
        raise ValueError(
            f"ranges by sampler call need points at every call, call {missing} has none: draw "
            "them with PerCall or AllCalls"
        )
    return calls
