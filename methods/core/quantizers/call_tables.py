"""The lookup of a bank's entry for the sampler call of each batch row."""

from torch import Tensor

from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.errors import UserError


def bank_entry(clock: CallClock | None, entries: int, rows: int) -> int | Tensor:
    """The entry of a bank that the clock points at.

    Args:
        clock: the clock of the model.
        entries: number of entries of the bank.
        rows: batch rows of the input; a multiple of the announced rows where heads or frames are
            folded in.

    Returns:
        One entry for the whole input, or one for each row, (rows,) int64.

    Raises:
        UserError: no clock, no call announced, or one that is not in the bank.
        ValueError: announced rows that do not divide the input's.
    """
    if clock is None:
        raise UserError(f"a layer with {entries} ranges by sampler call has no clock")
    index = clock.index
    low, high = (index, index) if isinstance(index, int) else (int(index.min()), int(index.max()))
    if low < 0 or high >= entries:
        raise UserError(
            f"sampler call {high if low >= 0 else low} announced, ranges were calibrated for "
            f"{entries} calls: use the schedule of the calibration"
        )
    if isinstance(index, int) or low == high:
        return low
    if rows % len(index):
        raise ValueError(f"{len(index)} sampler calls announced for {rows} rows")
    return index.repeat_interleave(rows // len(index))
