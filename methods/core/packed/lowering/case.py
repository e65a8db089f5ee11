"""The case that decides how one part of a layer is lowered."""

from dataclasses import dataclass
from enum import Enum, auto

from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.options.patches import Patches
from quantarena.methods.core.packed.lowering.codes import WeightCodes
from quantarena.methods.core.quantizers.activation import ActQuantizer, DynamicActQuantizer


class Ranges(Enum):
    """The slices of a part's input that have an activation range of their own."""

    NONE = auto()
    """The input stays in floating point."""
    ONE = auto()
    """One static range, or a bank with one for each sampler call."""
    CHANNELS = auto()
    """Static groups of input channels."""
    POSITIONS = auto()
    """Static groups along another axis: tokens, or rows or columns of an image."""
    RUN_TIME = auto()
    """Ranges found when the input arrives: of each token, or of each image."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One part of a layer, with codes of one width.

    Attributes:
        layer: the part's layer.
        quantizer: the quantizer of the part's input; None where it stays in floating point.
        codes: the codes of the part's weight.
    """

    layer: QuantLayer
    quantizer: ActQuantizer | DynamicActQuantizer | None
    codes: WeightCodes

    @property
    def ranges(self) -> Ranges:
        """The slices that have a range; for a layer with patches, slices of its input image."""
        quantizer = self.quantizer
        if quantizer is None:
            return Ranges.NONE
        if isinstance(quantizer, DynamicActQuantizer):
            return Ranges.RUN_TIME
        if quantizer.axis is None:
            return Ranges.ONE
        channels = self.layer.geometry.channel_axis
        dims = self.layer.spatial + 2
        same = {channels, channels - dims} if self.layer.is_conv else {channels}
        return Ranges.CHANNELS if quantizer.axis in same else Ranges.POSITIONS

    @property
    def by_patch(self) -> bool:
        """Whether the slices are those of patches; one range for all needs no patches."""
        return self.layer.option(Patches) is not None and self.ranges not in (
            Ranges.NONE,
            Ranges.ONE,
        )

    @property
    def static(self) -> ActQuantizer:
        """The quantizer, whose ranges were found before it runs."""
        assert isinstance(self.quantizer, ActQuantizer)
        return self.quantizer

    @property
    def dynamic(self) -> DynamicActQuantizer:
        """The quantizer, which finds its ranges at run time."""
        assert isinstance(self.quantizer, DynamicActQuantizer)
        return self.quantizer
