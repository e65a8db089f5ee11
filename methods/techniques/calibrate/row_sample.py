"""Random samples of values that arrive in batches, for range searches."""

import torch
from torch import Tensor


class RowSample:
    """The extremes and a random sample of each row's values over all batches.

    Args:
        quota: values kept of each row and batch; the extremes come on top.
    """

    def __init__(self, quota: int) -> None:
        self.quota = quota
        self.batches: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """Add one batch, (rows, values)."""
        extremes = torch.stack(rows.aminmax(dim=1), dim=1)
        if rows.shape[1] > self.quota:
            # drawn, not strided: a stride that divides the row length sees one channel only
            generator = torch.Generator().manual_seed(len(self.batches))
            rows = rows[:, torch.randint(rows.shape[1], (self.quota,), generator=generator)]
        self.batches.append(torch.cat([rows, extremes], dim=1))

    def values(self) -> Tensor:
        """The sample over all batches, (rows, values)."""
        return torch.cat(self.batches, dim=1)
