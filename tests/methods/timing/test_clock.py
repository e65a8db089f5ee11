"""The clock of short work: processor time, but not where it moves in steps of milliseconds."""

import math
import time
from functools import partial

import pytest

from quantarena.methods.timing import clock


@pytest.fixture
def fresh():
    clock.thread_clock.cache_clear()
    yield
    clock.thread_clock.cache_clear()


@pytest.mark.parametrize("step", [1e-6, 1e-2])
def test_a_step_is_seen_as_it_is(step):
    found = clock.tick(lambda: time.perf_counter() // step * step)
    assert found == pytest.approx(step, rel=0.01) or (step == 1e-6 and found < clock.COARSE)


def test_a_clock_that_stands_still_has_no_step():
    assert clock.tick(lambda: 1.0) == math.inf


@pytest.mark.parametrize("step", [1e-2, math.inf])
def test_the_wall_replaces_a_coarse_clock(fresh, monkeypatch, step):
    true = time.process_time
    coarse = (lambda: 0.0) if step == math.inf else (lambda: true() // step * step)
    monkeypatch.setattr(clock.time, "process_time", coarse)
    assert clock.thread_clock() is time.perf_counter


def test_a_fine_clock_stays(fresh, monkeypatch):
    fine = partial(time.perf_counter)
    monkeypatch.setattr(clock.time, "process_time", fine)
    assert clock.thread_clock() is fine
