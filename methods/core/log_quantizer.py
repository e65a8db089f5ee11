"""The quantizer of a softmax's output on a logarithmic grid."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.logquant import (
    LogParams,
    log_fake_quantize,
    log_params,
    log_quantize,
)


class LogQuantizer(nn.Module):
    """Quantizes values of at least 0 to ``scale * 2 ** (-q / per_octave)`` (see ``logquant``).

    Args:
        bits: 1 to 8.
        per_octave: 1 for log2 (DGQ), 2 for log-sqrt2 (RepQuant).
        kept: leading axes that have a run-time scale of their own: 1 sample, 2 sample and head.
            Never 0: a result must not depend on the other images of its batch.
        zero_code: the last code stands for 0.

    Attributes:
        scale: () what code 0 stands for; None where it is the largest value at run time.
    """

    scale: Tensor | None

    def __init__(
        self,
        bits: int,
        *,
        per_octave: Literal[1, 2] = 1,
        kept: Literal[1, 2] = 1,
        zero_code: bool = False,
    ) -> None:
        super().__init__()
        self.bits, self.per_octave, self.kept = bits, per_octave, kept
        self.zero_code = zero_code
        self.register_buffer("scale", None)

    def params(self, x: Tensor) -> LogParams:
        """The grid for ``x``, (samples, heads, ...)."""
        if self.scale is not None:
            scale = self.scale.reshape([1] * x.dim())
            return LogParams(scale, self.bits, self.per_octave, self.zero_code)
        return log_params(
            x.detach(),
            self.bits,
            per_octave=self.per_octave,
            kept=self.kept,
            zero_code=self.zero_code,
        )

    def codes(self, x: Tensor) -> tuple[Tensor, LogParams]:
        """Codes (uint8) of ``x`` and their grid."""
        params = self.params(x)
        return log_quantize(x.detach(), params), params

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantized ``x``; the gradient passes straight through, above the scale it is 0."""
        params = self.params(x)
        passed = torch.where(x <= params.scale, x, x.detach())
        return passed + (log_fake_quantize(x.detach(), params) - passed).detach()

    def state(self) -> dict[str, Tensor]:
        """Tensors to keep: the settings, and the scale where it is static."""
        kept = {"log": torch.tensor([self.per_octave, self.kept, int(self.zero_code)])}
        return kept if self.scale is None else {**kept, "scale": self.scale}

    @classmethod
    def load(cls, bits: int, state: Mapping[str, Tensor]) -> "LogQuantizer":
        """The quantizer whose ``state`` this is.

        Raises:
            BrokenModel: it is no such state.
        """
        per_octave, kept, zero_code = state["log"].tolist()
        if per_octave not in (1, 2) or kept not in (1, 2):
            raise BrokenModel(f"no logarithmic quantizer has the settings {state['log'].tolist()}")
        made = cls(bits, per_octave=per_octave, kept=kept, zero_code=bool(zero_code))
        made.scale = state.get("scale")
        return made
