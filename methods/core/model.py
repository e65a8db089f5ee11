"""A network whose layers went through quantizers: wrapping, calibration, state, accounting."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.graph import Graph
from quantarena.methods.core.layers import QuantLayer
from quantarena.methods.core.quantizer import QuantParams
from quantarena.methods.core.ranges import RangeSearch
from quantarena.methods.core.trajectory import CalibrationSet

_KEEP = 1 << 16
"""Activation values kept of each part for range searches; extremes are always kept."""


@dataclass(slots=True)
class QuantizedModel:
    """A copy of the network with quantized layers in place, and where they are.

    Attributes:
        module: the network; same forward as the original.
        layers: quantized layers by module path, in execution order.
        graph: the traced graph of the original.
        notes: what the method wants on the row (JSON types).
    """

    module: nn.Module
    layers: dict[str, QuantLayer]
    graph: Graph
    notes: dict[str, Any] = field(default_factory=dict)

    def set_weight_ranges(self, search: RangeSearch, *, symmetric: bool = False) -> None:
        """Find weight ranges of every layer, per output channel."""
        for layer in self.layers.values():
            layer.set_weight_ranges(search, symmetric=symmetric)

    def freeze(self) -> None:
        """Fix all weight codes; the model is then ready to pack."""
        for layer in self.layers.values():
            layer.freeze()

    @contextmanager
    def using(self, *, weights: bool, acts: bool) -> Iterator[None]:
        """Switch quantizers on or off inside the block."""
        before = [(x.use_weight_quantizer, x.use_act_quantizer) for x in self.layers.values()]
        for layer in self.layers.values():
            layer.use_weight_quantizer, layer.use_act_quantizer = weights, acts
        try:
            yield
        finally:
            for layer, (weight, act) in zip(self.layers.values(), before, strict=True):
                layer.use_weight_quantizer, layer.use_act_quantizer = weight, act

    def state(self) -> dict[str, Tensor]:
        """Everything that quantization decided, by name; not the network's own weights."""
        tensors: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            for index, part in enumerate(layer.part_list()):
                prefix = f"{name}/{index}"
                if part.weight_quantizer is not None:
                    if part.weight_quantizer.codes is None:
                        raise ValueError(f"{name}: weight codes are not frozen")
                    tensors[f"{prefix}/weight_scale"] = part.weight_quantizer.scale
                    tensors[f"{prefix}/weight_zero"] = part.weight_quantizer.zero_point
                    tensors[f"{prefix}/codes"] = part.weight_quantizer.codes
                if part.act_quantizer is not None:
                    tensors[f"{prefix}/act_scale"] = part.act_quantizer.scale.detach()
                    tensors[f"{prefix}/act_zero"] = part.act_quantizer.zero_point
        return {name: value.contiguous().clone() for name, value in tensors.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take what ``state`` gave.

        Raises:
            BrokenModel: names or shapes do not fit this model.
        """
        try:
            for name, layer in self.layers.items():
                for index, part in enumerate(layer.part_list()):
                    prefix = f"{name}/{index}"
                    wq, aq = part.weight_quantizer, part.act_quantizer
                    if wq is not None:
                        scale, zero = (
                            state[f"{prefix}/weight_scale"],
                            state[f"{prefix}/weight_zero"],
                        )
                        wq.set_params(QuantParams(scale, zero, wq.bits))
                        codes = state[f"{prefix}/codes"]
                        if codes.shape != layer.part_weight(part).shape:
                            raise BrokenModel(f"{prefix}: codes have shape {tuple(codes.shape)}")
                        wq.set_codes(codes)
                    if aq is not None:
                        scale, zero = state[f"{prefix}/act_scale"], state[f"{prefix}/act_zero"]
                        aq.set_params(QuantParams(scale, zero, aq.bits))
        except KeyError as error:
            raise BrokenModel(
                f"quantized state does not fit the model: {error} is missing"
            ) from None


def place(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put ``module`` where ``path`` points to inside ``root``."""
    parent, _, leaf = path.rpartition(".")
    owner = root.get_submodule(parent)
    if isinstance(owner, nn.ModuleList | nn.Sequential):
        owner[int(leaf)] = module
    else:
        setattr(owner, leaf, module)


def wrap(
    model: nn.Module,
    graph: Graph,
    assignment: Mapping[str, Bits],
    *,
    splits: bool | Mapping[str, Sequence[int]] = False,
) -> QuantizedModel:
    """Copy ``model`` and put quantized layers where the assignment asks for less than 16 bits.

    Args:
        model: full-precision network, left untouched.
        graph: its trace.
        assignment: bits by layer, as a policy gives them.
        splits: split the layers that are fed by a skip concatenation (Q-Diffusion 4.3), or the
            widths of the parts of each layer to split.
    """
    module = copy.deepcopy(model).eval().requires_grad_(False)
    layers: dict[str, QuantLayer] = {}
    for name, info in graph.layers.items():
        bits = assignment[name]
        if bits.is_fp:
            continue
        original = module.get_submodule(name)
        assert isinstance(original, nn.Conv2d | nn.Linear)
        if isinstance(splits, Mapping):
            widths = splits.get(name, ())
        else:
            widths = info.splits if splits else ()
        layer = QuantLayer(original, bits, widths)
        place(module, name, layer)
        layers[name] = layer
    return QuantizedModel(module, layers, graph)


class _Collector:
    """Extremes and a random sample of one part's input over all batches."""

    def __init__(self, batches: int) -> None:
        self.quota = max(1024, _KEEP // max(1, batches))
        self.kept: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        flat = x.detach().reshape(-1)
        low, high = flat.aminmax()
        if flat.numel() > self.quota:
            # drawn, not strided: a stride that divides the row length sees one channel only
            generator = torch.Generator().manual_seed(len(self.kept))
            flat = flat[torch.randint(flat.numel(), (self.quota,), generator=generator)]
        self.kept.append(torch.cat([flat, torch.stack([low, high])]))

    def values(self) -> Tensor:
        return torch.cat(self.kept)


@torch.no_grad()
def calibrate_activations(
    model: QuantizedModel,
    points: CalibrationSet,
    search: RangeSearch,
    *,
    symmetric: bool = False,
    quantized_weights: bool = True,
    batch: int = 64,
) -> None:
    """Set the range of every layer's input from one pass over the calibration points.

    Inputs are those of the network with floating-point activations; its weights are quantized or
    not as asked. Searches see the exact extremes and a random sample of the values, the same one in
    every run.
    """
    collectors: dict[tuple[str, int], _Collector] = {}
    count = -(-len(points) // batch)

    def watcher(name: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            assert isinstance(module, QuantLayer)
            for index, part in enumerate(module.part_list()):
                if part.act_quantizer is not None:
                    place = collectors.setdefault((name, index), _Collector(count))
                    place.add(module.part_input(part, args[0]))

        return note

    handles = [layer.register_forward_pre_hook(watcher(n)) for n, layer in model.layers.items()]
    try:
        with model.using(weights=quantized_weights, acts=False):
            for subset in points.batches(batch):
                subset.call(model.module)
    finally:
        for handle in handles:
            handle.remove()
    for (name, index), collector in collectors.items():
        part = model.layers[name].part_list()[index]
        assert part.act_quantizer is not None
        found = search(collector.values(), part.act_quantizer.bits, symmetric=symmetric)
        part.act_quantizer.set_params(found)
