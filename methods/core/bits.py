"""Bit-widths as requested: ``w4a8`` is 4-bit weights and 8-bit activations. No torch here."""

import re
from dataclasses import dataclass

FP_WIDTH = 16
"""Widths from here up mean 'left in floating point' (16-bit pass-through)."""

_PATTERN = re.compile(r"w(\d{1,2})a(\d{1,2})", re.IGNORECASE)
_LOWEST, _HIGHEST = 1, 8


@dataclass(frozen=True, slots=True, order=True)
class Bits:
    """Requested widths of weights and activations of the quantized layers.

    Attributes:
        weight: bits of a weight code, 1 to 8, or 16 for full precision.
        act: bits of an activation code, 1 to 8, or 16 for full precision.
    """

    weight: int
    act: int

    def __post_init__(self) -> None:
        for name, width in (("weight", self.weight), ("activation", self.act)):
            if width != FP_WIDTH and not _LOWEST <= width <= _HIGHEST:
                raise ValueError(
                    f"impossible {name} width {width}: it must be {_LOWEST} to {_HIGHEST}, "
                    f"or {FP_WIDTH} for full precision"
                )

    @property
    def is_fp(self) -> bool:
        """True when neither weights nor activations are quantized."""
        return self.weight == FP_WIDTH and self.act == FP_WIDTH

    def __str__(self) -> str:
        return "fp" if self.is_fp else f"w{self.weight}a{self.act}"


FP = Bits(FP_WIDTH, FP_WIDTH)


def parse_bits(text: str) -> Bits:
    """Read ``w4a8`` or ``fp``.

    Raises:
        ValueError: the text is no bit setting, or names an impossible width; one line.
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
