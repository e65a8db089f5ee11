"""The quantized layer: a convolution or linear whose weights and inputs go through quantizers.

A layer has one part, or one part for each half of a concatenated input (Q-Diffusion's split
shortcut). A part owns a channel range with its own weight and activation quantizer, and packs to
one integer layer; the layer's output is the sum of its parts plus the bias. What may be around the
parts are options, each an object in a file of ``model.options``.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.model.movable_weight import MovableWeight
from quantarena.methods.core.model.options.call_affine import CallAffine
from quantarena.methods.core.model.options.call_gains import CallGains
from quantarena.methods.core.model.options.input_offset import InputOffset
from quantarena.methods.core.model.options.input_rotation import InputRotation, rotated_weight
from quantarena.methods.core.model.options.input_scale import InputScale
from quantarena.methods.core.model.options.low_rank import LowRankBranch
from quantarena.methods.core.model.options.option import LayerOption, Operand, Product
from quantarena.methods.core.model.options.patches import Patches
from quantarena.methods.core.quantizers.layer_geometry import LayerGeometry, Quantizable
from quantarena.methods.core.quantizers.part import Part, under
from quantarena.methods.core.quantizers.patches import Window
from quantarena.methods.core.quantizers.range_search import RangeSearch

OPTIONS: tuple[type[LayerOption], ...] = (
    InputScale,
    InputRotation,
    InputOffset,
    Patches,
    CallGains,
    LowRankBranch,
    CallAffine,
)
"""Every kind of option, in the order in which a layer calls them."""

_Option = TypeVar("_Option", bound=LayerOption)


class QuantLayer(MovableWeight):
    """A Conv1d, Conv2d or Linear with quantizers in front of its weight and input.

    Args:
        module: the full-precision layer; its tensors are shared, not copied.
        bits: widths of every part.
        splits: widths of the input-channel parts, summing to the input channels; empty for one.
        clock: the clock of the model; None for a layer outside a model.

    Attributes:
        bias: (O,), or None.
        in_channels: K.
        geometry: stride, padding, dilation and groups.
        use_weight_quantizer: whether weights are quantized.
        use_act_quantizer: whether inputs are quantized.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        module: Quantizable,
        bits: Bits,
        splits: Sequence[int] = (),
        clock: CallClock | None = None,
    ) -> None:
        super().__init__()
        self.bits, self.clock = bits, clock
        self.geometry = LayerGeometry.of(module)
        self.weight = module.weight
        self.bias = (
            None if module.bias is None else nn.Parameter(module.bias.detach(), requires_grad=False)
        )
        self.in_channels = (
            module.in_features if isinstance(module, nn.Linear) else module.in_channels
        )
        self._cut(tuple(splits) or (self.in_channels,))
        self._hold(())
        self.use_weight_quantizer = True
        self.use_act_quantizer = True

    def _cut(self, widths: Sequence[int]) -> None:
        if sum(widths) != self.in_channels:
            raise ValueError(
                f"splits {tuple(widths)} do not sum to {self.in_channels} input channels"
            )
        edges = pairwise(accumulate(widths, initial=0))
        self._parts = nn.ModuleList(Part(a, b, self.bits, self.clock) for a, b in edges)

    # ---- parts and geometry ----------------------------------------------------------------

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts, in the order of their channels."""
        return tuple(part for part in self._parts if isinstance(part, Part))

    @property
    def only_part(self) -> Part:
        """The single part of a layer that is not split.

        Raises:
            ValueError: the layer has several.
        """
        if len(self._parts) > 1:
            raise ValueError(f"the layer has {len(self._parts)} parts, not one")
        return self.parts[0]

    @property
    def spatial(self) -> int:
        """Number of spatial axes: 0 for a linear layer."""
        return self.geometry.spatial

    @property
    def groups(self) -> int:
        """Channel groups of a convolution; 1 for a linear layer."""
        return self.geometry.groups

    @property
    def is_conv(self) -> bool:
        """Whether channels are axis 1 of the input; for a linear layer they are the last axis."""
        return self.geometry.is_conv

    @property
    def window(self) -> Window:
        """The input pixels that one output pixel of a 2-d convolution reads."""
        return self.geometry.window(self._weight.shape[2:])

    def part_weight(self, part: Part) -> Tensor:
        """That part's slice of the full-precision weight."""
        if len(self._parts) == 1:
            return self.weight
        return self.weight[:, part.start : part.stop]

    def part_input(self, part: Part, x: Tensor) -> Tensor:
        """That part's slice of the layer's input."""
        if len(self._parts) == 1:
            return x
        return x[:, part.start : part.stop] if self.is_conv else x[..., part.start : part.stop]

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's product with another weight."""
        return self.geometry.product(x, weight, bias)

    # ---- options ---------------------------------------------------------------------------

    @property
    def options(self) -> tuple[LayerOption, ...]:
        """The options that the layer has, in the order of ``OPTIONS``."""
        return tuple(option for option in self._options if isinstance(option, LayerOption))

    def option(self, kind: type[_Option]) -> _Option | None:
        """The option of this kind, None where the layer has none."""
        return next((option for option in self.options if isinstance(option, kind)), None)

    def put(self, option: _Option) -> _Option:
        """Add an option, in the place of an earlier one of its kind.

        Raises:
            ValueError: the layer has an option that does not go together with it.
        """
        others = [other for other in self.options if type(other) is not type(option)]
        for other in others:
            if isinstance(other, option.excludes) or isinstance(option, other.excludes):
                raise ValueError(f"{option.title} and {other.title} do not go together")
        self._hold((*others, option))
        return option

    def _hold(self, options: Iterable[LayerOption]) -> None:
        self._options = nn.ModuleList(
            sorted(options, key=lambda option: OPTIONS.index(type(option)))
        )

    @property
    def input_factor(self) -> Tensor | None:
        """(K,) multiplier of each input channel before it is quantized; None for none."""
        scale = self.option(InputScale)
        return None if scale is None else scale.factor

    def scaled(self, x: Tensor) -> Tensor:
        """The input as the quantizers see it: multipliers or a rotation applied."""
        rotation = self.option(InputRotation)
        if rotation is not None:
            return rotation.applied(x)
        factor = self.input_factor
        return x if factor is None else x * self.geometry.over_channels(factor)

    def scale_input(self, factor: Tensor) -> None:
        """Multiply input channel k of the weight by ``factor[k]`` and its input by the inverse.

        The layer's function stays; ranges have to be found afterwards.

        Raises:
            ValueError: the factor does not fit, or is not positive and finite.
        """
        self.put(InputScale.moved(factor, self))

    def rotate_input(self, signs: Tensor) -> None:
        """Multiply the input by signs and an orthogonal matrix, and the weight by the inverse.

        The layer's function stays; ranges have to be found afterwards. A scale of input channels
        that the layer has comes first, and cannot change any more.

        Args:
            signs: (K,) of 1 and -1, at random.

        Raises:
            ValueError: no linear layer of one part, signs that do not fit, or an option that does
                not go together with a rotation, such as another rotation.
        """
        if self.option(InputRotation) is not None:
            raise ValueError("the input channels of this layer are rotated already")
        rotation = InputRotation.of(signs, self)
        before = self.options
        self._hold(option for option in before if not isinstance(option, InputScale))
        try:
            self.put(rotation)
        except ValueError:
            self._hold(before)
            raise
        self.move_weight(partial(rotated_weight, signs=signs.to(self._weight)))

    def set_low_rank(self, down: Tensor, up: Tensor) -> None:
        """Move ``up @ down`` out of the weight into a branch that stays in floating point.

        Args:
            down: (r, K, ...), shaped as a weight with r outputs.
            up: (O, r).

        Raises:
            ValueError: shapes that do not fit, or a grouped convolution.
        """
        self.put(LowRankBranch.moved(down, up, self))

    def use_patches(self) -> None:
        """Quantize what each output pixel reads, so that pixels can have ranges.

        Raises:
            ValueError: no 2-d convolution, or one in groups.
        """
        self.put(Patches.of(self))

    def set_gains(self, of_call: Tensor, pairs: int) -> CallGains:
        """Put gains by sampler call around the weight, all 1 at first.

        Args:
            of_call: pair of gains of each call, (S,) integers.
            pairs: number of pairs.

        Raises:
            ValueError: a layer with quantized input, several parts, patches or a branch.
        """
        return self.put(CallGains.ones(of_call, pairs, self))

    def set_call_affine(self, gain: Tensor, shift: Tensor) -> None:
        """Multiply and shift each output channel, after the bias, at each sampler call.

        Args:
            gain: (S, O).
            shift: (S, O).

        Raises:
            ValueError: shapes that do not fit, or values that are not finite.
        """
        self.put(CallAffine.of(gain, shift, self))

    # ---- computing -------------------------------------------------------------------------

    def set_weight_ranges(self, search: RangeSearch, *, symmetric: bool) -> None:
        """Find per-output-channel ranges of every part's weight."""
        for part in self.parts:
            if part.weight_quantizer is not None:
                part.weight_quantizer.find_params(
                    self.part_weight(part), search, symmetric=symmetric
                )

    def forward(self, x: Tensor) -> Tensor:
        """Sum of the parts plus bias; shape and dtype as of the full-precision layer."""
        options = [o for o in self.options if self.use_weight_quantizer or not o.with_weights]
        first, *rest = self.parts
        y = self._product(first, x, self.bias, options)
        for part in rest:
            y = y + self._product(part, x, None, options)
        for option in options:
            y = option.add(y, x, self)
        return y if x.dtype is torch.float32 else y.to(x.dtype)

    def _product(
        self, part: Part, x: Tensor, bias: Tensor | None, options: Sequence[LayerOption]
    ) -> Tensor:
        """The product of one part's quantized input and weight."""
        x = self.part_input(part, x)
        operand = Operand(x)
        for option in options:
            operand = option.arrange(operand, part, self)
        values, mult = operand.values, operand.mult
        if part.act_quantizer is not None and self.use_act_quantizer:
            values = part.act_quantizer(values, mult)
        elif mult is not None:
            values = values * mult
        quantizer = part.weight_quantizer if self.use_weight_quantizer else None
        if quantizer is None:
            weight = self.part_weight(part)
        else:  # fixed codes do not look at the float weight, which may have to be computed
            weight = quantizer(
                self._weight if quantizer.codes is not None else self.part_weight(part)
            )
        product: Product = self.geometry.product
        for option in options:
            product = option.around(product, x, self)
        # codes and ranges are float32 whatever dtype the network has
        bias = None if bias is None else bias.to(values.dtype)
        return product(values, weight.to(values.dtype), bias)

    # ---- state -----------------------------------------------------------------------------

    def freeze(self) -> None:
        """Fix all weight codes and activation zero points."""
        for part in self.parts:
            part.freeze(self.part_weight(part))

    def state(self) -> dict[str, Tensor]:
        """Everything that quantization decided, structure and widths included.

        Raises:
            ValueError: weight codes are not frozen.
        """
        tensors = {"widths": torch.tensor([self.bits.weight, self.bits.act])}
        if self.bias is not None:
            tensors["bias"] = self.bias
        for option in self.options:
            tensors |= option.state()
        if len(self.parts) > 1:
            tensors["edges"] = torch.tensor([0, *(part.stop for part in self.parts)])
        for index, part in enumerate(self.parts):
            tensors |= {f"{index}/{name}": value for name, value in part.state().items()}
        return {name: value.detach() for name, value in tensors.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take what ``state`` gave.

        Raises:
            BrokenModel: other widths, or shapes that do not fit this layer.
            KeyError: something is missing.
        """
        weight, act = state["widths"].tolist()
        if (weight, act) != (self.bits.weight, self.bits.act):
            raise BrokenModel(f"it has {Bits(weight, act)} in the state, {self.bits} in the model")
        edges = state.get("edges", torch.tensor([0, self.in_channels]))
        if edges.tolist() != [0, *(part.stop for part in self.parts)]:
            self._cut([int(b - a) for a, b in pairwise(edges)])
        loaded = (kind.load(state, self) for kind in OPTIONS)
        self._hold(option for option in loaded if option is not None)
        if "bias" in state:
            self.bias = nn.Parameter(state["bias"], requires_grad=False)
        for index, part in enumerate(self.parts):
            part.load(under(state, f"{index}/"), self.part_weight(part).shape)
