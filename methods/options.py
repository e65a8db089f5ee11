"""Options of a method: a frozen dataclass whose fields have a type, a default and a description.

A method nests its options::

    @dataclass(frozen=True)
    class Options(MethodOptions):
        \"\"\"Options of DGQ.

Attributes:
            groups: number of groups; 1 is one range for the whole tensor.
        \"\"\"

        groups: Annotated[int, AtLeast(1)] = 8

``--option dgq.groups=4`` on the command line becomes a value of that field, part of the cell and of
its key. A field is an ``int``, ``float``, ``bool``, ``str``, a ``Literal``, a homogeneous tuple of
these, or one of them ``| None``. This module imports no torch.
"""

import dataclasses
import inspect
import math
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from quantarena.methods.core.errors import UnknownName, UserError, did_you_mean

Pairs = tuple[tuple[str, str], ...]
"""Options as text, (name, value) in the order of the names; those at their default are left out."""

_WORDS = {"true": True, "false": False}
_NAMES = {int: "a whole number", float: "a number", str: "text", type(None): "none"}


@dataclass(frozen=True, slots=True)
class AtLeast:
    """The least value that a number may have, as in ``Annotated[int, AtLeast(1)]``."""

    low: float


@dataclass(frozen=True, slots=True)
class Within:
    """The smallest and the largest value that a number may have, both allowed."""

    low: float
    high: float


@dataclass(frozen=True)
class MethodOptions:
    """Base of every method's options; by itself the options of a method that has none."""

    def __post_init__(self) -> None:
        """Check every value against the type and the bounds of its field.

        Raises:
            UserError: a value of another type, or out of range.
        """
        for name, hint in _hints(type(self)).items():
            complaint = _complaint(getattr(self, name), hint)
            if complaint:
                raise UserError(f"option {name}={_text(getattr(self, name))}: {complaint}")


@dataclass(frozen=True, slots=True)
class OptionInfo:
    """One option, for a reader.

    Attributes:
        name: of the field.
        values: what it may be, such as ``a whole number, at least 1``.
        default: as text.
        description: one line.
    """

    name: str
    values: str
    default: str
    description: str


def describe(kind: type[MethodOptions]) -> tuple[OptionInfo, ...]:
    """Every option of a method, in the order of the fields."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        texts |= _described(base)
    hints = _hints(kind)
    return tuple(
        OptionInfo(f.name, _values(hints[f.name]), _text(f.default), texts.get(f.name, ""))
        for f in dataclasses.fields(kind)
    )


def parse(method: str, kind: type[MethodOptions], pairs: Iterable[tuple[str, str]]) -> Any:
    """Make a method's options from text.

    Args:
        method: name of the method, for messages.
        kind: its options.
        pairs: (name, value).

    Raises:
        UserError: an option that the method does not have, a value that cannot be read, or one that
            is out of range.
    """
    hints = _hints(kind)
    values: dict[str, Any] = {}
    for name, text in pairs:
        if name not in hints:
            hint = did_you_mean(name, hints) if hints else f"{method} has no options"
            raise UnknownName(f"--option {method}.{name}={text}: no option {name!r}: {hint}")
        if name in values:
            raise UserError(f"--option {method}.{name} is given twice")
        try:
            values[name] = _read(text, hints[name])
            kind(**{name: values[name]})
        except (UserError, ValueError):
            wanted = _values(hints[name])
            raise UserError(f"--option {method}.{name}={text}: it must be {wanted}") from None
    return kind(**values)


def pairs_of(options: MethodOptions) -> Pairs:
    """The options that are not at their default, as text, sorted by name."""
    changed = (
        (field.name, _text(value))
        for field in dataclasses.fields(options)
        if (value := getattr(options, field.name)) != field.default
    )
    return tuple(sorted(changed))


def check_declaration(method: str, kind: type[MethodOptions], switches: Mapping[str, Any]) -> None:
    """See that a method's options can be read, and that its switches are values of options.

    Args:
        method: name of the method, for messages.
        kind: its options.
        switches: by option, the value that turns an idea off.

    Raises:
        UserError: an option without a default or of another type than those that can be read, or a
            switch that names no option or sets it to a value that the option cannot have.
    """
    try:
        kind()
        describe(kind)
    except (TypeError, KeyError, AttributeError):
        raise UserError(
            f"{method}.Options: every field needs a plain default and a type that is int, float, "
            "bool, str, a Literal, a tuple of these, or one of them | None"
        ) from None
    for name, value in switches.items():
        if name not in _hints(kind):
            raise UserError(f"{method}.switches names {name!r}, which is no option of it")
        kind(**{name: value})


def _hints(kind: type[MethodOptions]) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A hint without its bounds, and the bounds."""
    if get_origin(hint) is Annotated:
        plain, *bounds = get_args(hint)
        return plain, tuple(bounds)
    return hint, ()


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _complaint(value: Any, hint: Any) -> str:
    """Why ``value`` is none of ``hint``'s, or an empty text."""
    plain, bounds = _parts(hint)
    if not any(_is_a(value, kind) for kind in _alternatives(plain)):
        return f"it must be {_values(hint)}"
    for bound in bounds:
        if value is None or isinstance(value, bool | str | tuple):
            continue
        if value < bound.low or (isinstance(bound, Within) and value > bound.high):
            return f"it must be {_values(hint)}"
    return ""


def _is_a(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        return isinstance(value, tuple) and all(_is_a(v, item) for v in value)
    if kind is float:
        return (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        )
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _read(text: str, hint: Any) -> Any:
    """A value from text.

    Raises:
        ValueError: it is none of ``hint``'s.
    """
    plain, _ = _parts(hint)
    word, kinds = text.strip(), _alternatives(plain)
    if type(None) in kinds and word.lower() == "none":
        return None
    for kind in kinds:
        if get_origin(kind) is Literal and word in map(str, get_args(kind)):
            return next(value for value in get_args(kind) if str(value) == word)
        if get_origin(kind) is tuple:
            item = get_args(kind)[0]
            return tuple(_read(part, item) for part in word.split(",") if part.strip())
        if kind is bool and word.lower() in _WORDS:
            return _WORDS[word.lower()]
        if kind is str:
            return word
        if kind in (int, float):
            return kind(word)
    raise ValueError(text)


def _text(value: Any) -> str:
    """A value as ``_read`` reads it back."""
    if isinstance(value, tuple):
        return ",".join(map(_text, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _values(hint: Any) -> str:
    """What a field may be, in words."""
    plain, bounds = _parts(hint)
    words = []
    for kind in _alternatives(plain):
        if get_origin(kind) is Literal:
            words.append(" or ".join(map(str, get_args(kind))))
        elif get_origin(kind) is tuple:
            words.append(f"{_values(get_args(kind)[0])}, several by comma")
        elif kind is bool:
            words.append("true or false")
        else:
            words.append(_NAMES[kind])
    text = " or ".join(words)
    for bound in bounds:
        text += f", at least {bound.low:g}"
        if isinstance(bound, Within):
            text += f" and at most {bound.high:g}"
    return text


def _described(kind: type) -> dict[str, str]:
    """Descriptions from the ``Attributes:`` section of a class's own docstring."""
    text = inspect.cleandoc(kind.__dict__.get("__doc__") or "")
    _, _, section = text.partition("\nAttributes:\n")
    texts: dict[str, str] = {}
    for line in section.splitlines():
        start = re.match(r"    (\w+): (.*)", line)
        if start:
            name, texts[start[1]] = start[1], start[2]
        elif line.startswith("        ") and texts:
            texts[name] += f" {line.strip()}"
        elif line.strip():
            break
    return texts
