import dataclasses

import pytest
import torch

from quantarena.methods.core.kernels import layout


def worst_lane(blocks, chunks, act_max):
    """Largest and smallest value that any int16 lane can hold at the end of a chunk."""
    high, low = 0, 0
    for panel, lengths in enumerate(chunks):
        start = 0
        for length in lengths:
            part = blocks[panel, :, start : start + length].reshape(16, -1, 2, 2).int()
            high = max(high, int(part.clamp(min=0).sum(dim=(1, 3)).max()) * act_max)
            low = min(low, int(part.clamp(max=0).sum(dim=(1, 3)).min()) * act_max)
            start += length
    return high, low


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
@pytest.mark.parametrize("extreme", [False, True])
def test_chunks_never_overflow_and_are_maximal(bits, extreme):
    make = torch.Generator().manual_seed(bits)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    blocks = torch.randint(low, high + 1, (3, 16, 40, 16), generator=make).to(torch.int8)
    if extreme:
        blocks = torch.full_like(blocks, low)
    chunks = layout.prove_chunks(blocks, 255)
    assert [sum(c) for c in chunks] == [40] * 3
    top, bottom = worst_lane(blocks, chunks, 255)
    assert top <= 32767
    assert bottom >= -32768
    for panel in range(3):
        start = 0
        for first, second in zip(chunks[panel], chunks[panel][1:], strict=False):
            longer = blocks[panel : panel + 1, :, start : start + first + 1]
            over = worst_lane(longer, [[first + 1]], 255)
            assert over[0] > 32767 or over[1] < -32768
            start += first
            assert second > 0


def test_proof_fails_where_one_unit_overflows():
    assert layout.prove_chunks(torch.full((1, 16, 2, 16), 127, dtype=torch.int8), 255) is None


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("bits", range(1, 9))
def test_panels_unpack_to_the_same_codes(make_layer, bits, wide):
    for shape, groups in (((5, 7), 1), ((40, 33), 1), ((6, 3, 3, 3), 2), ((20, 5, 1, 2), 1)):
        layer = make_layer(shape, bits, 8, codes="uniform", groups=groups)
        panels = layout.pack_panels(layer, wide)
        assert panels.codes.shape[2] == 32 * bits
        again = layout.unpack_panels(panels.codes, shape, bits, groups, panels.chunks.pair)
        assert torch.equal(again, layer.weight_codes)
        assert torch.equal(panels.sums.long(), layer.weight_codes.flatten(1).long().sum(1))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("side", [1, -1])
def test_sums_are_proven_for_what_is_multiplied(make_layer, bits, side):
    layer = make_layer((5, 64), bits, 8, codes="low" if side > 0 else "high")
    zero = torch.full((5,), side << bits, dtype=torch.int32)
    far = dataclasses.replace(layer, weight_zero=zero)
    found = layout.factors(far)
    assert found.dtype == torch.int8
    want = far.weight_codes.int() - (zero[:, None] if bits <= layout.FOLDED_BITS else 0)
    assert torch.equal(found.int(), want)
    few = layout.pack_panels(layer, False).chunks
    many = layout.pack_panels(far, False).chunks
    assert many.pair or (not few.pair and len(many.units) >= len(few.units))
    assert layout.pack_panels(far, True).chunks.pair is False
