"""Record what a sampler feeds the network, once, and draw calibration points from it."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from quantarena.methods.core.errors import BrokenModel


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """Network inputs, one row a point.

    Attributes:
        sample: noisy inputs, (N, C, H, W).
        timestep: model timestep of each point, (N,), as the sampler passed it.
        step: sampler call index of each point, (N,).
        conditions: further tensor inputs by keyword, each (N, ...).
    """

    sample: Tensor
    timestep: Tensor
    step: Tensor
    conditions: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.sample.shape[0])

    def rows(self, index: Tensor | slice) -> "CalibrationSet":
        """A subset, in the order of ``index``."""
        return CalibrationSet(
            self.sample[index],
            self.timestep[index],
            self.step[index],
            {name: value[index] for name, value in self.conditions.items()},
        )

    def batches(self, size: int) -> Iterator["CalibrationSet"]:
        """Consecutive subsets of at most ``size`` points."""
        for start in range(0, len(self), size):
            yield self.rows(slice(start, start + size))

    def call(self, model: nn.Module) -> Any:
        """Run ``model`` on these points."""
        return model(self.sample, timestep=self.timestep, return_dict=False, **self.conditions)[0]

    def histogram(self) -> dict[int, int]:
        """Points at each sampler call."""
        steps, counts = torch.unique(self.step, return_counts=True)
        return {int(s): int(c) for s, c in zip(steps, counts, strict=True)}

    def sha256(self) -> str:
        """Hash of samples, timesteps and steps."""
        digest = hashlib.sha256()
        for tensor in (self.sample, self.timestep, self.step):
            digest.update(tensor.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Trajectory:
    """All network calls of a sampler over a set of images.

    Attributes:
        sample: inputs by call, (S, N, C, H, W); with guidance a call holds both halves of every
            batch, so N is twice the images.
        timestep: model timestep of each call, (S,). Samplers that repeat a timestep have it twice.
        conditions: further tensor inputs by keyword, each (S, N, ...).
    """

    sample: Tensor
    timestep: Tensor
    conditions: Mapping[str, Tensor]

    @property
    def calls(self) -> int:
        """Network calls an image."""
        return int(self.sample.shape[0])

    @property
    def rows(self) -> int:
        """Points at each call."""
        return int(self.sample.shape[1])

    def pick(self, call: Tensor, row: Tensor) -> CalibrationSet:
        """The points (call[i], row[i])."""
        return CalibrationSet(
            self.sample[call, row],
            self.timestep[call],
            call,
            {name: value[call, row] for name, value in self.conditions.items()},
        )

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        tensors = {"sample": self.sample, "timestep": self.timestep}
        tensors |= {f"condition.{name}": value for name, value in self.conditions.items()}
        save_file({name: value.contiguous() for name, value in tensors.items()}, path)

    @classmethod
    def load(cls, path: Path) -> "Trajectory":
        """Read what ``save`` wrote.

        Raises:
            BrokenModel: the file is damaged.
        """
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            conditions = {
                name.removeprefix("condition."): value
                for name, value in tensors.items()
                if name.startswith("condition.")
            }
            return cls(tensors["sample"], tensors["timestep"], conditions)
        except Exception as error:
            raise BrokenModel(
                f"recorded trajectory {path} is damaged ({error}): delete it and run again"
            ) from None


@contextmanager
def recording(denoiser: nn.Module) -> Iterator[Callable[[], Trajectory]]:
    """Record every call of ``denoiser`` made inside the block.

    The sampler may be run several times (batches of images); call k of every run must have the same
    timestep. Yields a function that returns the trajectory once the runs are done.
    """
    calls: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = dict(zip(("sample", "timestep"), args, strict=False)) | kwargs
        sample = named.pop("sample", None)
        if sample is None:
            sample = named.pop("hidden_states")
        timestep = torch.as_tensor(named.pop("timestep")).reshape(-1)[:1]
        conditions = {
            name: value.detach().clone()
            for name, value in named.items()
            if isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == sample.shape[0]
        }
        calls.append((sample.detach().clone(), timestep.detach().clone(), conditions))

    handle = denoiser.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield lambda: _assemble(calls)
    finally:
        handle.remove()


def _assemble(calls: list[tuple[Tensor, Tensor, dict[str, Tensor]]]) -> Trajectory:
    if not calls:
        raise BrokenModel("the sampler never called the network: nothing was recorded")
    times = [float(t) for _, t, _ in calls]
    length = next(  # the period: a sampler may visit one timestep twice, so compare the whole
        n
        for n in range(1, len(times) + 1)
        if len(times) % n == 0 and times == times[:n] * (len(times) // n)
    )
    steps = [calls[index::length] for index in range(length)]
    return Trajectory(
        torch.stack([torch.cat([sample for sample, _, _ in step]) for step in steps]),
        torch.cat([step[0][1] for step in steps]),
        {
            name: torch.stack([torch.cat([c[name] for _, _, c in step]) for step in steps])
            for name in calls[0][2]
        },
    )


class StepPolicy(Protocol):
    """Chooses calibration points from a trajectory."""

    def draw(self, trajectory: Trajectory, seed: int) -> CalibrationSet:
        """The points; the same seed gives the same points."""
        ...


@dataclass(frozen=True, slots=True)
class UniformStride:
    """Equally many points at equally spaced sampler calls (Q-Diffusion, section 4.2).

    Attributes:
        samples: points in all; exactly that many come out.
        steps: distinct calls to visit; 0 visits as many as ``samples`` and the sampler allow.
    """

    samples: int
    steps: int = 0

    def draw(self, trajectory: Trajectory, seed: int) -> CalibrationSet:
        """Points spread evenly over calls; rows are taken in a seeded order without repetition."""
        available = trajectory.calls * trajectory.rows
        if self.samples > available:
            raise ValueError(f"{self.samples} calibration points asked, {available} recorded")
        wanted = self.steps or trajectory.calls
        count = min(wanted, trajectory.calls, self.samples)
        calls = torch.linspace(0, trajectory.calls - 1, count).round().long()
        each = torch.full((count,), self.samples // count)
        each[: self.samples % count] += 1
        generator = torch.Generator().manual_seed(seed)
        picks, rows = [], []
        for call, number in zip(calls, each, strict=True):
            if number > trajectory.rows:
                raise ValueError(
                    f"{int(number)} points at one step asked, {trajectory.rows} images recorded"
                )
            order = torch.randperm(trajectory.rows, generator=generator)
            rows.append(order[: int(number)])
            picks.append(call.repeat(int(number)))
        return trajectory.pick(torch.cat(picks), torch.cat(rows))
