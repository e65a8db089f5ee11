"""The one reader of JSON files; damaged ones of models, rows and settings are in tests/faults."""

import json

import pytest

from quantarena.methods.core.json_files import parse_json


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "c": 2, "a": 3}}]'])
def test_a_key_that_stands_twice_is_refused(text):
    with pytest.raises(ValueError, match="key 'a' stands twice in an object"):
        parse_json(text)


def test_equal_keys_of_different_objects_are_no_fault():
    assert parse_json('[{"a": 1}, {"a": {"a": 2}}]') == [{"a": 1}, {"a": {"a": 2}}]


@pytest.mark.parametrize(
    "text",
    [
        '{"a" : 1, "a": 1}',
        '{"a"\n: 1, "b": ":x", "a": 1}',
        '{"b": "\\":", "a": 1, "a": 2}',
        '{"b": ["\\"", ": "], "a": {"c": 1, "c": 2}}',
        '{"a": 1, "\\u0061": 2}',
    ],
)
def test_a_double_key_does_not_hide_behind_spaces_escapes_and_colons(text):
    with pytest.raises(ValueError, match="stands twice"):
        parse_json(text)


@pytest.mark.parametrize(
    "text",
    ['{"a": [1e999]}', '{"a": {"b": -1e400}}', "[9223372036854775808]", "[" + "9" * 5000 + "]"],
)
def test_numbers_that_do_not_fit_are_refused(text):
    with pytest.raises(ValueError, match="too large"):
        parse_json(text)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": "\\":", "b \\\\": [":", "x\\": y"], "c": {"d" : 1e300}}',
        "[9223372036854775807, -9223372036854775807, 1e18, true, null]",
        '"text"',
        "[]",
    ],
)
def test_what_is_unusual_and_right_is_read_as_json_reads_it(text):
    assert parse_json(text) == json.loads(text)
