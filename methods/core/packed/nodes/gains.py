"""Nodes that change gains with the sampler call around codes that stay (TuneQDM, PTQD)."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from quantarena.methods.core.packed.nodes.node import (
    Build,
    Document,
    Node,
    Tensors,
    like_input,
    take,
)
from quantarena.methods.core.packed.nodes.wrappers import Wrapper


class GainsLayer(Wrapper):
    """``d_out * inner(d_in * x) + b``, with one pair of vectors for each range of sampler calls.

    Attributes:
        d_in: (N, K), onto the input channels.
        d_out: (N, O), onto the output channels.
        of_call: (S,) int64, the pair of each sampler call.
        bias: (O,), or None; the inner layer has none.
    """

    form: ClassVar[str] = "expert"
    d_in: Tensor
    d_out: Tensor
    of_call: Tensor
    bias: Tensor | None

    def __init__(
        self, inner: Node, d_in: Tensor, d_out: Tensor, of_call: Tensor, bias: Tensor | None
    ) -> None:
        """Takes a weight-only layer without bias.

        Args:
            inner: the layer, whose weight is (O, K / groups, ...).
            d_in: (N, K).
            d_out: (N, O).
            of_call: (S,) integers.
            bias: (O,).

        Raises:
            ValueError: gains that do not fit, or an inner layer with tables by sampler call.
        """
        super().__init__(inner)
        fits = len(d_in) == len(d_out) > int(of_call.max()) and int(of_call.min()) >= 0
        if inner.entries or not fits or d_out.shape[1:] != inner.weight_shape[:1]:
            raise ValueError(
                f"gains {tuple(d_in.shape)} and {tuple(d_out.shape)} do not fit a weight of "
                f"{inner.weight_shape}"
            )
        self.entries = len(of_call) if len(d_in) > 1 else 0  # one pair serves rows of any call
        for name, value in (("d_in", d_in), ("d_out", d_out), ("of_call", of_call)):
            self.register_buffer(name, value.detach().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def run(self, x: Tensor, step: int) -> Tensor:
        """See ``Node.forward``."""
        pair = int(self.of_call[step]) if self.entries else 0
        places = [1] * (len(self.weight_shape) - 2)
        y = self.below(self.inner, x * self.d_in[pair].reshape(-1, *places), step)
        y = y * self.d_out[pair].reshape(-1, *places)
        return like_input(y if self.bias is None else y + self.bias.reshape(-1, *places), x)

    def describe(self) -> Document:
        """See ``Node``."""
        return {**super().describe(), "bias": self.bias is not None}

    @classmethod
    def rebuild(cls, document: Mapping[str, Any], tensors: Tensors, build: Build) -> "GainsLayer":
        """See ``Node``."""
        inner = build(document["inner"], take(tensors, "inner."))
        bias = tensors.pop("bias") if document["bias"] else None
        d_in, d_out = tensors.pop("d_in"), tensors.pop("d_out")
        return cls(inner, d_in, d_out, tensors.pop("of_call"), bias)


class CallAffineLayer(Wrapper):
    """``gain * inner(x) + shift``, with one pair of vectors for each sampler call.

    Attributes:
        gain: (S, O).
        shift: (S, O).
    """

    form: ClassVar[str] = "call_affine"
    gain: Tensor
    shift: Tensor

    def __init__(self, inner: Node, gain: Tensor, shift: Tensor) -> None:
        """Takes a layer of any form.

        Args:
            inner: the layer, whose weight is (O, K / groups, ...).
            gain: (S, O).
            shift: (S, O).

        Raises:
            ValueError: tables that do not fit the layer, or an inner layer with tables of another
                number of sampler calls.
        """
        super().__init__(inner)
        calls, outputs = len(gain), inner.weight_shape[0]
        if inner.entries not in (0, calls) or not (calls, outputs) == gain.shape == shift.shape:
            raise ValueError(
                f"gains {tuple(gain.shape)} and shifts {tuple(shift.shape)} do not fit a weight of "
                f"{inner.weight_shape} with tables of {inner.entries} sampler calls"
            )
        self.entries = calls
        self.register_buffer("gain", gain.detach().clone())
        self.register_buffer("shift", shift.detach().clone())

    def run(self, x: Tensor, step: int) -> Tensor:
        """See ``Node.forward``."""
        places = [1] * (len(self.weight_shape) - 2)
        y = self.below(self.inner, x, step)
        y = y * self.gain[step].reshape(-1, *places) + self.shift[step].reshape(-1, *places)
        return like_input(y, x)

    @classmethod
    def rebuild(
        cls, document: Mapping[str, Any], tensors: Tensors, build: Build
    ) -> "CallAffineLayer":
        """See ``Node``."""
        inner = build(document["inner"], take(tensors, "inner."))
        return cls(inner, tensors.pop("gain"), tensors.pop("shift"))
