"""What a sampler feeds the network, call by call; recorded by ``core.recording``."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from quantarena.methods.core.clock import CallSchedule
from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.nested import Tree, from_json, leaves, map_leaves, to_json
from quantarena.methods.core.record import tensor_file
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.record.tensor_file import Column

__all__ = ["CalibrationSet", "Trajectory", "build", "describe"]

FORMAT = 2


@dataclass(frozen=True, slots=True)
class Trajectory:
    """All network calls of a sampler over a set of images.

    Attributes:
        sample: inputs by call, (S, N, C, H, W): x before the step. With guidance N is ``halves``
            times the images: all images' first halves, then all images' second halves.
        timestep: model timestep of each call, (S,). Samplers that repeat a timestep have it twice.
        conditions: further inputs by keyword, nested as the network takes them: tensors
            (S, N, ...), those named in ``fixed``, and constants. What is the same at every call is
            in memory and on disk once, expanded over S.
        fixed: paths of the tensors in ``conditions`` that have no row a point and belong to all.
        halves: rows of one image at each call: 2 with classifier-free guidance.
        schedule: the sampler's calls; None where the recording did not see the scheduler.
        features: of the first n rows at each call, (S, n, C, ...); None where none were asked for.
    """

    sample: Tensor
    timestep: Tensor
    conditions: Mapping[str, Any]
    fixed: frozenset[str] = frozenset()
    halves: int = 1
    schedule: CallSchedule | None = None
    features: Tensor | None = None

    @property
    def calls(self) -> int:
        """Network calls an image."""
        return int(self.sample.shape[0])

    @property
    def rows(self) -> int:
        """Points at each call."""
        return int(self.sample.shape[1])

    @property
    def images(self) -> int:
        """Images recorded."""
        return self.rows // self.halves

    def pick(self, call: Tensor, row: Tensor) -> CalibrationSet:
        """The points (call[i], row[i]); row ``h * images + i`` is half h of image i."""

        def chosen(path: str, leaf: Any) -> Any:
            return leaf[call, row] if _by_row(path, leaf, self.fixed) else leaf

        return CalibrationSet(
            self.sample[call, row],
            self.timestep[call],
            call,
            map_leaves(chosen, self.conditions),
            self.fixed,
            image=row % self.images,
            half=row // self.images,
            schedule=self.schedule,
        )

    def first_half(self) -> "Trajectory":
        """The same without the further guidance halves; row i is image i."""

        def cut(path: str, leaf: Any) -> Any:
            return leaf[:, : self.images] if _by_row(path, leaf, self.fixed) else leaf

        conditions = map_leaves(cut, self.conditions)
        sample = self.sample[:, : self.images]
        return dataclasses.replace(self, sample=sample, conditions=conditions, halves=1)

    def save(self, path: Path) -> None:
        """Write as safetensors, one call in memory at a time.

        Raises:
            OSError: the disk is full.
        """
        columns = {"sample": _column(self.sample), "timestep": _column(self.timestep)}
        if self.features is not None:
            columns["features"] = _column(self.features)
        once = set()
        for name, leaf in leaves(self.conditions).items():
            if isinstance(leaf, Tensor):
                if _by_row(name, leaf, self.fixed) and leaf.stride(0) == 0:
                    once.add(name)
                    leaf = leaf[0]
                columns[f"condition.{name}"] = _column(leaf)
        notes = describe(self.conditions, self.fixed, once, self.halves, self.schedule)
        tensor_file.write(path, columns, notes)

    @classmethod
    def load(cls, path: Path) -> "Trajectory":
        """What ``save`` wrote, mapped: values are read from disk when they are used.

        Raises:
            BrokenModel: the file is damaged.
        """
        try:
            return build(*tensor_file.read(path))
        except Exception as error:
            raise BrokenModel(
                f"recorded trajectory {path} is damaged ({error}): delete it and run again"
            ) from None


def describe(
    conditions: Tree,
    fixed: Iterable[str],
    once: Iterable[str],
    halves: int,
    schedule: CallSchedule | None,
) -> dict[str, str]:
    """Metadata of a trajectory's file.

    Args:
        conditions: with any tensor in place of each tensor.
        fixed: as in ``Trajectory``.
        once: paths of the tensors that are stored for one call and belong to all.
        halves: as in ``Trajectory``.
        schedule: as in ``Trajectory``.
    """
    notes = {
        "format": FORMAT,
        "conditions": to_json(conditions),
        "fixed": sorted(fixed),
        "once": sorted(once),
        "halves": halves,
        "schedule": None if schedule is None else [schedule.sampler, schedule.timesteps],
    }
    return {"trajectory": json.dumps(notes)}


def build(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Trajectory:
    """A trajectory from the tensors and the metadata of its file.

    Raises:
        KeyError, ValueError: they belong to no trajectory.
    """
    notes = json.loads(metadata["trajectory"])
    if notes["format"] != FORMAT:
        raise ValueError(f"format {notes['format']}, this version reads {FORMAT}")
    calls = len(tensors["timestep"])
    found = {}
    for name, value in tensors.items():
        if name.startswith("condition."):
            path = name.removeprefix("condition.")
            found[path] = value.expand(calls, *value.shape) if path in notes["once"] else value
    schedule = notes["schedule"]
    return Trajectory(
        tensors["sample"],
        tensors["timestep"],
        from_json(notes["conditions"], found),
        frozenset(notes["fixed"]),
        notes["halves"],
        None if schedule is None else CallSchedule(schedule[0], tuple(schedule[1])),
        tensors.get("features"),
    )


def _by_row(path: str, leaf: Any, fixed: frozenset[str]) -> bool:
    return isinstance(leaf, Tensor) and path not in fixed


def _column(value: Tensor) -> Column:
    pieces = (value[k] for k in range(len(value))) if value.dim() else iter([value])
    return Column(value.dtype, tuple(value.shape), pieces)
