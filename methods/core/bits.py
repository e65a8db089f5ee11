"""Bit-widths as requested: ``w4a8`` is 4-bit weights and 8-bit activations. No torch here."""

import re
from dataclasses import dataclass

FP_WIDTH = 16
"""The width that stands for floating point."""

_PATTERN = re.compile(r"w(\d{1,2})a(\d{1,2})", re.IGNORECASE)
_LOWEST, _HIGHEST = 1, 8


def _require_width(name: str, width: int) -> None:
    if width != FP_WIDTH and not _LOWEST <= width <= _HIGHEST:
        raise ValueError(
            f"impossible {name} width {width}: it must be {_LOWEST} to {_HIGHEST}, "
            f"or {FP_WIDTH} for full precision"
        )


@dataclass(frozen=True, slots=True, order=True)
class Bits:
    """Requested widths of the weights and activations of quantized layers.

    Attributes:
        weight: bits of a weight code, 1 to 8, or 16 for full precision.
        act: bits of an activation code, 1 to 8, or 16 for full precision.
    """

    weight: int
    act: int

    def __post_init__(self) -> None:
        _require_width("weight", self.weight)
        _require_width("activation", self.act)

    @property
    def is_fp(self) -> bool:
        """True when neither weights nor activations are quantized."""
        return self.weight == FP_WIDTH and self.act == FP_WIDTH

    def __str__(self) -> str:
        return "fp" if self.is_fp else f"w{self.weight}a{self.act}"


FP = Bits(FP_WIDTH, FP_WIDTH)


@dataclass(frozen=True, slots=True)
class AttentionBits:
    """Widths of the operands of ``softmax(q k) v``, each 1 to 8, or 16 for full precision.

    Attributes:
        query: bits of a query code.
        key: bits of a key code.
        value: bits of a value code.
        softmax: bits of a code of the softmax's output.
    """

    query: int = FP_WIDTH
    key: int = FP_WIDTH
    value: int = FP_WIDTH
    softmax: int = FP_WIDTH

    def __post_init__(self) -> None:
        for name in ("query", "key", "value", "softmax"):
            _require_width(name, getattr(self, name))

    @property
    def is_fp(self) -> bool:
        """True when no operand is quantized."""
        return self == AttentionBits()

    def __str__(self) -> str:
        return f"q{self.query}k{self.key}v{self.value}s{self.softmax}"


def parse_bits(text: str) -> Bits:
    """Parse ``w4a8`` or ``fp``.

    Raises:
        ValueError: the text is no bit setting, or names an impossible width.
    """
    name = text.strip().lower()
    if name in {"fp", "fp32", "w16a16", "w32a32"}:
        return FP
    match = _PATTERN.fullmatch(name)
    if match is None:
        raise ValueError(
            f"unknown bits {text!r}: write w<weight>a<activation>, such as w4a8, or fp"
        )
    try:
        return Bits(int(match[1]), int(match[2]))
    except ValueError as error:
        raise ValueError(f"bits {text!r}: {error}") from None
