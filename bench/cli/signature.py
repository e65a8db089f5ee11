"""A verb whose options are the fields of a dataclass: written once, used by several verbs."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Any, TypeVar

from quantarena.bench.cli.common import Verb

T = TypeVar("T")


def takes(kind: type[T]) -> Callable[[Callable[..., int | None]], Verb]:
    """Give a verb the fields of a dataclass as parameters, in front of its own.

    The verb's first parameter receives the dataclass. A field's type is ``Annotated`` with the
    typer option that reads it.

    Args:
        kind: the dataclass; every field has a default.
    """
    shared = [_parameter(field) for field in fields(kind)]  # type: ignore[arg-type]

    def decorate(verb: Callable[..., int | None]) -> Verb:
        _, *rest = inspect.signature(verb).parameters.values()
        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in rest]

        def command(**given: Any) -> int | None:
            values = {p.name: given.pop(p.name) for p in shared if p.name in given}
            return verb(kind(**values), **given)

        command.__name__, command.__doc__ = verb.__name__, verb.__doc__
        command.__module__ = verb.__module__
        parameters = [*shared, *own]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _parameter(field: Field[Any]) -> inspect.Parameter:
    assert field.default is not MISSING, f"{field.name} has no default"
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=field.default,
        annotation=field.type,
    )
