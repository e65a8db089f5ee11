import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantarena.methods.core.kernels import formats
from quantarena.methods.core.kernels.formats import IntegerLayer, pack_codes, unpack_codes


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 8), st.lists(st.integers(0, 255), max_size=70))
def test_stream_round_trip_at_the_promised_size(bits, raw):
    low, _ = formats.code_range(bits)
    codes = torch.tensor([value % (1 << bits) + low for value in raw], dtype=torch.int8)
    stream = pack_codes(codes, bits)
    assert stream.numel() == -(-len(raw) * bits // 8)
    assert torch.equal(unpack_codes(stream, bits, (len(raw),)), codes)


def test_stream_is_little_endian_row_major():
    codes = torch.tensor([[-4, 3], [0, -1]])  # offset by 4: 0, 7, 4, 3 in three bits each
    assert pack_codes(codes, 3).tolist() == [0b00111000, 0b00000111]


@pytest.mark.parametrize("bad", [torch.tensor([8]), torch.tensor([-9]), torch.tensor([0.0])])
def test_codes_out_of_range_or_not_integers_are_refused(bad):
    with pytest.raises(ValueError, match="codes must"):
        pack_codes(bad, 4)


@pytest.mark.parametrize("bits", [0, 9, -1, 2.0])
def test_bad_widths_are_refused(bits):
    with pytest.raises(ValueError, match="bits must be"):
        pack_codes(torch.zeros(1, dtype=torch.int8), bits)


def test_truncated_stream_is_refused():
    with pytest.raises(ValueError, match="need 2 uint8, got 1"):
        unpack_codes(torch.zeros(1, dtype=torch.uint8), 4, (3,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "conv3d"}, "kind must be"),
        ({"weight_bits": 9}, "bits must be"),
        ({"weight_codes": torch.full((4, 6), 9, dtype=torch.int8)}, "weight_codes must lie"),
        ({"weight_codes": torch.zeros(4, 6, 1, dtype=torch.int8)}, "cannot have shape"),
        ({"weight_scale": torch.ones(3)}, "weight_scale must have 4 entries"),
        ({"weight_scale": torch.full((4,), torch.nan)}, "weight_scale must be finite"),
        ({"weight_zero": torch.full((4,), 99)}, "weight_zero must lie"),
        ({"act_scale": torch.tensor(0.0)}, "act_scale must be positive"),
        ({"act_scale": torch.tensor(torch.nan)}, "act_scale must be positive"),
        ({"act_scale": torch.ones(2)}, "tables of one length"),
        ({"act_zero": torch.tensor(256)}, "act_zero must be integers"),
        ({"act_zero": torch.tensor(0.5)}, "act_zero must be integers"),
        ({"in_mult": torch.ones(5)}, "in_mult must have 6 entries"),
        ({"bias": torch.ones(5)}, "bias must have 4 entries"),
        ({"stride": (2, 2)}, "a linear layer has no"),
        ({"groups": 2}, "a linear layer has no"),
    ],
)
def test_invalid_layers_are_refused_in_one_line(make_layer, change, message):
    layer = make_layer((4, 6), 4, 8)
    with pytest.raises(ValueError, match=message) as caught:
        dataclasses.replace(layer, **change)
    assert "\n" not in str(caught.value)


def test_groups_must_divide_the_output(make_layer):
    with pytest.raises(ValueError, match="do not divide"):
        make_layer((5, 4, 3, 3), 4, 8, groups=2)


@pytest.mark.parametrize("steps", [0, 5])
def test_checkpoint_round_trip(make_layer, steps):
    layer = make_layer((6, 5, 3, 3), 3, 4, asymmetric=True, steps=steps, multiplier=True)
    tensors = layer.tensors()
    assert tensors["codes"].numel() == -(-6 * 5 * 9 * 3 // 8)
    again = IntegerLayer.from_tensors(layer.metadata(), tensors)
    for field in dataclasses.fields(IntegerLayer):
        one, two = getattr(layer, field.name), getattr(again, field.name)
        assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


def test_checkpoint_without_a_tensor_is_refused(make_layer):
    layer = make_layer((4, 6), 4, 8)
    tensors = layer.tensors()
    del tensors["weight_scale"]
    with pytest.raises(ValueError, match="lacks weight_scale"):
        IntegerLayer.from_tensors(layer.metadata(), tensors)
