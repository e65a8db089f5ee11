"""The shape of an option of a quantized layer, and of the layer that it sees.

An option is one object with a fake path (``arrange``, ``around``, ``add``), a state (``state``,
``load``), a packed form (``lower``) and what it does not go together with (``excludes``). A layer
holds its options in a fixed order and calls each hook in that order. The base class does nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor, nn

from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.quantizers.layer_geometry import LayerGeometry
from quantarena.methods.core.quantizers.part import Part

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""From an input, a weight and a bias to an output."""


class Host(Protocol):
    """The layer that an option belongs to, as far as options see it."""

    bias: nn.Parameter | None
    in_channels: int
    geometry: LayerGeometry
    clock: CallClock | None

    @property
    def weight(self) -> Tensor:
        """Its weight in full precision."""
        ...

    def move_weight(self, move: "partial[Tensor]") -> None:
        """Change that weight by a function of it."""
        ...

    @property
    def parts(self) -> tuple[Part, ...]:
        """Its parts."""
        ...

    @property
    def input_factor(self) -> Tensor | None:
        """(K,) multiplier of each input channel, None where there is none."""
        ...

    def scaled(self, x: Tensor) -> Tensor:
        """The layer's input times that multiplier."""
        ...


@dataclass(frozen=True, slots=True)
class Operand:
    """The input of one part, on its way to the quantizer.

    Attributes:
        values: as they will be quantized, before ``mult``.
        mult: multiplier that the quantizer applies, broadcasting over ``values``; None for none.
    """

    values: Tensor
    mult: Tensor | None = None


@dataclass(frozen=True, slots=True)
class PackedForm:
    """A packed module around a packed layer, described as in a checkpoint.

    Attributes:
        form: name of the module's class in descriptions (``Node.form``).
        fields: the description's other entries, JSON types.
        tensors: the module's tensors by name.
    """

    form: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class LayerOption(nn.Module):
    """An option that changes nothing; kinds of options override what they change.

    Attributes:
        title: name in messages.
        excludes: kinds of options that cannot be on the same layer.
        with_weights: whether the option is off while weights are in floating point.
        adds_bias: whether the option adds the layer's bias itself, after what it does.
    """

    title: ClassVar[str]
    excludes: ClassVar[tuple[type["LayerOption"], ...]] = ()
    with_weights: ClassVar[bool] = False
    adds_bias: ClassVar[bool] = False

    def arrange(self, operand: Operand, part: Part, host: Host) -> Operand:
        """The operand as this option hands it to the part's activation quantizer."""
        return operand

    def around(self, product: Product, x: Tensor, host: Host) -> Product:
        """The product of quantized operands as this option computes it.

        Args:
            product: the product without the option.
            x: the part's input, before ``arrange``.
            host: the layer.
        """
        return product

    def add(self, y: Tensor, x: Tensor, host: Host) -> Tensor:
        """The layer's output for the input ``x`` as the option leaves it; ``y`` is without it."""
        return y

    def state(self) -> dict[str, Tensor]:
        """Tensors to keep, under names that no other option has."""
        return {}

    @classmethod
    def load(cls, state: Mapping[str, Tensor], host: Host) -> Self | None:
        """The option that ``state`` came from; None where the layer had none.

        Raises:
            BrokenModel: its tensors do not fit the layer.
            KeyError: a tensor is missing.
        """
        return None

    def lower(self, host: Host) -> PackedForm | None:
        """The packed module that goes around the layer; None where the codes hold the option."""
        return None

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters that can learn, by group."""
        return {}

    def branch_values(self) -> int:
        """Values in floating point that are multiplied with the input beside the weight."""
        return 0

    def float_macs(self, macs: float, positions: float) -> float:
        """Multiply-accumulates in floating point that the option adds.

        Args:
            macs: multiply-accumulates of the layer itself, for one image.
            positions: number of tokens or output pixels of the layer.
        """
        return 0.0
