import copy

import pytest
import torch

from quantarena.methods.core.clock import CallClock, CallSchedule
from quantarena.methods.core.errors import UserError


def test_an_unset_clock_is_an_error_and_not_call_0():
    clock = CallClock()
    assert not clock.is_set
    with pytest.raises(UserError, match=r"nobody said which call.*announcing"):
        _ = clock.index


def test_one_index_or_one_a_row():
    clock = CallClock()
    clock.set(3)
    assert clock.index == 3
    clock.set(torch.tensor([1, 0, 2], dtype=torch.int32))
    assert clock.index.tolist() == [1, 0, 2]
    assert clock.index.dtype == torch.int64
    clock.clear()
    assert not clock.is_set


def test_at_restores_what_was_before_also_after_an_error():
    clock = CallClock()
    with clock.at(2):
        with clock.at(torch.tensor([5])):
            assert clock.index.tolist() == [5]
        assert clock.index == 2
        with pytest.raises(RuntimeError), clock.at(7):
            raise RuntimeError
        assert clock.index == 2
    assert not clock.is_set


@pytest.mark.parametrize(
    ("index", "match"),
    [
        (-1, "negative"),
        (torch.tensor([0, -1]), "negative"),
        (torch.tensor(3), "integers"),
        (torch.tensor([0.5]), "integers"),
        (torch.tensor([True]), "integers"),
    ],
)
def test_what_is_no_call_is_refused(index, match):
    clock = CallClock()
    clock.set(1)
    with pytest.raises(ValueError, match=match):
        clock.set(index)
    assert clock.index == 1


def test_layers_of_a_copied_model_still_share_one_clock():
    clock = CallClock()
    layers = [type("Layer", (), {"clock": clock})() for _ in range(2)]
    for layer in layers:
        layer.clock = clock
    copies = copy.deepcopy(layers)
    copies[0].clock.set(4)
    assert copies[1].clock.index == 4
    assert not clock.is_set


def test_a_schedule_says_what_it_is():
    assert str(CallSchedule("DDIM", (750.0, 250.0))) == "2 calls of DDIM from timestep 750 to 250"
    assert str(CallSchedule("", ())) == "0 calls"
