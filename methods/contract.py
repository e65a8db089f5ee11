"""The contract between a method and the harness: what a method is given, and what it returns.

Authors of methods import these names from ``quantarena.methods.api``.
"""

import random
import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from quantarena.methods.contestant import Contestant
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.errors import QuantArenaError
from quantarena.methods.core.model.call_outputs import tabulate_quantized, verify_tables
from quantarena.methods.core.model.model import QuantizedModel, wrap
from quantarena.methods.core.model.policy import Policy
from quantarena.methods.core.model.width_budget import WidthBudget
from quantarena.methods.core.network import device_of
from quantarena.methods.core.record.call_counts import CallPolicy
from quantarena.methods.core.record.held_out import held_out
from quantarena.methods.core.record.points import evenly
from quantarena.methods.core.record.steps import AllCalls, PerCall, UniformStride, WholeWalks
from quantarena.methods.core.record.trajectory import CalibrationSet, Trajectory
from quantarena.methods.core.trace.blocks import Block, partition
from quantarena.methods.core.trace.network import Graph
from quantarena.methods.core.visits import visited_device
from quantarena.methods.info import Effort
from quantarena.methods.widths import DECLARED, Widths, verify

Progress = Callable[[int, int], None]
"""Called with (done, total); the total may change."""


HELD_OUT = 32
"""Largest number of points on which losses are measured that training did not see."""

TABLE_ROWS = 16
"""Rows at each sampler call that decide whether a layer depends on the call alone."""

_PIECE = 1 << 20
"""Numbers of a tensor that are summed at once."""


class DrawRecord:
    """The calibration points that a method drew through its context, for the row."""

    def __init__(self) -> None:
        self._draws: list[dict[str, Any]] = []
        self._apart: dict[str, Any] = {}

    def note(self, steps: CallPolicy, points: CalibrationSet, seed: int) -> None:
        """Add one draw."""
        self._draws.append(_draw_note(steps, points, seed))

    def note_apart(self, use: str, steps: CallPolicy, points: CalibrationSet, seed: int) -> None:
        """Say which points were drawn for a use with a budget of its own."""
        self._apart[use] = _draw_note(steps, points, seed)

    def as_dict(self) -> dict[str, Any]:
        """The last draw, any earlier ones under ``earlier``, those for ranges and walks by name."""
        if not self._draws:
            return dict(self._apart)
        *earlier, last = self._draws
        return {**last, **({"earlier": list(earlier)} if earlier else {}), **self._apart}


def _draw_note(steps: CallPolicy, points: CalibrationSet, seed: int) -> dict[str, Any]:
    """What a row says of one draw; ``images`` is the number of distinct ones."""
    images = 0 if points.image is None else len(set(points.image.tolist()))
    return {
        "policy": repr(steps),
        "points": len(points),
        "images": images,
        "steps": {str(step): count for step, count in points.histogram().items()},
        "sha256": points.sha256(),
        "seed": seed,
    }


