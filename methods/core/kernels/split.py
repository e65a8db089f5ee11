"""A layer as the sum of packed parts over ranges of its input channels."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from quantarena.methods.core.kernels import native
from quantarena.methods.core.kernels.formats import IntegerLayer
from quantarena.methods.core.kernels.packed import PackedLayer

_SHARED = ("kind", "out_features", "kernel_size", "stride", "padding", "dilation", "groups")


class SplitPackedLayer(nn.Module):
    """Sum of packed layers over consecutive ranges of input channels.

    Each part has its own weight and activation quantizers, as the inputs of a U-Net's skip
    concatenation need.  Parts read their channels in place and add to one output.
    """

    def __init__(
        self, parts: Sequence[IntegerLayer], library: native.Library | None = None
    ) -> None:
        """Packs the parts.

        Args:
            parts: layers in the order of their channels; they agree in all but their input
                channels and quantizers, and only the first may have a bias.
            library: kernels to run on; by default those of this process.

        Raises:
            ValueError: no parts, or parts that do not agree.
        """
        super().__init__()
        if not parts:
            raise ValueError("a split layer needs at least one part")
        for name in _SHARED:
            values = [getattr(part, name) for part in parts]
            if any(value != values[0] for value in values):
                raise ValueError(f"parts of a split layer differ in {name}: {values}")
        if parts[0].groups != 1 or any(part.bias is not None for part in parts[1:]):
            raise ValueError("a split layer has no groups, and its bias belongs to the first part")
        self._dim = -1 if parts[0].kind == "linear" else 1
        self._sizes = [part.in_features for part in parts]
        self.parts = nn.ModuleList(PackedLayer(part, library) for part in parts)

    def forward(self, x: Tensor, step: int | None = None) -> Tensor:
        """Sum of the parts' outputs.

        Args:
            x: float32 input with the channels of all parts.
            step: entry of the activation tables; by default the one of :meth:`set_step`.

        Returns:
            float32 output in the memory format of the input.

        Raises:
            ValueError: the input has the wrong number of channels.
        """
        if x.shape[self._dim] != sum(self._sizes):
            raise ValueError(f"input {tuple(x.shape)} does not have {sum(self._sizes)} channels")
        y: Tensor | None = None
        for part, piece in zip(self.parts, torch.split(x, self._sizes, self._dim), strict=True):
            assert isinstance(part, PackedLayer)
            y = part(piece, step) if y is None else part.add_to(y, piece, step)
        assert y is not None
        return y

    def set_step(self, index: int) -> None:
        """Selects the entry of every part's activation table."""
        for part in self.parts:
            assert isinstance(part, PackedLayer)
            part.set_step(index)

    @property
    def edges(self) -> list[tuple[int, int]]:
        """First and one-past-last input channel of each part."""
        ends = list(accumulate(self._sizes))
        return list(zip([0, *ends[:-1]], ends, strict=True))

    @property
    def packed_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(int(getattr(part, "packed_bytes", 0)) for part in self.parts)

    @property
    def backend(self) -> str:
        """Backend of the parts."""
        return str(getattr(self.parts[0], "backend", ""))
