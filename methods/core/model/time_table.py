"""A table by sampler call in the place of a module that depends on the call alone.

A time embedding, for one, need not be quantized nor run: the table holds its full-precision output
at each call of a fixed schedule (the time precalculation of arXiv:2412.06661; TFMQ-DM, CVPR 2024,
caches the same features). Embeddings that also see the prompt (SDXL's added conditions) are no
function of the call and do not belong here.
"""

from torch import Tensor, nn

from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.errors import UserError


class ScheduledTable(nn.Module):
    """Stands in for a module whose output depends on the sampler call alone.

    Args:
        values: its output at each sampler call, (S, C).
        clock: the clock of the model.
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
