"""A layer on packed codes while it is tuned: gains around them, or a low-rank branch beside them.

Gains are TuneQDM's (arXiv:2401.04339), or those of outputs alone (PEQA, arXiv:2305.14152). The
branch is QLoRA's (arXiv:2305.14314) but for the codes, which are those of gains: both start from
the same network.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantarena.methods.core.packed.nodes.gains import GainsLayer
from quantarena.methods.core.packed.nodes.node import Node
from quantarena.methods.core.packed.nodes.weight_only import WeightOnlyLayer
from quantarena.methods.core.packed.nodes.wrappers import Conv1dLayer, LowRankLayer
from quantarena.methods.core.quantizers.layer_geometry import LayerGeometry, as_image_weight
from quantarena.methods.techniques.learn.param_groups import Learnable
from quantarena.methods.techniques.personalise.packed_weight import PackedWeight
from quantarena.methods.techniques.personalise.product import product


@dataclass(slots=True)
class Moment:
    """The pair of gains that each row of the present batch uses; all layers share one."""

    pairs: Tensor | None = None


class TuningLayer(nn.Module):
    """A convolution or linear layer whose weight is packed.

    Attributes:
        weight_codes: the weight.
        geometry: how the layer moves over its input.
        bias: (O,), or None; does not learn.
    """

    bias: Tensor | None

    def __init__(self, weight: PackedWeight, geometry: LayerGeometry, bias: Tensor | None) -> None:
        super().__init__()
        self.weight_codes, self.geometry = weight, geometry
        self.register_buffer("bias", None if bias is None else bias.detach())

    @property
    def in_features(self) -> int:
        """Inputs of a linear layer: pipelines read it to check their conditions."""
        return self.weight_codes.shape[1]

    @property
    def weight(self) -> Tensor:
        """An empty tensor of the type that the layer computes in, which networks ask it for."""
        return torch.empty(0, dtype=torch.float32, device=self.weight_codes.codes.device)

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.weight_codes.shape[1] * self.geometry.groups

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.weight_codes.shape[0]

    def groups(self) -> dict[str, list[Learnable]]:
        """What learns, by the names of ``learn.param_groups``."""
        return {}

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        y = self._plain(x)
        return y if self.bias is None else y + self.geometry.over_channels(self.bias)

    def _plain(self, x: Tensor) -> Tensor:
        """The output without bias."""
        return product(x, self.weight_codes, self.geometry)

    def node(self, of_call: Tensor) -> Node:
        """The packed layer that it has become.

        Args:
            of_call: the pair of gains of each sampler call, (S,).
        """
        node = self._around(self._leaf(bias=not isinstance(self, GainsTuning)), of_call)
        return Conv1dLayer(node) if self.geometry.spatial == 1 else node

    def _around(self, leaf: WeightOnlyLayer, of_call: Tensor) -> Node:
        return leaf

    def _leaf(self, *, bias: bool) -> WeightOnlyLayer:
        weight, image = self.weight_codes, dict(self.geometry.as_image())
        geometry = {**image, "groups": self.geometry.groups} if image else {}
        return WeightOnlyLayer(
            weight.image_codes(),
            weight.bits,
            weight.scale,
            weight.zero,
            bias=self.bias if bias else None,
            geometry=geometry,
        )


class GainsTuning(TuningLayer):
    """``d_out * (W (d_in * x)) + b``, with one pair of vectors for each range of timesteps.

    Attributes:
        d_in: N vectors (K,).
        d_out: N vectors (O,), relative to the scales that the codes are under.
        moment: tells which pair acts.
        inputs: whether ``d_in`` learns; without it this is PEQA.
    """

    def __init__(
        self,
        weight: PackedWeight,
        geometry: LayerGeometry,
        bias: Tensor | None,
        start: tuple[Tensor, Tensor],
        moment: Moment,
        *,
        inputs: bool,
    ) -> None:
        """Takes the gains to start from, (N, K) and (N, O)."""
        super().__init__(weight, geometry, bias)
        self.moment, self.inputs = moment, inputs
        # vectors of their own: an optimiser leaves those alone that have no gradient
        self.d_in, self.d_out = (
            nn.ParameterList(nn.Parameter(row.clone(), requires_grad=learns) for row in rows)
            for rows, learns in zip(start, (inputs, True), strict=True)
        )

    def groups(self) -> dict[str, list[Learnable]]:
        """See ``TuningLayer``."""
        worth = float(self.weight_codes.scale.mean())
        learning = {"gain_out": [Learnable(row, worth=worth) for row in self.d_out]}
        return learning | ({"gain_in": [Learnable(x) for x in self.d_in]} if self.inputs else {})

    def _plain(self, x: Tensor) -> Tensor:
        d_in, d_out = self._at(self.d_in, x), self._at(self.d_out, x)
        return product(x, self.weight_codes, self.geometry, d_in, d_out)

    def _at(self, gains: nn.ParameterList, x: Tensor) -> Tensor:
        """Gains of the present pairs, shaped over an input or output of as many axes as ``x``."""
        if len(gains) == 1:
            rows: Tensor = gains[0]
            return self.geometry.over_channels(rows)
        pairs = self.moment.pairs
        if pairs is None:
            raise RuntimeError("a layer with several pairs of gains was not told the timestep")
        present, place = torch.unique(pairs, return_inverse=True)
        if len(present) == 1:
            return self.geometry.over_channels(gains[int(present[0])])
        # only the present ones, so that the others get no gradient, not one of zeros
        rows = torch.stack([gains[int(pair)] for pair in present])[place]
        rows = rows.repeat_interleave(x.shape[0] // len(rows), 0)  # frames folded into rows
        shape = [len(rows)] + [1] * (x.dim() - 1)
        shape[self.geometry.channel_axis] = -1
        return rows.reshape(shape)

    def _around(self, leaf: WeightOnlyLayer, of_call: Tensor) -> Node:
        d_in, d_out = (torch.stack(list(rows)).detach() for rows in (self.d_in, self.d_out))
        return GainsLayer(leaf, d_in, d_out, of_call, self.bias)


class BranchTuning(TuningLayer):
    """``W x + b + up (down x)``: LoRA beside packed codes; it starts as no change.

    Attributes:
        down: (r, K, ...), shaped as a weight with r outputs.
        up: (O, r).
    """

    def __init__(
        self, weight: PackedWeight, geometry: LayerGeometry, bias: Tensor | None, rank: int
    ) -> None:
        super().__init__(weight, geometry, bias)
        shape = weight.shape[1:]
        bound = 1 / math.sqrt(shape.numel())
        self.down = nn.Parameter(torch.empty(rank, *shape).uniform_(-bound, bound))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def groups(self) -> dict[str, list[Learnable]]:
        """See ``TuningLayer``."""
        return {"lora": [Learnable(self.down), Learnable(self.up)]}

    def _plain(self, x: Tensor) -> Tensor:
        branch = self.geometry.pointwise(self.geometry.product(x, self.down, None), self.up)
        return super()._plain(x) + branch

    def _around(self, leaf: WeightOnlyLayer, of_call: Tensor) -> Node:
        geometry: Mapping[str, tuple[int, ...]] = self.geometry.as_image()
        return LowRankLayer(leaf, as_image_weight(self.down.detach()), self.up.detach(), geometry)