@dataclass(frozen=True, slots=True)
class MethodContext:
    """Everything that a method is given.

    Attributes:
        model: the full-precision network; never change it, ``wrap`` copies it.
        graph: its layers, roles, MACs and skip concatenations.
        trajectory: every network call of the full-precision sampler on the calibration images.
        bits: requested widths.
        policy: the harness's assignment of widths to layers.
        variant: ``paper`` (the formula) or ``release`` (the official code's behaviour).
        seed: seed of everything random.
        effort: what the preset allows.
        progress: callback to report progress.
        draws: record of the points that ``draw`` has drawn.
    """

    model: nn.Module
    graph: Graph
    trajectory: Trajectory
    bits: Bits
    policy: Policy
    variant: str
    seed: int
    effort: Effort
    progress: Progress = lambda done, total: None
    draws: DrawRecord = field(default_factory=DrawRecord, compare=False)

    @property
    def device(self) -> torch.device:
        """Where methods compute: the device of the network's parameters.

        The recording stays on the host. What a network is run on is moved to its device batch by
        batch, see ``CalibrationSet.call``.
        """
        return device_of(self.model) or torch.device("cpu")

    @property
    def calibration(self) -> dict[str, Any]:
        """What ``draw`` has drawn, as the row shows it."""
        return self.draws.as_dict()

    @property
    def widths(self) -> Widths:
        """The widths that the harness's own policy assigns."""
        return Widths.of(self.policy, self.graph, self.bits)

    @property
    def budget(self) -> WidthBudget | None:
        """What widths may cost where the method chooses them; None where it does not."""
        return WidthBudget.of(self.policy, self.graph, self.bits)

    def wrap(
        self,
        *,
        splits: bool | Mapping[str, Sequence[int]] = False,
        policy: Policy | None = None,
        widths: Mapping[str, Bits] | None = None,
    ) -> QuantizedModel:
        """Copy the model and put quantizers where the policy wants them, their ranges not set yet.

        Args:
            splits: split the layers that a skip concatenation feeds, or the widths of each layer's
                parts.
            policy: another assignment than the harness's own. What it changes is declared in the
                model's notes, and so on the row.
            widths: under policy ``budget``, widths of layers that it leaves free; others have those
                requested. They are declared likewise. A model to try widths on may exceed the
                budget, the finished one may not.

        Raises:
            QuantArenaError: widths of a layer that is not free.
        """
        if policy is None and not widths:
            return self._wrapped(self.widths, splits)
        asked = Widths.of(policy or self.policy, self.graph, self.bits)
        if widths:
            asked = replace(asked, layers={**asked.layers, **self._free(widths)})
        model = self._wrapped(asked, splits)
        if changes := self.widths.changes(asked):
            model.notes[DECLARED] = changes
        return model

    def _free(self, widths: Mapping[str, Bits]) -> Mapping[str, Bits]:
        free = () if self.budget is None else self.budget.layers
        if others := [name for name in widths if name not in free]:
            raise QuantArenaError(
                f"policy {self.policy.name} leaves no choice of width to {others[0]}"
            )
        return widths

    def tabulate(self, model: QuantizedModel, names: Collection[str]) -> dict[str, str]:
        """Put tables in the place of quantized layers whose output the sampler call alone decides.

        A table holds what the quantized layer gives: no output changes, and ``run`` checks it. Do
        this last, for codes are fixed.

        Returns:
            For each of these layers that is not tabulated, the reason.
        """
        return tabulate_quantized(model, self._table_points(), names)

    def _table_points(self) -> CalibrationSet:
        """The same rows, of several images and guidance halves, at every sampler call."""
        rows = evenly(self.trajectory.rows, TABLE_ROWS)
        calls = torch.arange(self.trajectory.calls)
        return self.trajectory.pick(calls.repeat_interleave(len(rows)), rows.repeat(len(calls)))

    def restore(
        self, splits: Mapping[str, Sequence[int]], notes: Mapping[str, Any]
    ) -> QuantizedModel:
        """The wrapped model that a saved state fits, from the notes of the model that was saved."""
        return self._wrapped(self.widths.changed(notes.get(DECLARED, {})), splits)

    def _wrapped(
        self, widths: Widths, splits: bool | Mapping[str, Sequence[int]]
    ) -> QuantizedModel:
        return wrap(
            self.model, self.graph, widths.layers, splits=splits, attention=widths.attention
        )

    def draw(self, steps: CallPolicy) -> CalibrationSet:
        """Draw calibration points from the trajectory; the row shows what was drawn."""
        points = steps.draw(self.trajectory, self.seed)
        self.draws.note(steps, points, self.seed)
        return points

    @property
    def range_samples(self) -> int:
        """The number of points that ranges may be found on, of those that were recorded."""
        most = self.effort.range_samples or self.effort.samples
        return min(self.trajectory.calls * self.trajectory.rows, most)

    def range_points(self, steps: CallPolicy | None = None) -> CalibrationSet:
        """The points to find ranges, smoothing and dilation on; the row shows what they were.

        These need one pass and no gradients, so they see all that was recorded, or equally many
        points of each sampler call, dealt over all images, where that is more than the preset
        allows. Few images would make ranges by sampler call too narrow for the others.

        Args:
            steps: another policy, of a method whose idea is which points to calibrate on; it
                draws ``range_samples`` of them.
        """
        recorded, most = self.trajectory, self.range_samples
        if steps is None and most < recorded.calls * recorded.rows:
            each = most // recorded.calls
            steps = PerCall(each) if each else UniformStride(most)
        steps = steps or AllCalls()
        points = steps.draw(recorded, self.seed)
        self.draws.note_apart("ranges", steps, points, self.seed)
        return points

    def walk_points(self, rows: int) -> CalibrationSet:
        """The same rows at every sampler call, call after call; the row shows which.

        A walk costs what is learned on it, which the method's updates count; its recording is
        there. So ``effort.samples`` does not limit the rows.
        """
        steps = WholeWalks(rows)
        points = steps.draw(self.trajectory, self.seed)
        self.draws.note_apart("walks", steps, points, self.seed)
        return points

    def held_out(self, points: CalibrationSet) -> CalibrationSet | None:
        """Recorded points that are not among these, for losses that training did not see.

        Give them to ``reconstruct``; they cost next to nothing and teach nothing.
        """
        return held_out(self.trajectory, points, HELD_OUT, self.seed)

    def judged_points(self) -> CalibrationSet:
        """Recorded points, spread over images and calls, that ``distill`` measures errors on.

        Like ``held_out``, for training that deals its own images.
        """
        generator = torch.Generator().manual_seed(self.seed)
        rows = torch.randperm(self.trajectory.rows, generator=generator)[:HELD_OUT]
        calls = torch.arange(len(rows)) * self.trajectory.calls // len(rows)
        return self.trajectory.pick(calls, rows)

    def blocks(
        self, model: QuantizedModel, points: CalibrationSet, temporal: Collection[str] = ()
    ) -> tuple[Block, ...]:
        """Cut the model into blocks, in execution order.

        Args:
            model: the wrapped model.
            points: calibration points; two of them run once.
            temporal: layers that become one block of their own, such as all that the time
                embedding goes through (TFMQ-DM).
        """
        probe = points.rows(slice(0, 2))
        with model.using(weights=False, acts=False):
            return partition(
                model.module, model.layers, lambda: probe.call(model.module), temporal=temporal
            )


