"""Blocks that get the rows of all points in one axis, as the text projection of HunyuanDiT does."""

import pytest
import torch

from quantarena.methods.core.errors import Unsupported
from quantarena.methods.techniques.learn.block_rows import BlockInputs


def chunks(*tensors):
    return [((tensor,), {}) for tensor in tensors]


def test_rows_of_one_point_stay_together():
    x = torch.arange(5 * 3 * 2).float().reshape(15, 2)  # 5 points of 3 rows each
    inputs = BlockInputs("b", chunks(x[:9], x[9:]), [3, 2], None)
    assert inputs.folded
    assert inputs.stream.shape == (5, 3, 2)
    (picked,), _ = inputs.at(torch.tensor([4, 1]))
    assert picked.tolist() == [*x[12:15].tolist(), *x[3:6].tolist()]
    (replaced,), _ = inputs.at(torch.tensor([0]), torch.full((1, 3, 2), 7.0))
    assert replaced.tolist() == [[7.0, 7.0]] * 3


def test_a_stream_with_a_row_for_each_point_is_not_folded():
    table = torch.arange(8.0).reshape(8, 1)  # shared, and 8 is a multiple of 4
    inputs = BlockInputs("b", [((torch.ones(4, 2), table), {})], [4], None)
    assert not inputs.folded
    assert inputs.stream.shape == (4, 2)
    args, _ = inputs.at(torch.tensor([0]))
    assert args[1] is table


def test_rows_that_cannot_be_shared_out_are_refused():
    with pytest.raises(Unsupported, match="not one row for each"):
        BlockInputs("b", chunks(torch.ones(9, 2), torch.zeros(7, 2)), [3, 2], None)
