"""Reads JSON files that anybody may have written: the one reader of models, rows and settings.

A file is refused in one line if it is no regular file (a pipe blocks for ever), too large, no
UTF-8, no JSON, or nested so deeply that what handles it later would recurse too far.
"""

import errno
import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any

from quantarena.methods.core.errors import BrokenModel

_INTEGER_BITS = 63
"""Larger integers do not fit the 64-bit columns of tables."""
_SURE = 2.0**_INTEGER_BITS
"""Numbers between it and its negative are finite, and integers among them are not too large."""
_SPACED = re.compile(r'"\s+:')
MOST_LEVELS = 64
"""Deepest nesting that is read: what handles a document later may recurse."""
MOST_BYTES = 1 << 28
"""Largest description of a model that is read; those of real ones have some megabytes."""


def parse_json(text: str, *, constants: bool = False) -> Any:
    """The value of a JSON text, without what only some JSON readers take.

    Args:
        text: the JSON.
        constants: whether NaN and infinity are taken, which diffusers writes into configurations.

    Raises:
        ValueError: no JSON, nested too deeply, a key that stands twice in an object, or a number
            that is not finite or is an integer of more than 64 bits. One line says which.
    """
    constant = float if constants else _no_constant
    try:
        value = json.loads(text, parse_constant=constant)
        if _is_plain(value, text):
            return value
    except (ValueError, RecursionError):
        pass  # what is wrong is found below
    try:
        value = json.loads(
            text,
            parse_constant=constant,
            parse_float=_finite,
            parse_int=_integer,
            object_pairs_hook=_unique,
        )
        if _deeper_than(value, MOST_LEVELS):
            raise RecursionError
        return value
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ValueError("not JSON that can be read: it is nested too deeply") from None


def _is_plain(value: Any, text: str) -> bool:
    """Whether a value surely breaks no rule of ``parse_json``; where in doubt, False.

    A reader that calls Python for each number and object takes three times as long as one that
    does not, so what could be wrong is looked for afterwards. Each key of the text ends in ``":``,
    so if there are as many of these as keys were read, no key stands twice.
    """
    if _SPACED.search(text):
        return False
    keys, level = 0, [value]
    for _ in range(MOST_LEVELS + 1):
        objects = [child for child in level if type(child) is dict]
        lists = [child for child in level if type(child) is list]
        if not objects and not lists:
            return keys == text.count('":')
        keys += sum(map(len, objects))
        level = [child for parent in objects for child in parent.values()]
        for parent in lists:
            level += parent
        numbers = [child for child in level if type(child) is float or type(child) is int]
        if numbers and not -_SURE < min(numbers) <= max(numbers) < _SURE:
            return False
    return False


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of two equal keys a reader would silently take one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {double!r} stands twice in an object")
    return found


def read_object(file: Path, *, constants: bool = False) -> dict[str, Any]:
    """The JSON object in a file of a model.

    Args:
        file: the file.
        constants: as in ``parse_json``.

    Raises:
        FileNotFoundError: there is none.
        BrokenModel: it cannot be read, or it holds something else. One line names it.
    """
    try:
        value = parse_json(read_text(file, MOST_BYTES), constants=constants)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BrokenModel(f"{file} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise BrokenModel(f"{file} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise BrokenModel(f"{file} must hold one JSON object")
    return value


def read_text(path: Path, most: int | None = None) -> str:
    """The text of a regular file in UTF-8; a pipe or a device, which could block, is refused.

    Args:
        path: the file.
        most: bytes above which it is refused; None for any size.

    Raises:
        OSError: there is no such file, it cannot be read, or it is no regular file.
        ValueError: its bytes are no UTF-8 or too many, or the path is none.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, encoding="utf-8") as stream:
        require_regular(handle, path)
        if most is not None and os.stat(handle).st_size > most:
            raise ValueError(f"it has more than {most} bytes")
        return stream.read()


def require_regular(target: int | Path, path: Path) -> None:
    """Refuse what is no regular file: reading a pipe or a device can block for ever.

    Args:
        target: an open file, or a path.
        path: the name in the message.

    Raises:
        OSError: it is no regular file, or there is none.
    """
    if not stat.S_ISREG(os.stat(target).st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


def _deeper_than(value: Any, levels: int) -> bool:
    """Whether plain data is nested in more levels. Level by level, since nothing may recurse."""
    level = [value]
    for _ in range(levels + 1):
        level = [child for child in level if isinstance(child, dict | list)]
        if not level:
            return False
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
    return True


def _no_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}, which is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _integer(text: str) -> int:
    # The length is looked at first: Python refuses to read integers of thousands of digits.
    if len(text) > _INTEGER_BITS or (number := int(text)).bit_length() > _INTEGER_BITS:
        raise ValueError(f"the integer {text[:40]} is too large")
    return number
