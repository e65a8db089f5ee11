"""Quantizers of activations: static ranges, banks by sampler call, groups, and dynamic ranges.

A static quantizer has one range for a tensor; or a bank with one for each sampler call, chosen by
the clock that all layers of a model share; or groups of slices along one axis (channels, tokens,
heads), each with its own range; or a bank of groups. A dynamic quantizer finds the range of every
token when it arrives.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from quantarena.methods.core.affine import (
    QuantParams,
    affine_params,
    dequantize,
    project_zero_point,
    round_ste,
)
from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.quantizers.call_tables import bank_entry
from quantarena.methods.core.quantizers.group_views import grouped, ungrouped


class ActQuantizer(nn.Module):
    """Static quantizer; scales and zero points can learn (LSQ).

    Attributes:
        scale: () for a tensor, (S,) a bank by sampler call, (G,) groups, (S, G) a bank of groups.
        zero_point: same shape.
        steps: entries of the bank; 0 where there is none.
        axis: along which slices have groups; None where there are none.
        ids: group of each slice, (slices,) int64; (S, slices) int16 where it differs by call.
    """

    scale: nn.Parameter
    zero_point: nn.Parameter
    ids: Tensor | None
    axis: int | None

    def __init__(self, bits: int, clock: CallClock | None = None) -> None:
        super().__init__()
        self.bits, self.clock = bits, clock
        self.steps, self.axis = 0, None
        self.register_buffer("ids", None)
        self._take(torch.empty(0), torch.empty(0))

    @property
    def params(self) -> QuantParams:
        """All scales and zero points, in the shape that they are kept in."""
        return QuantParams(self.scale, self.zero_point, self.bits)

    def set_params(self, params: QuantParams) -> None:
        """One range for the whole tensor."""
        self.steps, self.axis, self.ids = 0, None, None
        self._take(params.scale.reshape(()), params.zero_point.reshape(()))

    def set_bank(self, scale: Tensor, zero_point: Tensor) -> None:
        """One range for each sampler call, both (S,)."""
        if scale.dim() != 1 or scale.shape != zero_point.shape:
            raise ValueError(f"a bank is (steps,), not {tuple(scale.shape)}")
        self.axis, self.ids, self.steps = None, None, len(scale)
        self._take(scale, zero_point)

    def set_groups(self, axis: int, ids: Tensor, scale: Tensor, zero_point: Tensor) -> None:
        """Groups of slices along ``axis`` (not the batch's), or a bank of them.

        Args:
            axis: 1 for channels of an image or heads, -1 for channels of tokens, -2 for tokens.
            ids: group of each slice, (slices,); or (S, slices), for each sampler call its own.
            scale: (G,), or (S, G) with one row for each sampler call.
            zero_point: same shape.

        Raises:
            ValueError: shapes that do not fit.
        """
        if scale.shape != zero_point.shape or not 1 <= scale.dim() <= 2 or axis == 0:
            raise ValueError(f"groups along axis {axis} are (groups,) or (steps, groups)")
        if int(ids.min()) < 0 or int(ids.max()) >= scale.shape[-1]:
            raise ValueError(f"group {int(ids.max())} of {scale.shape[-1]}")
        self.steps = scale.shape[0] if scale.dim() == 2 else 0
        if ids.dim() == 2 and len(ids) != self.steps:
            raise ValueError(f"groups of {len(ids)} sampler calls, ranges of {self.steps}")
        # a table of groups is as long as an image has pixels at each call: bytes count
        self.axis, self.ids = axis, ids.long() if ids.dim() == 1 else ids.to(torch.int16)
        self._take(scale, zero_point)

    def at(self, x: Tensor) -> QuantParams:
        """The parameters for this input and sampler call; they broadcast over ``x``.

        Raises:
            UserError: the sampler call was not announced or is not in the bank.
            ValueError: the input has another size along the groups' axis.
        """
        if not self.steps and self.axis is None:
            return self.params
        scale: Tensor = self.scale
        zero: Tensor = self.zero_point
        shape = [1] * x.dim()
        if self.steps:
            index = bank_entry(self.clock, self.steps, x.shape[0])
            scale, zero = scale[index], zero[index]
            if isinstance(index, Tensor):
                shape[0] = x.shape[0]
        if self.axis is not None and self.ids is not None:
            slices = self.ids.shape[-1]
            if x.shape[self.axis] != slices:
                raise ValueError(
                    f"{x.shape[self.axis]} slices along axis {self.axis}, calibrated for "
                    f"{slices}: another image size or token count needs a new calibration"
                )
            if self.ids.dim() == 2:
                ids = self.ids[index].long()
                scale, zero = (v.take_along_dim(ids, -1) for v in (scale, zero))
            else:
                scale, zero = scale[..., self.ids], zero[..., self.ids]
            shape[self.axis] = slices
        return QuantParams(scale.reshape(shape), zero.reshape(shape), self.bits)

    def codes(self, x: Tensor, mult: Tensor | None = None) -> tuple[Tensor, QuantParams]:
        """Codes of ``x * mult`` as integer-valued float32, and the parameters that they are under.

        Computed in float32 from any dtype. Multiplies by the reciprocal scale first and by ``mult``
        then, as the packed kernels do.
        """
        params = self.at(x)
        position = x.float() * params.scale.reciprocal()
        if mult is not None:
            position = position * mult
        return params.clip(round_ste(position) + params.zero_point), params

    def forward(self, x: Tensor, mult: Tensor | None = None) -> Tensor:
        """Fake-quantized ``x * mult``; differentiable in ``x``, scales and zero points."""
        codes, params = self.codes(x, mult)
        return dequantize(codes, params)

    def learn(self, *, scale: bool = True, zero_point: bool = False) -> dict[str, nn.Parameter]:
        """Start learning; parameters by group, ``act_scale`` and ``act_zero``."""
        self.scale.requires_grad_(scale)
        self.zero_point.requires_grad_(zero_point)
        parameters = {"act_scale": self.scale, "act_zero": self.zero_point}
        return {
            name: parameter for name, parameter in parameters.items() if parameter.requires_grad
        }

    def settle(self) -> float:
        """Stop learning; zero points become integers. Returns how far the farthest moved.

        What learned becomes a code; other zero points of tokens may lie beyond the codes.
        """
        learned = self.zero_point.requires_grad
        self.scale.requires_grad_(False)
        self.zero_point.requires_grad_(False)
        return project_zero_point(self.zero_point, self.params, clip=learned)

    def state(self) -> dict[str, Tensor]:
        """Tensors to keep."""
        tensors = {"scale": self.scale.detach(), "zero": self.zero_point.detach()}
        if self.ids is not None and self.axis is not None:
            tensors |= {"ids": self.ids, "axis": torch.tensor(self.axis)}
        if self.steps:
            tensors["steps"] = torch.tensor(self.steps)
        return tensors

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take what ``state`` gave.

        Raises:
            BrokenModel: it does not fit.
        """
        scale, zero = state["scale"], state["zero"]
        try:
            if "ids" in state:
                self.set_groups(int(state["axis"]), state["ids"], scale, zero)
            elif "steps" in state:
                self.set_bank(scale, zero)
            else:
                self.set_params(QuantParams(scale, zero, self.bits))
        except (ValueError, RuntimeError) as error:
            raise BrokenModel(f"activation ranges do not fit: {error}") from None

    def _take(self, scale: Tensor, zero_point: Tensor) -> None:
        self.scale = nn.Parameter(scale.detach().float(), requires_grad=False)
        self.zero_point = nn.Parameter(zero_point.detach().float(), requires_grad=False)


class DynamicActQuantizer(nn.Module):
    """Finds the min-max range of every token when it arrives (ViDiT-Q, SVDQuant).

    A token is a row of the last axis; of an image it is the whole sample, for a convolution sums
    over its pixels too.

    Attributes:
        symmetric: zero point fixed in the middle of the codes.
        group_size: neighbouring channels of a token that share a range; 0 for all of them.
    """

    def __init__(self, bits: int, *, symmetric: bool = False, group_size: int = 0) -> None:
        super().__init__()
        self.bits, self.symmetric, self.group_size = bits, symmetric, group_size

    def params(self, x: Tensor) -> QuantParams:
        """Ranges of ``x``, which broadcast over it, or over its groups.

        Raises:
            ValueError: NaN or infinity, or groups that do not divide the channels.
        """
        x = x.detach()
        if x.dim() == 4:
            if self.group_size:
                raise ValueError("an image has no channel groups at run time")
            low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
        else:
            low, high = self._view(x).aminmax(dim=-1, keepdim=True)
        return affine_params(low, high, self.bits, self.symmetric)

    def forward(self, x: Tensor, mult: Tensor | None = None) -> Tensor:
        """Fake-quantized ``x * mult``; differentiable in ``x``."""
        codes, params = self.codes(x, mult)
        value = dequantize(self._view(codes), params)
        return ungrouped(value, axis=-1) if self.group_size else value

    def codes(self, x: Tensor, mult: Tensor | None = None) -> tuple[Tensor, QuantParams]:
        """Codes in the shape of ``x``, and the parameters, which broadcast over its groups.

        Computed in float32 from any dtype.
        """
        x = x.float()
        x = x if mult is None else x * mult
        params = self.params(x)
        position = self._view(x) * params.scale.reciprocal()
        codes = params.clip(round_ste(position) + params.zero_point)
        return (ungrouped(codes, axis=-1) if self.group_size else codes), params

    def _view(self, x: Tensor) -> Tensor:
        return grouped(x, self.group_size, axis=-1) if self.group_size else x

    def state(self) -> dict[str, Tensor]:
        """Tensors to keep: the settings."""
        return {"dynamic": torch.tensor([int(self.symmetric), self.group_size])}
