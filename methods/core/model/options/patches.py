"""Ranges by output pixel: a convolution quantizes what each output pixel reads (DGQ)."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from quantarena.methods.core.model.options.option import Host, LayerOption, Operand, Product
from quantarena.methods.core.quantizers.part import Part
from quantarena.methods.core.quantizers.patches import tap_rows, weight_rows


class Patches(LayerOption):
    """Quantizes patches, (B, pixels, taps * channels), in the place of the input image.

    Packed, the patches' groups decide the form of each part; see ``packed.lowering``.
    """

    title = "patches"

    @classmethod
    def of(cls, host: Host) -> "Patches":
        """The option for this layer.

        Raises:
            ValueError: no 2-d convolution, or one in groups.
        """
        if host.geometry.spatial != 2 or host.geometry.groups != 1:
            raise ValueError("only a 2-d convolution without groups has patches")
        return cls()

    def arrange(self, operand: Operand, part: Part, host: Host) -> Operand:
        """See ``LayerOption``."""
        window = host.geometry.window(host.weight.shape[2:])
        mult = None if operand.mult is None else tap_rows(operand.mult.flatten(), window)
        return Operand(window.rows(operand.values), mult)

    def around(self, product: Product, x: Tensor, host: Host) -> Product:
        """See ``LayerOption``."""
        window = host.geometry.window(host.weight.shape[2:])

        def over_patches(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return window.image(F.linear(rows, weight_rows(weight), bias), x)

        return over_patches

    def state(self) -> dict[str, Tensor]:
        """See ``LayerOption``."""
        return {"patches": torch.tensor(True)}

    @classmethod
    def load(cls, state: Mapping[str, Tensor], host: Host) -> "Patches | None":
        """See ``LayerOption``."""
        return cls.of(host) if "patches" in state else None
