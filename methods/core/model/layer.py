"""The quantized layer: a convolution or linear whose weights and inputs go through quantizers.

A layer has one part, or one part for each half of a concatenated input (Q-Diffusion's split
shortcut). A part owns a channel range with its own weight and activation quantizer, and packs to
one integer layer; the layer's output is the sum of its parts plus the bias. Around the parts there
may be a multiplier per input channel (smoothing, dilation), a low-rank branch in floating point
(SVDQuant), and leading tokens that are not quantized (MixDQ, DGQ).
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quantarena.methods.core.affine import QuantParams
from quantarena.methods.core.bits import FP_WIDTH, Bits
from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.quantizers.activation import ActQuantizer, DynamicActQuantizer
from quantarena.methods.core.quantizers.call_gains import ScaleExperts
from quantarena.methods.core.quantizers.patches import Window, tap_rows, weight_rows
from quantarena.methods.core.quantizers.range_search import RangeSearch
from quantarena.methods.core.quantizers.weight import WeightQuantizer

Quantizable = nn.Conv1d | nn.Conv2d | nn.Linear


class Part(nn.Module):
    """A range of input channels with its own quantizers; None leaves a side in floating point."""

    act_quantizer: ActQuantizer | DynamicActQuantizer | None

    def __init__(self, start: int, stop: int, bits: Bits, clock: CallClock | None = None) -> None:
        super().__init__()
        self.start, self.stop = start, stop
        self.weight_quantizer = None if bits.weight == FP_WIDTH else WeightQuantizer(bits.weight)
        self.act_quantizer = None if bits.act == FP_WIDTH else ActQuantizer(bits.act, clock)

    @property
    def static(self) -> ActQuantizer | None:
        """The activation quantizer, where its ranges are found before it runs."""
        return self.act_quantizer if isinstance(self.act_quantizer, ActQuantizer) else None


def scale_input(weight: Tensor, factor: Tensor) -> Tensor:
    """``weight`` with input channel k multiplied by ``factor[k]``.

    Args:
        weight: (O, K) or (O, K, ...).
        factor: (K,).

    Raises:
        ValueError: the factor is not (K,). A grouped convolution's weight has fewer input channels
            than its input, so it ends here.
    """
    if weight.dim() < 2 or factor.shape != weight.shape[1:2]:
        raise ValueError(
            f"a factor of shape {tuple(factor.shape)} does not fit the input channels of a weight "
            f"of shape {tuple(weight.shape)}"
        )
    return weight * factor.reshape(1, -1, *[1] * (weight.dim() - 2))


class QuantLayer(nn.Module):
    """A Conv1d, Conv2d or Linear with quantizers in front of its weight and input.

    Args:
        module: the full-precision layer; its tensors are shared, not copied.
        bits: widths of every part.
        splits: widths of the input-channel parts, summing to the input channels; empty for one.
        clock: of the model; None for a layer on its own.

    Attributes:
        in_mult: (K,) multiplier of each input channel before it is quantized, or None.
        low_down: (r, K, ...) into the floating-point branch, or None.
        low_up: (O, r) out of it.
        excluded: leading tokens that stay in floating point.
        patches: whether a convolution quantizes what each output pixel reads, (B, pixels, taps *
            channels), instead of its input image; see ``core.patches``.
        token_outputs: (excluded, O), their outputs where those are constant.
        experts: gains by sampler call around a weight-only layer (TuneQDM), or None.
    """

    in_mult: Tensor | None
    low_down: Tensor | None
    low_up: Tensor | None
    token_outputs: Tensor | None

    def __init__(
        self,
        module: Quantizable,
        bits: Bits,
        splits: Sequence[int] = (),
        clock: CallClock | None = None,
    ) -> None:
        super().__init__()
        self.bits, self.clock = bits, clock
        self.weight = nn.Parameter(module.weight.detach(), requires_grad=False)
        self.bias = (
            None if module.bias is None else nn.Parameter(module.bias.detach(), requires_grad=False)
        )
        self.spatial = 0 if isinstance(module, nn.Linear) else len(module.kernel_size)
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            if isinstance(module.padding, str) or module.padding_mode != "zeros":
                raise ValueError("only convolutions with numeric zero padding can be quantized")
            self.stride, self.padding = module.stride, module.padding
            self.dilation, self.groups = module.dilation, module.groups
            self.in_channels = module.in_channels
        else:
            self.groups, self.in_channels = 1, module.in_features
        self.excluded, self.patches = 0, False
        for name in ("in_mult", "low_down", "low_up", "token_outputs"):
            self.register_buffer(name, None)
        self.experts: ScaleExperts | None = None
        self._cut(tuple(splits) or (self.in_channels,))
        self.use_weight_quantizer = True
        self.use_act_quantizer = True

    def _cut(self, widths: Sequence[int]) -> None:
        if sum(widths) != self.in_channels:
            raise ValueError(
                f"splits {tuple(widths)} do not sum to {self.in_channels} input channels"
            )
        edges = pairwise(accumulate(widths, initial=0))
        self.parts = nn.ModuleList(Part(a, b, self.bits, self.clock) for a, b in edges)

    @property
    def is_conv(self) -> bool:
        """Whether channels are axis 1 of its input; else they are the last."""
        return self.spatial > 0

    @property
    def window(self) -> Window:
        """What an output pixel of a 2-d convolution reads."""
        return Window.of(self.weight.shape[2:], self.stride, self.padding, self.dilation)

    def use_patches(self) -> None:
        """Quantize what each output pixel reads, so that pixels can have ranges.

        Raises:
            ValueError: no 2-d convolution, or one in groups.
        """
        if self.spatial != 2 or self.groups != 1:
            raise ValueError("only a 2-d convolution without groups has patches")
        self.patches = True

    def part_list(self) -> list[Part]:
        """The parts, typed."""
        return [part for part in self.parts if isinstance(part, Part)]

    def part_weight(self, part: Part) -> Tensor:
        """That part's slice of the full-precision weight."""
        if len(self.parts) == 1:
            return self.weight
        return self.weight[:, part.start : part.stop]

    def part_input(self, part: Part, x: Tensor) -> Tensor:
        """That part's slice of the layer's input."""
        if len(self.parts) == 1:
            return x
        return x[:, part.start : part.stop] if self.is_conv else x[..., part.start : part.stop]

    def part_mult(self, part: Part) -> Tensor | None:
        """That part's multipliers, shaped over its input."""
        if self.in_mult is None:
            return None
        piece = self.in_mult[part.start : part.stop]
        return piece.reshape(-1, *[1] * self.spatial) if self.is_conv else piece

    def set_weight_ranges(self, search: RangeSearch, *, symmetric: bool) -> None:
        """Find per-output-channel ranges of every part's weight."""
        for part in self.part_list():
            if part.weight_quantizer is not None:
                part.weight_quantizer.find_params(
                    self.part_weight(part), search, symmetric=symmetric
                )

    def scale_input(self, factor: Tensor) -> None:
        """Multiply input channel k of the weight by ``factor[k]`` and its input by the inverse.

        The layer's function stays; ranges have to be found afterwards.

        Raises:
            ValueError: the factor does not fit, or is not positive and finite.
        """
        if not bool(((factor > 0) & torch.isfinite(factor)).all()):
            raise ValueError("factors of input channels must be positive and finite")
        self.weight = nn.Parameter(scale_input(self.weight.detach(), factor), requires_grad=False)
        inverse = factor.reciprocal()
        self.in_mult = inverse if self.in_mult is None else self.in_mult * inverse

    def set_low_rank(self, down: Tensor, up: Tensor) -> None:
        """Move ``up @ down`` out of the weight into a branch that stays in floating point.

        Args:
            down: (r, K, ...), shaped as a weight with r outputs.
            up: (O, r).

        Raises:
            ValueError: shapes that do not fit, or a grouped convolution.
        """
        fits = down.shape[1:] == self.weight.shape[1:] and up.shape == (
            self.weight.shape[0],
            down.shape[0],
        )
        if not fits or self.groups != 1:
            raise ValueError(
                f"a branch of {tuple(down.shape)} and {tuple(up.shape)} does not fit a weight of "
                f"{tuple(self.weight.shape)} in {self.groups} groups"
            )
        taken = (up @ down.flatten(1)).reshape(self.weight.shape)
        self.weight = nn.Parameter(self.weight.detach() - taken, requires_grad=False)
        # As they come back from a file: with other strides BLAS may add up in another order.
        self.low_down, self.low_up = down.detach().contiguous(), up.detach().contiguous()

    def exclude_tokens(self, count: int, outputs: Tensor | None = None) -> None:
        """Leave the first ``count`` tokens in floating point.

        Args:
            count: tokens along the axis before the last.
            outputs: (count, O) where their outputs are the same for every input, such as those of
                a start token; then no float weight has to be kept for them.

        Raises:
            ValueError: a convolution, or outputs that do not fit.
        """
        if self.is_conv or (outputs is not None and outputs.shape != (count, self.weight.shape[0])):
            raise ValueError("only tokens of a linear layer can be excluded, with one output each")
        self.excluded = count
        self.token_outputs = None if outputs is None else outputs.detach()

    def set_experts(self, of_call: Tensor, experts: int) -> ScaleExperts:
        """Put gains by sampler call around the weight, all 1 at first.

        Args:
            of_call: expert of each call, (S,) integers.
            experts: how many there are.

        Raises:
            ValueError: a layer with quantized input, several parts, a branch or excluded tokens.
        """
        plain = len(self.parts) == 1 and self.low_down is None and not self.excluded
        if self.part_list()[0].act_quantizer is not None or not plain:
            raise ValueError(
                "gains by sampler call go around a weight-only layer of one part, without branch "
                "or excluded tokens"
            )
        self.experts = ScaleExperts.ones(
            self.in_channels, self.weight.shape[0], of_call, experts, self.clock
        )
        return self.experts

    def forward(self, x: Tensor) -> Tensor:
        """Sum of the parts plus bias; shapes as the full-precision layer."""
        if self.experts is not None and self.use_weight_quantizer:
            return self._with_gains(x, self.experts)
        result: Tensor | None = None
        for index, part in enumerate(self.part_list()):
            piece, mult = self.part_input(part, x), self.part_mult(part)
            weight = self.part_weight(part)
            if self.patches:
                piece = self.window.rows(piece)
                mult = None if mult is None else tap_rows(mult.flatten(), self.window)
            if part.act_quantizer is not None and self.use_act_quantizer:
                piece = part.act_quantizer(piece, mult)
            elif mult is not None:
                piece = piece * mult
            if part.weight_quantizer is not None and self.use_weight_quantizer:
                weight = part.weight_quantizer(weight)
            bias = self.bias if index == 0 else None
            if self.patches:
                term = self.window.image(F.linear(piece, weight_rows(weight), bias), x)
            else:
                term = self.affine(piece, weight, bias)
            result = term if result is None else result + term
        assert result is not None
        if self.low_down is not None:
            result = result + self.branch(x)
        if self.excluded:
            result = torch.cat([self.plain_tokens(x), result[..., self.excluded :, :]], dim=-2)
        return result

    def _with_gains(self, x: Tensor, experts: ScaleExperts) -> Tensor:
        """``d_out * (Q(W) (d_in * x)) + b``: nothing dense is made for an expert."""
        axis, weight = (1 if self.is_conv else -1), self.weight
        quantizer = self.part_list()[0].weight_quantizer
        if quantizer is not None:
            weight = quantizer(weight)
        y = experts.after(self.affine(experts.before(self.scaled(x), axis), weight, None), axis)
        if self.bias is None:
            return y
        return y + (self.bias.reshape(-1, *[1] * self.spatial) if self.is_conv else self.bias)

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's product with another weight."""
        if not self.is_conv:
            return F.linear(x, weight, bias)
        product = F.conv2d if self.spatial == 2 else F.conv1d
        return product(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def branch(self, x: Tensor) -> Tensor:
        """What the low-rank branch adds."""
        assert self.low_down is not None
        assert self.low_up is not None
        inner = self.affine(self.scaled(x), self.low_down, None)
        if not self.is_conv:
            return F.linear(inner, self.low_up)
        up = self.low_up.reshape(*self.low_up.shape, *[1] * self.spatial)
        return F.conv2d(inner, up) if self.spatial == 2 else F.conv1d(inner, up)

    def plain_tokens(self, x: Tensor) -> Tensor:
        """Outputs of the excluded tokens, (..., excluded, O)."""
        if self.token_outputs is not None:
            return self.token_outputs.expand(*x.shape[:-2], *self.token_outputs.shape)
        first = x[..., : self.excluded, :]
        result = F.linear(self.scaled(first), self.weight, self.bias)
        return result if self.low_down is None else result + self.branch(first)

    def scaled(self, x: Tensor) -> Tensor:
        """The input as the quantizers see it: multipliers applied."""
        if self.in_mult is None:
            return x
        return x * (self.in_mult.reshape(-1, *[1] * self.spatial) if self.is_conv else self.in_mult)

    def freeze(self) -> None:
        """Fix all weight codes and activation zero points."""
        for part in self.part_list():
            if part.weight_quantizer is not None:
                part.weight_quantizer.freeze(self.part_weight(part))
            if part.static is not None:
                part.static.settle()

    def state(self) -> dict[str, Tensor]:
        """Everything that quantization decided, structure included.

        Raises:
            ValueError: weight codes are not frozen.
        """
        names = ("bias", "in_mult", "low_down", "low_up", "token_outputs")
        found = {n: t for n in names if (t := getattr(self, n)) is not None}
        found |= {} if self.experts is None else self.experts.state()
        if len(self.parts) > 1:
            found["edges"] = torch.tensor([0, *(part.stop for part in self.part_list())])
        if self.patches:
            found["patches"] = torch.tensor(True)
        if self.excluded:
            found["excluded"] = torch.tensor(self.excluded)
            if self.token_outputs is None:
                found["weight"] = self.weight
        for index, part in enumerate(self.part_list()):
            wq, aq = part.weight_quantizer, part.act_quantizer
            if wq is not None:
                if wq.codes is None:
                    raise ValueError("weight codes are not frozen")
                kept = {"scale": wq.scale, "zero": wq.zero_point, "codes": wq.codes}
                kept |= {} if wq.bit_map is None else {"bit_map": wq.bit_map}
                kept |= {"group": torch.tensor(wq.group)} if wq.group else {}
                found |= {f"{index}/weight_{n}": t for n, t in kept.items()}
            if aq is not None:
                found |= {f"{index}/act_{n}": t for n, t in aq.state().items()}
        return {name: value.detach() for name, value in found.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take what ``state`` gave.

        Raises:
            BrokenModel: shapes do not fit this layer.
            KeyError: something is missing.
        """
        edges = state.get("edges", torch.tensor([0, self.in_channels]))
        if edges.tolist() != [0, *(part.stop for part in self.part_list())]:
            self._cut([int(b - a) for a, b in pairwise(edges)])
        for name in ("in_mult", "low_down", "low_up", "token_outputs"):
            setattr(self, name, state.get(name))
        self.excluded = int(state.get("excluded", 0))
        self.experts = ScaleExperts.of_state(state, self.weight.shape, self.in_channels, self.clock)
        self.patches = "patches" in state
        for name in ("bias", "weight"):
            if name in state:
                setattr(self, name, nn.Parameter(state[name], requires_grad=False))
        for index, part in enumerate(self.part_list()):
            _load_part(part, self.part_weight(part), _under(state, f"{index}/"))


def _load_part(part: Part, weight: Tensor, state: Mapping[str, Tensor]) -> None:
    if part.weight_quantizer is not None:
        quantizer, kept = part.weight_quantizer, _under(state, "weight_")
        quantizer.group = int(kept.get("group", 0))
        if "bit_map" in kept:
            quantizer.set_bit_map(kept["bit_map"])
        quantizer.set_params(QuantParams(kept["scale"], kept["zero"], quantizer.bits))
        if kept["codes"].shape != weight.shape:
            raise BrokenModel(f"codes have shape {tuple(kept['codes'].shape)}")
        quantizer.set_codes(kept["codes"])
    if part.act_quantizer is not None:
        kept = _under(state, "act_")
        if "dynamic" in kept:
            symmetric, group = kept["dynamic"].tolist()
            part.act_quantizer = DynamicActQuantizer(
                part.act_quantizer.bits, symmetric=bool(symmetric), group=group
            )
        elif isinstance(part.act_quantizer, ActQuantizer):
            part.act_quantizer.load(kept)


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n[len(prefix) :]: t for n, t in state.items() if n.startswith(prefix)}
