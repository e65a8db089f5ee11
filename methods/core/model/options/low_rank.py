"""A low-rank branch in floating point beside the quantized weight (SVDQuant, arXiv:2411.05007)."""

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.model.options.option import Host, LayerOption, PackedForm
from quantarena.methods.core.quantizers.layer_geometry import as_image_weight


class LowRankBranch(LayerOption):
    """Adds ``up @ (down x)``, computed in floating point.

    Attributes:
        down: (r, K, ...), shaped as a weight with r outputs.
        up: (O, r).
    """

    title = "a low-rank branch"
    down: Tensor
    up: Tensor

    def __init__(self, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.register_buffer("down", down)
        self.register_buffer("up", up)

    @classmethod
    def moved(cls, down: Tensor, up: Tensor, host: Host) -> "LowRankBranch":
        """Moves ``up @ down`` out of the layer's weight.

        Raises:
            ValueError: shapes that do not fit, or a grouped convolution.
        """
        if misfit := _misfit(down, up, host):
            raise ValueError(misfit)
        host.move_weight(partial(_rest, down=down.detach(), up=up.detach()))
        # As they come back from a file: with other strides BLAS may add up in another order.
        return cls(down.detach().contiguous(), up.detach().contiguous())

    def add(self, y: Tensor, x: Tensor, host: Host) -> Tensor:
        """See ``LayerOption``."""
        inner = host.geometry.product(host.scaled(x), self.down, None)
        return y + host.geometry.pointwise(inner, self.up)

    def state(self) -> dict[str, Tensor]:
        """See ``LayerOption``."""
        return {"low_down": self.down, "low_up": self.up}

    @classmethod
    def load(cls, state: Mapping[str, Tensor], host: Host) -> "LowRankBranch | None":
        """See ``LayerOption``."""
        if "low_down" not in state:
            return None
        down, up = state["low_down"], state["low_up"]
        if misfit := _misfit(down, up, host):
            raise BrokenModel(misfit)
        return cls(down, up)

    def lower(self, host: Host) -> PackedForm:
        """See ``LayerOption``; the branch reads the input before multipliers."""
        down, factor = self.down, host.input_factor
        if factor is not None:
            down = down * factor.reshape(-1, *[1] * host.geometry.spatial)
        tensors = {"down": as_image_weight(down), "up": self.up}
        return PackedForm("low_rank", {"geometry": host.geometry.as_image()}, tensors)

    def branch_values(self) -> int:
        """See ``LayerOption``."""
        return self.down.numel() + self.up.numel()

    def float_macs(self, macs: float, positions: float) -> float:
        """See ``LayerOption``: into the branch as the layer itself, out of it 1x1."""
        outputs, rank = self.up.shape
        return macs * rank / outputs + positions * rank * outputs


def _rest(weight: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """What a branch leaves of the weight."""
    return weight - (up @ down.flatten(1)).reshape(weight.shape)


def _misfit(down: Tensor, up: Tensor, host: Host) -> str:
    """Why a branch does not fit the layer; empty where it does."""
    weight, groups = host.weight, host.geometry.groups
    fits = down.shape[1:] == weight.shape[1:] and up.shape == (weight.shape[0], down.shape[0])
    if fits and groups == 1:
        return ""
    return (
        f"a branch of {tuple(down.shape)} and {tuple(up.shape)} does not fit a weight of "
        f"{tuple(weight.shape)} in {groups} groups"
    )
