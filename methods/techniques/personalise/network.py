"""A network that is tuned: packed layers in the place of its float ones, and what learns in it."""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.clock import CallClock, CallSchedule
from quantarena.methods.core.errors import UserError
from quantarena.methods.core.model.model import place
from quantarena.methods.core.model.options.call_gains import pair_of
from quantarena.methods.core.packed.nodes.fusion import FusedGroupNorm, fuse
from quantarena.methods.core.packed.nodes.gains import GainsLayer
from quantarena.methods.core.packed.nodes.node import Node
from quantarena.methods.core.packed.nodes.weight_only import WeightOnlyLayer
from quantarena.methods.core.packed.nodes.wrappers import Conv1dLayer
from quantarena.methods.core.packed.pack import PackedModel, backend_of, channels_last
from quantarena.methods.core.quantizers.layer_geometry import LayerGeometry
from quantarena.methods.techniques.learn.param_groups import Learnable
from quantarena.methods.techniques.personalise.layer import (
    BranchTuning,
    GainsTuning,
    Moment,
    TuningLayer,
)
from quantarena.methods.techniques.personalise.packed_weight import PackedWeight
from quantarena.methods.techniques.ranges.minmax import minmax_range

Gains = tuple[Tensor, Tensor]
"""Gains of inputs (N, K) and of outputs (N, O)."""
Make = Callable[[PackedWeight, LayerGeometry, Tensor | None, Gains | None], TuningLayer]
"""From a weight, its geometry, its bias and the gains that it has to a layer that learns."""


@dataclass(slots=True)
class TunedNetwork:
    """A network of which some parameters learn.

    Attributes:
        module: the network.
        layers: its packed layers by module path; empty where float weights learn.
        experts: number of pairs of gains.
        horizon: timesteps that the network was trained with.
        moment: tells the layers which pair acts.
    """

    module: nn.Module
    layers: dict[str, TuningLayer]
    experts: int
    horizon: int
    moment: Moment = field(default_factory=Moment)

    def groups(self) -> dict[str, list[Learnable]]:
        """What learns, by the names of ``learn.param_groups``."""
        if not self.layers:
            return {"weight": [Learnable(p) for p in self.module.parameters()]}
        found: dict[str, list[Learnable]] = {}
        for layer in self.layers.values():
            for name, learnables in layer.groups().items():
                found.setdefault(name, []).extend(learnables)
        return found

    @property
    def trainable(self) -> int:
        """Number of values that learn."""
        return sum(one.parameter.numel() for group in self.groups().values() for one in group)

    def tell(self, timestep: Tensor) -> None:
        """Say the timestep of each row of the next batch, (B,).

        It holds until the next batch: where activations are recomputed, the way back asks again.
        """
        self.moment.pairs = pair_of(timestep, self.experts, self.horizon)

    def pack(self, schedule: CallSchedule) -> PackedModel:
        """Put packed layers in the place of those that learned; the network is used up.

        Args:
            schedule: the sampler calls that gains are looked up for.

        Raises:
            ValueError: float weights learned, so that nothing is packed.
        """
        if not self.layers:
            raise ValueError("float weights learned: there is nothing to pack")
        by_time = any(isinstance(layer, GainsTuning) for layer in self.layers.values())
        of_call = pair_of(torch.tensor(schedule.timesteps), self.experts, self.horizon)
        clock = CallClock(schedule if by_time else None)
        nodes: dict[str, Node] = {}
        for name, layer in self.layers.items():
            nodes[name] = layer.node(of_call)
            nodes[name].set_clock(clock)
            place(self.module, name, nodes[name])
        self.layers = {}
        channels_last(self.module.requires_grad_(False))
        fuse(self.module, nodes.values())
        return PackedModel(self.module, nodes, backend_of(nodes, {}), clock)


