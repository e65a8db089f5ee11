"""The fast way to read rows takes exactly what the careful one takes, and nothing edited."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantarena.bench import store
from quantarena.bench.schema import Row
from quantarena.bench.spec import canonical_json, content_hash

NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70)
PLAIN = st.recursive(
    NUMBERS | st.text() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(autouse=True)
def _any_document(monkeypatch):
    """What the digest let pass comes back as a document instead of a row."""
    monkeypatch.setattr(Row, "from_text", lambda text, document, stated: document)


def signed(document):
    return json.dumps(document | {"digest": content_hash(canonical_json(document), store.DIGITS)})


@given(st.dictionaries(st.text().filter(lambda name: name != "digest"), PLAIN, max_size=5))
def test_a_document_is_taken_as_it_was_written_or_left_to_the_careful_reader(document):
    found = store._intact(signed(document))
    assert found is None or canonical_json(found) == canonical_json(document)


@pytest.mark.parametrize(
    "number", [1e-5, 1.25e-5, 9.999e-5, -3e-5, 1e-7, 2.5e-310, 1e-4, 0.1, 1e15, 3, -0.0]
)
def test_numbers_that_rows_have_need_no_careful_reader(number):
    assert store._intact(signed({"a": number, "b": [number, {"c": number}]})) is not None


@pytest.mark.parametrize("text", ['{"a": 1e-5}', "[]", "{", '{"a": NaN, "digest": "0"}', ""])
def test_other_texts_are_left_to_the_careful_reader(text):
    assert store._intact(text) is None


def test_an_edited_number_does_not_fit():
    text = signed({"value": 0.00012})
    assert store._intact(text) is not None
    assert store._intact(text.replace("0.00012", "0.00013")) is None
