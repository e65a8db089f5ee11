"""Read frozen dataclasses from JSON documents; what does not fit is named in one line."""

import json
import math
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from quantarena.methods.core.json_files import MOST_LEVELS, parse_json

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")
__all__ = ["MOST_LEVELS", "clean_text", "finite", "parse_json", "read", "read_text"]

_SHOWN = 3
"""Faults that one line names."""


def clean_text(value: Any) -> Any:
    """Plain data in which each lone surrogate, which no file can hold, is a question mark."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {clean_text(name): clean_text(child) for name, child in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(clean_text(child) for child in value)
    return value


def finite(value: Any) -> Any:
    """Plain data in which each number that is not finite, which JSON cannot hold, is None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: finite(child) for name, child in value.items()}
    if isinstance(value, list | tuple):
        return [finite(child) for child in value]
    return value


def read(kind: type[T], document: Any) -> T:
    """A document as a dataclass, the inverse of ``dataclasses.asdict``.

    Types are checked strictly: a text is no number, and 1.0 is no integer.

    Args:
        kind: a dataclass of plain data, which may hold dataclasses.
        document: JSON types only.

    Raises:
        ValueError: a field is missing, unknown or of another type; the line names it.
    """
    return read_text(kind, json.dumps(document))


def read_text(kind: type[T], text: str) -> T:
    """As ``read``, of a document that is JSON already."""
    from pydantic import ValidationError

    try:
        value: T = _adapter(cast("Hashable", kind)).validate_json(f"[{text}]", strict=True)[0]
    except ValidationError as error:
        faults = [_fault(fault) for fault in error.errors(include_url=False)]
    else:
        return value
    more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    raise ValueError("; ".join(faults[:_SHOWN]) + more)


@lru_cache(maxsize=16)
def _adapter(kind: Any) -> "TypeAdapter[Any]":
    # pydantic is imported at the first read, so that commands which read no row start faster. It
    # takes settings for a tuple of a dataclass, but not for a dataclass itself.
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(tuple[kind], config=ConfigDict(extra="forbid"))


def _fault(fault: Any) -> str:
    """One error of pydantic as ``field: what is wrong``."""
    where = _dotted(fault["loc"][1:]) or "the document"
    if fault["type"] == "missing":
        return f"missing field {where}"
    if fault["type"] == "unexpected_keyword_argument":
        return f"unknown field {where}"
    message = fault["msg"].removeprefix("Input ")
    return f"{where} {message}, not {json.dumps(fault['input'])[:60]}"


def _dotted(path: Sequence[str | int]) -> str:
    """Such as ``measurements[2].value``."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")
