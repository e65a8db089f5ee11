"""One part of a quantized layer: a range of input channels with its own two quantizers."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from quantarena.methods.core.bits import FP_WIDTH, Bits
from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.quantizers.activation import ActQuantizer, DynamicActQuantizer
from quantarena.methods.core.quantizers.weight import WeightQuantizer


class Part(nn.Module):
    """A range of input channels with its own weight quantizer and activation quantizer.

    Attributes:
        start: first input channel.
        stop: one past the last input channel.
        weight_quantizer: None where the weight stays in floating point.
        act_quantizer: None where the input stays in floating point.
    """

    weight_quantizer: WeightQuantizer | None
    act_quantizer: ActQuantizer | DynamicActQuantizer | None

    def __init__(self, start: int, stop: int, bits: Bits, clock: CallClock | None = None) -> None:
        super().__init__()
        self.start, self.stop, self.clock = start, stop, clock
        self.weight_quantizer = None if bits.weight == FP_WIDTH else WeightQuantizer(bits.weight)
        self.act_quantizer = None if bits.act == FP_WIDTH else ActQuantizer(bits.act, clock)

    @property
    def static(self) -> ActQuantizer | None:
        """The activation quantizer if its ranges are found before it runs, else None."""
        return self.act_quantizer if isinstance(self.act_quantizer, ActQuantizer) else None

    def use_dynamic(self, *, symmetric: bool = False, group_size: int = 0) -> None:
        """Find activation ranges at run time, at the width that the part has.

        Args:
            symmetric: zero point fixed in the middle of the codes.
            group_size: neighbouring channels of a token that share a range; 0 for all of them.

        Raises:
            ValueError: the input stays in floating point.
        """
        if self.act_quantizer is None:
            raise ValueError("an input in floating point has no ranges to find at run time")
        self.act_quantizer = DynamicActQuantizer(
            self.act_quantizer.bits, symmetric=symmetric, group_size=group_size
        )

    def use_weight_groups(self, size: int) -> None:
        """Give every ``size`` neighbouring input channels a weight scale of their own; 0 for none.

        Ranges have to be found afterwards. A weight in floating point stays as it is.
        """
        if self.weight_quantizer is not None:
            self.weight_quantizer.group_size = size

    def freeze(self, weight: Tensor) -> None:
        """Fix the codes of this part's ``weight`` and the activation zero points."""
        if self.weight_quantizer is not None:
            self.weight_quantizer.freeze(weight)
        if self.static is not None:
            self.static.settle()

    def state(self) -> dict[str, Tensor]:
        """Everything that quantization decided in this part.

        Raises:
            ValueError: weight codes are not frozen.
        """
        tensors: dict[str, Tensor] = {}
        if self.weight_quantizer is not None:
            tensors |= {f"weight_{n}": t for n, t in self.weight_quantizer.state().items()}
        if self.act_quantizer is not None:
            tensors |= {f"act_{n}": t for n, t in self.act_quantizer.state().items()}
        return tensors

    def load(self, state: Mapping[str, Tensor], shape: torch.Size) -> None:
        """Take what ``state`` gave.

        Args:
            state: the state of a part with the same widths.
            shape: the shape of this part's weight.

        Raises:
            BrokenModel: shapes do not fit.
            KeyError: something is missing.
        """
        if self.weight_quantizer is not None:
            self.weight_quantizer.load(under(state, "weight_"), shape)
        if self.act_quantizer is None:
            return
        acts = under(state, "act_")
        if "dynamic" in acts:
            symmetric, group_size = acts["dynamic"].tolist()
            self.use_dynamic(symmetric=bool(symmetric), group_size=group_size)
            return
        static = self.static or ActQuantizer(self.act_quantizer.bits, self.clock)
        static.load(acts)
        self.act_quantizer = static


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, named without it."""
    return {n[len(prefix) :]: t for n, t in state.items() if n.startswith(prefix)}
