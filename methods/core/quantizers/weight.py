"""The quantizer of one weight: its ranges, its widths, and how its rounding is decided.

Four ways of rounding: to the nearest code; AdaRound, which learns to round up or down; straight
through, where the float weight itself learns; and LoRA, where a low-rank change of the weight
learns and is merged before quantization. Scales and zero points may learn beside all but AdaRound,
whose grid is laid out once.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.affine import (
    QuantParams,
    dequantize,
    fake_quantize_ste,
    project_zero_point,
    quantize,
)
from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.quantizers.group_views import group_range, grouped, ungrouped
from quantarena.methods.core.quantizers.range_search import RangeSearch, mixed_range
from quantarena.methods.core.quantizers.recent_values import CODED
from quantarena.methods.core.quantizers.rounding import SoftRounding


class Rounding(StrEnum):
    """The ways to decide codes while a weight learns."""

    NEAREST = "nearest"
    SOFT = "soft"
    STE = "ste"
    LORA = "lora"


class WeightQuantizer(nn.Module):
    """Codes of one weight (O, K, ...), with a scale per output channel, or per channel and K-group.

    Ranges are set first; then it rounds to nearest, or learns; at last codes are frozen, which is
    what packs.

    Attributes:
        bits: width of the widest channel.
        bit_map: (O,) uint8, width of each output channel; None where all have ``bits``.
        group_size: neighbouring input channels that share a scale; 0 for all of them.
        held: stands for the weight while set, see ``hold``.
        drift: the largest move of a zero point when freezing made it an integer.
    """

    scale: nn.Parameter
    zero_point: nn.Parameter
    codes: Tensor | None
    bit_map: Tensor | None
    master: nn.Parameter | None
    lora_down: nn.Parameter | None
    lora_up: nn.Parameter | None

    def __init__(self, bits: int, group_size: int = 0) -> None:
        super().__init__()
        self.bits, self.group_size, self.drift = bits, group_size, 0.0
        self.soft: SoftRounding | None = None
        self.held: Tensor | None = None
        self.scale = _fixed(torch.empty(0))
        self.zero_point = _fixed(torch.empty(0))
        self.register_buffer("codes", None)
        self.register_buffer("bit_map", None)
        self._forget_learning()

    @property
    def params(self) -> QuantParams:
        """Scale and zero point, shaped over the weight, or over its K-groups."""
        widths = self.bit_map
        if widths is not None:
            widths = widths.reshape(-1, *[1] * (self.scale.dim() - 1)).float()
        return QuantParams(self.scale, self.zero_point, self.bits, widths)

    def set_params(self, params: QuantParams) -> None:
        """Take a range; forgets rounding and codes made under another."""
        self.scale, self.zero_point = _fixed(params.scale), _fixed(params.zero_point)
        self.soft, self.codes = None, None
        self._forget_learning()

    def set_bit_map(self, widths: Tensor) -> None:
        """Give each output channel its own width; ranges have to be found afterwards.

        Raises:
            ValueError: a width outside 1 to 8.
        """
        low, high = int(widths.min()), int(widths.max())
        if not 1 <= low <= high <= 8:
            raise ValueError(f"channel widths must be 1 to 8 bits, not {low} to {high}")
        self.bits, self.bit_map = high, widths.to(torch.uint8)

    def find_params(self, weight: Tensor, search: RangeSearch, *, symmetric: bool) -> None:
        """Search the ranges of ``weight``, (O, K, ...)."""
        if self.group_size and self.bit_map is not None:
            raise ValueError("channels of several widths cannot have K-groups")
        if self.group_size:
            params = group_range(search, weight, self.bits, self.group_size, symmetric=symmetric)
        elif self.bit_map is not None:
            ranges = mixed_range(search, weight, self.bit_map, symmetric=symmetric)
            params = QuantParams(*ranges, self.bits)
        else:
            params = search(weight, self.bits, axis=0, symmetric=symmetric)
        self.set_params(params)

    def set_codes(self, codes: Tensor) -> None:
        """Fix the codes, uint8 in the weight's shape."""
        self.codes, self.soft = codes.to(torch.uint8), None
        self._forget_learning()

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the codes stand for; differentiable in whatever learns."""
        if self.codes is not None:
            return CODED.get(self, self._coded)
        if self.held is not None:
            return self.held
        if self.soft is not None:
            return self._back(self.soft.weight())
        latent, params = self._view(self.latent(weight)), self.params
        if latent.requires_grad or params.scale.requires_grad or params.zero_point.requires_grad:
            return self._back(fake_quantize_ste(latent, params))
        return self._back(dequantize(quantize(latent, params), params))

    def hold(self, weight: Tensor) -> Tensor:
        """Compute the weight once for several passes, until ``held`` is None again.

        Returns:
            The value with its graph. What the passes send to ``held.grad`` is to be sent on to it.
        """
        value: Tensor = self(weight)
        self.held = value.detach().requires_grad_(value.requires_grad)
        return value

    def soften(self, weight: Tensor) -> SoftRounding:
        """Start AdaRound on this weight."""
        self.soft = SoftRounding(self._view(weight.detach()), self.params)
        return self.soft

    def learn(
        self,
        weight: Tensor,
        *,
        rounding: Rounding = Rounding.NEAREST,
        scale: bool = False,
        zero_point: bool = False,
        rank: int = 32,
    ) -> dict[str, list[nn.Parameter]]:
        """Start learning.

        Args:
            weight: full precision, (O, K, ...).
            rounding: the way to decide codes.
            scale: learn scales by their LSQ gradient (Esser et al., ICLR 2020).
            zero_point: learn zero points; ``freeze`` makes them integers and keeps the drift.
            rank: rank of the low-rank change, for LORA.

        Returns:
            Parameters by group: ``rounding``, ``weight``, ``lora``, ``weight_scale``,
            ``weight_zero``.

        Raises:
            ValueError: AdaRound with a scale or zero point that learns.
        """
        groups: dict[str, list[nn.Parameter]] = {}
        start = weight if self.master is None else self.master  # see start_from and thaw
        if rounding is Rounding.SOFT:
            if scale or zero_point:
                raise ValueError("AdaRound lays its grid out once: scales cannot learn beside it")
            groups["rounding"] = [self.soften(start).alpha]
        elif rounding is Rounding.STE:
            master = nn.Parameter(start.detach().clone())
            self.master, groups["weight"] = master, [master]
        elif rounding is Rounding.LORA:
            rows, columns = weight.shape[0], weight[0].numel()
            drawn = torch.randn(rank, columns) / columns**0.5  # the same on every device
            down = nn.Parameter(drawn.to(weight.device))
            up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))  # no change yet
            self.lora_down, self.lora_up, groups["lora"] = down, up, [down, up]
        for name, parameter, wanted in (
            ("weight_scale", self.scale, scale),
            ("weight_zero", self.zero_point, zero_point),
        ):
            if wanted:
                parameter.requires_grad_(True)
                groups[name] = [parameter]
        return groups

    def start_from(self, weight: Tensor) -> None:
        """Round this weight, (O, K, ...), in the place of the layer's own; ranges stay.

        What learns afterwards, in whichever way, starts from it.

        Raises:
            ValueError: codes are fixed.
        """
        if self.codes is not None:
            raise ValueError("codes are fixed: another weight would change nothing")
        self._forget_learning()
        self.master = nn.Parameter(weight.detach().clone(), requires_grad=False)

    @torch.no_grad()
    def thaw(self, weight: Tensor) -> None:
        """Let fixed codes follow a weight again that learns; each keeps the way that it rounds.

        A code that was rounded up stays one above the floor of its weight, and one that was rounded
        down stays at the floor, wherever the weight goes (QuEST, Wang et al., ICCV 2025). This is
        rounding to nearest of a weight that is moved by half a step up or down.

        Args:
            weight: full precision, (O, K, ...), that the codes were made from.

        Raises:
            ValueError: the codes are not fixed.
        """
        if self.codes is None:
            raise ValueError("only fixed codes can be thawed")
        params = self.params
        target = self._view(self.codes).float() - params.zero_point
        position = self._view(weight.float()) * params.scale.reciprocal()
        up = (target - torch.floor(position)).clamp(0, 1)  # beyond the grid it is cut off anyway
        gap = position + up - 0.5 - target
        # a weight on the grid itself lies on the border of two codes, and stays on its own side
        gap = torch.where(gap.abs() < 0.51, gap.clamp(-0.499, 0.499), gap)
        shifted = self._back((target + gap) * params.scale)
        master = nn.Parameter(shifted, requires_grad=False)
        self.codes = None
        self._forget_learning()
        self.master = master

    def latent(self, weight: Tensor) -> Tensor:
        """The float weight that will be quantized: learned, or with its LoRA merged."""
        start = weight if self.master is None else self.master
        if self.lora_up is not None and self.lora_down is not None:
            return start + (self.lora_up @ self.lora_down).reshape(weight.shape)
        return start

    @torch.no_grad()
    def freeze(self, weight: Tensor) -> None:
        """Fix the codes: hard rounding where soft, nearest otherwise; zero points to integers."""
        if self.codes is not None:
            return
        self.scale.requires_grad_(False)
        self.zero_point.requires_grad_(False)
        self.drift = project_zero_point(self.zero_point, self.params)
        latent, params = self._view(self.latent(weight).detach()), self.params
        if self.soft is None:
            self.set_codes(self._back(quantize(latent, params)))
        else:
            floor = torch.floor(latent * params.scale.reciprocal()) + self.soft.up()
            self.set_codes(self._back(params.clip(floor + params.zero_point)))

    def state(self) -> dict[str, Tensor]:
        """Tensors to keep: ranges, codes, and the settings that they are under.

        Raises:
            ValueError: codes are not frozen.
        """
        if self.codes is None:
            raise ValueError("weight codes are not frozen")
        tensors = {"scale": self.scale, "zero": self.zero_point, "codes": self.codes}
        if self.bit_map is not None:
            tensors["bit_map"] = self.bit_map
        if self.group_size:
            tensors["group"] = torch.tensor(self.group_size)
        return tensors

    def load(self, state: Mapping[str, Tensor], shape: torch.Size) -> None:
        """Take what ``state`` gave, for a weight of this shape.

        Raises:
            BrokenModel: the codes have another shape.
            KeyError: something is missing.
        """
        self.group_size = int(state.get("group", 0))
        if "bit_map" in state:
            self.set_bit_map(state["bit_map"])
        self.set_params(QuantParams(state["scale"], state["zero"], self.bits))
        if state["codes"].shape != shape:
            raise BrokenModel(f"codes have shape {tuple(state['codes'].shape)}")
        self.set_codes(state["codes"])

    def _apply(self, fn: Any, recurse: bool = True) -> "WeightQuantizer":
        """Moved or converted, what the codes stand for is computed anew."""
        CODED.forget(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _forget_learning(self) -> None:
        """Forget what learned, and what codes stood for."""
        self.master, self.lora_down, self.lora_up = None, None, None
        CODED.forget(self)

    def _coded(self) -> Tensor:
        """What the frozen codes stand for."""
        assert self.codes is not None
        return self._back(dequantize(self._view(self.codes).float(), self.params))

    def _view(self, weight: Tensor) -> Tensor:
        return grouped(weight, self.group_size) if self.group_size else weight

    def _back(self, weight: Tensor) -> Tensor:
        return ungrouped(weight) if self.group_size else weight


def _fixed(value: Tensor) -> nn.Parameter:
    """A parameter that does not learn until asked to."""
    return nn.Parameter(value.detach(), requires_grad=False)