def learning_gains(moment: Moment, experts: int, *, inputs: bool) -> Make:
    """How to make layers whose gains learn; ``inputs`` for those of inputs too.

    Raises:
        UserError: from the function, where the layer has gains for another number of experts.
    """

    def make(
        weight: PackedWeight, geometry: LayerGeometry, bias: Tensor | None, gains: Gains | None
    ) -> TuningLayer:
        channels = (weight.shape[1] * geometry.groups, weight.shape[0])
        start = gains or (torch.ones(1, channels[0]), torch.ones(1, channels[1]))
        held = len(start[0])
        if experts % held:
            raise UserError(
                f"the model has {held} experts already: tune it with {held}, or a multiple of it"
            )
        d_in, d_out = (rows.repeat_interleave(experts // held, 0) for rows in start)
        return GainsTuning(weight, geometry, bias, (d_in, d_out), moment, inputs=inputs)

    return make


def learning_branch(rank: int) -> Make:
    """How to make layers with a low-rank branch that learns; convolutions in groups have none.

    Raises:
        UserError: from the function, where the layer has gains.
    """

    def make(
        weight: PackedWeight, geometry: LayerGeometry, bias: Tensor | None, gains: Gains | None
    ) -> TuningLayer:
        if gains is not None:
            raise UserError("the model has gains already: go on tuning these, not a branch")
        if geometry.groups != 1:
            return TuningLayer(weight, geometry, bias)
        return BranchTuning(weight, geometry, bias, rank)

    return make


def quantize_in_place(
    module: nn.Module, widths: Mapping[str, Bits], make: Make
) -> dict[str, TuningLayer]:
    """Round the weights of a float network to codes, layer by layer.

    Each float weight is dropped as soon as its codes are packed, so that the network never holds
    both of more than one layer.

    Args:
        module: the network, which is changed.
        widths: bits by module path; layers at full precision stay, frozen.
        make: makes the layer that learns.
    """
    module.requires_grad_(False)
    layers: dict[str, TuningLayer] = {}
    for name, bits in widths.items():
        if bits.is_fp:
            continue
        original = module.get_submodule(name)
        assert isinstance(original, nn.Conv1d | nn.Conv2d | nn.Linear)
        weight = PackedWeight.rounded(original.weight, bits.weight, minmax_range)
        layers[name] = make(weight, LayerGeometry.of(original), original.bias, None)
        place(module, name, layers[name])
    gc.collect()  # modules hold themselves in circles, and with them their float weights
    return layers


def unpack_in_place(packed: PackedModel, make: Make) -> dict[str, TuningLayer]:
    """Put layers that learn in the place of packed ones; the packed network is used up.

    Raises:
        UserError: a layer is not weight-only, or has what cannot be tuned.
    """
    layers: dict[str, TuningLayer] = {}
    for module in packed.module.requires_grad_(False).modules():
        if type(module) is FusedGroupNorm:  # the native pass has no gradient
            module.__class__ = nn.GroupNorm  # type: ignore[assignment]
    if packed.attention:
        raise UserError("its attention products are quantized: tune takes weight-only models")
    for name, node in packed.layers.items():
        layers[name] = _tuning_layer(name, node, packed.clock, make)
        place(packed.module, name, layers[name])
    return layers


def _tuning_layer(name: str, node: nn.Module, clock: CallClock, make: Make) -> TuningLayer:
    inner = node.inner if isinstance(node, Conv1dLayer) else node
    gains: Gains | None = None
    bias: Tensor | None = None
    if isinstance(inner, GainsLayer):
        gains, bias, inner = (inner.d_in, inner.d_out), inner.bias, inner.inner
    if not isinstance(inner, WeightOnlyLayer) or inner.in_mult is not None:
        form = getattr(inner, "form", type(inner).__name__)
        raise UserError(
            f"{name} is packed as {form!r}: tune takes weight-only models (such as w4a16) of "
            "rtn or tuneqdm"
        )
    shape = torch.Size(node.weight_shape) if isinstance(node, Node) else inner.weight_shape
    weight = PackedWeight.of(inner, torch.Size(shape))
    return make(weight, _geometry(inner, len(shape) - 2), bias if gains else inner.bias, gains)


def _geometry(layer: WeightOnlyLayer, spatial: int) -> LayerGeometry:
    """A packed layer's geometry; a 1-d convolution was packed as an image of height 1."""
    if spatial < 1:
        return LayerGeometry()
    stride, padding, dilation = (
        tuple(layer.metadata[name])[-spatial:] for name in ("stride", "padding", "dilation")
    )
    return LayerGeometry(spatial, stride, padding, dilation, layer.metadata["groups"])