class Method(Contestant):
    """Base of all methods; ``run`` is what the harness calls.

    Attributes:
        published: the paper's own layers and widths, for policy ``published``.
    """

    published: ClassVar[Policy | None] = None

    @abstractmethod
    def quantize(self, ctx: MethodContext) -> QuantizedModel:
        """Make the quantized model, with every weight and activation range set.

        Raises:
            Unsupported: the request cannot be met; the cell becomes a skipped row.
        """

    def run(self, ctx: MethodContext) -> QuantizedModel:
        """Check, seed, quantize, verify and freeze; the model's notes hold the seconds.

        Raises:
            Unsupported: the method cannot meet the request.
            QuantArenaError: the method broke its contract (a range missing, NaN, other widths than
                the policy's and those that it declared).
        """
        self.check(ctx.bits, ctx.variant, ctx.policy.name)
        if visited_device(ctx.model) is not None:
            self.check_offload()
        seed_all(ctx.seed)
        # before the method runs: what it is checked against is out of its reach
        wanted, budget, before = ctx.widths, ctx.budget, network_mark(ctx.model)
        started = time.perf_counter()
        model = self.quantize(ctx)
        if network_mark(ctx.model) != before:
            raise QuantArenaError(f"{self.name} changed the full-precision network: copy it first")
        declared = wanted.changed(model.notes.get(DECLARED, {}))
        verify(model, declared, self.name)
        if budget is not None:  # again when they are observed, see ``observe``
            budget.without(ctx.graph.inside(model.tables)).require(
                declared.layers,
                branches={
                    name: sum(option.branch_values() for option in layer.options)
                    for name, layer in model.layers.items()
                },
            )
        model.freeze()
        if model.replaced:
            verify_tables(model, ctx._table_points())
        model.notes["quantize_seconds"] = time.perf_counter() - started
        return model


def network_mark(network: nn.Module) -> list[tuple[str, int, int, float]]:
    """Name, storage, version and sum of every tensor of a network; a change of one changes it."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return [
        (
            name,
            tensor.untyped_storage()._cdata,  # not an address: not every device has one to read
            tensor._version,
            _sum(tensor),
        )
        for name, tensor in tensors.items()
    ]


def _sum(tensor: Tensor) -> float:
    """Sum of magnitudes in float64, a piece at a time: a copy of a large weight takes room."""
    pieces = torch.split(tensor.detach().reshape(-1), _PIECE)
    return sum((float(piece.double().abs().sum()) for piece in pieces), 0.0)


def seed_all(seed: int) -> None:
    """Seed every generator that a method may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
