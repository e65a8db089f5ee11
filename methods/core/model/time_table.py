"""Time embeddings computed once for a fixed schedule.

What depends on the timestep alone need not be quantized, nor run: a table holds the full-precision
result at each scheduled timestep (the time precalculation of arXiv:2412.06661; TFMQ-DM, CVPR 2024,
caches the same features). Embeddings that also see the prompt (SDXL's added conditions) are no
function of the timestep and do not belong here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.errors import UserError


@dataclass(frozen=True, slots=True)
class TimeTable:
    """Results by timestep.

    Attributes:
        timesteps: distinct scheduled timesteps in ascending order, (T,).
        values: the result at each, (T, ...).
    """

    timesteps: Tensor
    values: Tensor

    def __call__(self, timestep: Tensor) -> Tensor:
        """The results at these timesteps.

        Args:
            timestep: scalar or (N,), any mix of scheduled timesteps.

        Returns:
            (N, ...); a scalar gives N = 1.

        Raises:
            ValueError: a timestep is not in the schedule.
        """
        wanted = timestep.reshape(-1).to(torch.float64)
        known = self.timesteps.to(torch.float64)
        index = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
        missing = known[index] != wanted
        if bool(missing.any()):
            names = ", ".join(f"{float(t):g}" for t in torch.unique(wanted[missing])[:5])
            raise ValueError(
                f"timestep {names} is not in the table's schedule of {len(known)} steps: "
                "make the table with the sampler's own timesteps"
            )
        return self.values[index]


@torch.no_grad()
def precalculate(
    embed: Callable[[Tensor], Tensor], timesteps: Tensor, *, rows: int = 1
) -> TimeTable:
    """Run ``embed`` once for every scheduled timestep.

    Matrix products may round differently at another batch size. A table is equal to the live
    modules bit for bit at the batch size it was made with.

    Args:
        embed: from timesteps (rows,) to results (rows, ...).
        timesteps: the schedule, (S,); a sampler may repeat some.
        rows: batch size at which the live modules run.

    Raises:
        ValueError: an empty schedule, or a result that depends on more than the timestep.
    """
    if not timesteps.numel() or rows < 1:
        raise ValueError("a time table needs at least one timestep and one row")
    distinct = torch.unique(timesteps)
    values = []
    for timestep in distinct:
        result = embed(timestep.repeat(rows))
        if result.shape[0] != rows or not torch.equal(result, result[:1].expand_as(result)):
            raise ValueError(
                f"rows of timestep {float(timestep):g} differ: the embedding depends on more than "
                "the timestep, or its products round by row"
            )
        values.append(result[0].clone())
    return TimeTable(distinct.clone(), torch.stack(values))


def precalculate_projections(
    embed: Callable[[Tensor], Tensor],
    projections: Mapping[str, Callable[[Tensor], Tensor]],
    timesteps: Tensor,
    *,
    rows: int = 1,
) -> dict[str, TimeTable]:
    """One table for each block's own projection of the time embedding.

    Args:
        embed: from timesteps (rows,) to the embedding (rows, C).
        projections: by block, from the embedding to what the block adds, activation included.
        timesteps: the schedule, (S,).
        rows: batch size at which the live modules run.
    """

    def through(project: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda timestep: project(embed(timestep))

    return {
        name: precalculate(through(project), timesteps, rows=rows)
        for name, project in projections.items()
    }


class ScheduledTable(nn.Module):
    """Stands in for a module whose output depends on the sampler call alone.

    Args:
        values: its output at each sampler call, (S, C).
        clock: of the model.
    """

    values: Tensor

    def __init__(self, values: Tensor, clock: CallClock | None = None) -> None:
        super().__init__()
        self.clock = clock
        self.register_buffer("values", values)

    def forward(self, x: Tensor, *args: Tensor) -> Tensor:
        """The output at the announced call, (B, C), where B is the rows of ``x``.

        Raises:
            UserError: no call was announced, or one beyond the table.
        """
        if self.clock is None:
            raise UserError("a table by sampler call has no clock")
        index = self.clock.index
        most = int(index.max()) if isinstance(index, Tensor) else index
        if most >= len(self.values):
            raise UserError(
                f"sampler call {most} announced, the table has {len(self.values)}: use the "
                "schedule that it was made with"
            )
        rows = x.shape[0]
        if not isinstance(index, Tensor):
            return self.values[index].expand(rows, *self.values.shape[1:])
        return self.values[index].repeat_interleave(rows // len(index), 0)
