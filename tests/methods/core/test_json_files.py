"""The one reader of JSON files; damaged ones of models, rows and settings are in tests/faults."""

import pytest

from quantarena.methods.core.json_files import parse_json


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "c": 2, "a": 3}}]'])
def test_a_key_that_stands_twice_is_refused(text):
    with pytest.raises(ValueError, match="key 'a' stands twice in an object"):
        parse_json(text)


def test_equal_keys_of_different_objects_are_no_fault():
    assert parse_json('[{"a": 1}, {"a": {"a": 2}}]') == [{"a": 1}, {"a": {"a": 2}}]
