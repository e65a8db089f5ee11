"""How often a kernel runs for one sample, on clocks that tick coarsely."""

from itertools import count

import pytest

from quantarena.methods.timing.interleave import _repeats


@pytest.mark.parametrize("tick", [1e-9, 4e-3])
@pytest.mark.parametrize("phase", [0.0, 0.99])
def test_samples_are_as_long_on_coarse_clocks(tick, phase):
    """A call takes 20 microseconds; the clock may tick during the first one."""
    calls = count()
    now = phase * tick

    def run():
        nonlocal now
        next(calls)
        now += 2e-5

    assert 500 <= _repeats(run, lambda: now // tick * tick) <= 2000
