"""The rotation of channels: orthogonal and flat at every width, and the same whatever the batch."""

import math

import pytest
import torch

from quantarena.methods.core.rotation import additions, factors, hartley, rotate

WIDTHS = [1, 2, 3, 4, 7, 12, 20, 24, 64, 96, 192, 320, 1152]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_matrix_is_its_own_inverse_and_has_no_large_entry(width):
    matrix = rotate(torch.eye(width)) / math.sqrt(width)
    assert torch.allclose(matrix @ matrix, torch.eye(width), atol=1e-5)
    assert torch.equal(matrix, matrix.T)
    assert float(matrix.abs().max()) * math.sqrt(width) <= math.sqrt(2) + 1e-5


def test_it_is_the_formula_written_out():
    walsh = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    turn = [2 * math.pi * k / 3 for k in range(3)]
    cas = torch.tensor([[math.cos(turn[i * j % 3]) + math.sin(turn[i * j % 3]) for j in range(3)]
                        for i in range(3)])  # fmt: skip
    wanted = torch.kron(cas, torch.kron(walsh, walsh))
    assert torch.allclose(rotate(torch.eye(12)), wanted, atol=1e-6)
    assert torch.allclose(hartley(3), cas, atol=1e-6)


def test_a_row_does_not_depend_on_its_batch():
    x = torch.randn(37, 96)
    assert torch.equal(rotate(x)[5:6], rotate(x[5:6]))
    assert torch.equal(rotate(x.T.contiguous().T), rotate(x))
    assert rotate(x[:0]).shape == (0, 96)


def test_one_channel_spreads_over_all():
    x = torch.zeros(96)
    x[17] = 1.0
    assert float(rotate(x).abs().min()) > 0.3
    assert float(rotate(x).square().sum()) == pytest.approx(96.0, rel=1e-5)


def test_factors_and_cost():
    assert [factors(n) for n in (1, 6, 64, 1152)] == [(1, 1), (3, 2), (1, 64), (9, 128)]
    assert additions(64) == 64 * (6 + 1)
    assert additions(192) == 192 * (6 + 3 + 1)
    with pytest.raises(ValueError, match="0 channels"):
        factors(0)
