import copy

import torch
from torch import nn

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.quantizers import recent_values
from quantarena.methods.core.quantizers.recent_values import RecentValues
from quantarena.methods.techniques.ranges.minmax import minmax_range

VALUE = torch.zeros(256)  # of 1024 bytes


def test_the_value_used_last_stays_and_the_oldest_goes():
    values, made = RecentValues(2 * VALUE.nbytes), []
    owners = [nn.Identity() for _ in range(3)]

    def use(index):
        def make():
            made.append(index)
            return VALUE.clone()

        return values.get(owners[index], make)

    first = use(0)
    use(1)
    assert use(0) is first
    use(2)  # in the place of 1, which was used before 0 was
    assert use(0) is first
    assert made == [0, 1, 2]
    use(1)
    assert made == [0, 1, 2, 1]
    assert values.bytes() == 2 * VALUE.nbytes


def test_what_does_not_fit_is_made_each_time_and_evicts_nothing():
    values = RecentValues(VALUE.nbytes)
    small, large = nn.Identity(), nn.Identity()
    stored = values.get(small, VALUE.clone)
    values.get(large, lambda: torch.zeros(1000))
    assert values.get(small, VALUE.clone) is stored
    assert values.bytes() == VALUE.nbytes


def test_values_go_with_their_owners_and_when_they_are_forgotten():
    values, owner = RecentValues(1 << 20), nn.Identity()
    values.get(owner, VALUE.clone)
    values.forget(owner)
    assert values.bytes() == 0
    values.get(owner, VALUE.clone)
    del owner
    assert values.bytes() == 0


def test_layers_give_the_same_bits_with_room_for_their_weights_and_without(monkeypatch):
    torch.manual_seed(0)
    layer = QuantLayer(nn.Linear(24, 16), Bits(4, 8))
    layer.scale_input(torch.rand(24) + 0.5)
    layer.set_low_rank(torch.randn(2, 24), torch.randn(16, 2))
    layer.set_weight_ranges(minmax_range, symmetric=False)
    x = torch.randn(5, 24)
    layer.use_act_quantizer = False

    def outputs():
        frozen = copy.deepcopy(layer)
        frozen.freeze()
        return layer.weight, layer(x), frozen(x), frozen(x)

    roomy = outputs()
    for store in (recent_values.CODED, recent_values.MOVED):
        monkeypatch.setattr(store, "room", 0)
    for one, other in zip(roomy, outputs(), strict=True):
        assert torch.equal(one, other)


def test_a_weight_that_is_replaced_forgets_what_was_moved_out_of_it():
    layer = QuantLayer(nn.Linear(4, 4), Bits(4, 8))
    layer.scale_input(torch.full((4,), 2.0))
    other = torch.randn(4, 4)
    layer.weight = nn.Parameter(other)
    assert torch.equal(layer.weight, other)
    assert layer.weight.data_ptr() == other.data_ptr()
