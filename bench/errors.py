"""The errors of the harness, by the names that ``bench`` uses."""

from quantarena.methods.core.errors import (
    BrokenModel,
    QuantArenaError,
    UnknownName,
    Unsupported,
    UserError,
    did_you_mean,
)

__all__ = [
    "BrokenModel",
    "QuantArenaError",
    "UnknownName",
    "Unsupported",
    "UserError",
    "did_you_mean",
]
