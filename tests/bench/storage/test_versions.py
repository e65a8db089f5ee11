from dataclasses import replace

import pytest

from quantarena.bench.schema import Row, Status
from quantarena.bench.spec import Cell
from quantarena.bench.storage.outlines import TIMED
from quantarena.bench.storage.versions import is_the_same_with_more, ours_stands

ROW = Row(
    Cell("emoji-t2i", "rtn", "w4a8"),
    Status.OK,
    attempt=2,
    started="2026-01-01T10:00:00+00:00",
    finished="2026-01-01T11:00:00+00:00",
)
LATER = replace(ROW, finished="2026-01-01T12:00:00+00:00")
NEXT = replace(ROW, attempt=3)
FAILED = replace(NEXT, status=Status.FAILED)
WITH_LATENCY = replace(ROW, latency=TIMED)


@pytest.mark.parametrize("unsent", [True, False])
@pytest.mark.parametrize(
    ("newer", "older"), [(NEXT, ROW), (NEXT, LATER), (LATER, ROW), (WITH_LATENCY, ROW)]
)
def test_the_newer_of_two_ok_rows_stands(newer, older, unsent):
    assert ours_stands(newer, older, unsent=unsent)
    assert not ours_stands(older, newer, unsent=unsent)


def test_an_unsent_ok_row_is_not_replaced_by_a_failure_that_never_saw_it():
    assert ours_stands(ROW, FAILED, unsent=True)
    assert not ours_stands(FAILED, ROW, unsent=True)


def test_a_failure_that_replaced_an_ok_row_of_the_store_stands():
    assert not ours_stands(ROW, FAILED, unsent=False)


def test_the_stores_row_stands_where_nothing_tells_them_apart():
    assert not ours_stands(ROW, replace(ROW, reason="another"), unsent=True)


def test_only_a_row_without_its_latency_holds_nothing_of_its_own():
    assert is_the_same_with_more(ROW, WITH_LATENCY)
    assert not is_the_same_with_more(WITH_LATENCY, ROW)
    assert not is_the_same_with_more(ROW, replace(WITH_LATENCY, attempt=3))
    assert not is_the_same_with_more(ROW, ROW)
