"""A network with quantized layers: wrapping, switching quantizers, state."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.bits import AttentionBits, Bits
from quantarena.methods.core.clock import CallClock, CallSchedule
from quantarena.methods.core.errors import BrokenModel, Unsupported
from quantarena.methods.core.model.attention import QuantAttention
from quantarena.methods.core.model.attention_hooks import CHILD, wrap_attention
from quantarena.methods.core.model.attention_mode import Fake, Plain, Watch, Watched
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.state import (
    by_module,
    changed_tensors,
    put_tensor,
    require_same,
    require_tensors,
)
from quantarena.methods.core.model.time_table import ScheduledTable
from quantarena.methods.core.quantizers.activation import ActQuantizer
from quantarena.methods.core.quantizers.part import under
from quantarena.methods.core.quantizers.range_search import RangeSearch
from quantarena.methods.core.record.points import CalibrationSet, bank_schedule
from quantarena.methods.core.trace.network import Graph
from quantarena.methods.core.visits import resident, visiting_as


@dataclass(slots=True)
class QuantizedModel:
    """A copy of the network with quantized layers in place, and where they are.

    Weights of quantized layers are the original's own memory: a large network has no room for a
    copy. So nothing may be written into one in place; ``QuantLayer.move_weight`` changes it.

    Attributes:
        module: the network; same forward as the original.
        layers: quantized layers by module path, in execution order.
        graph: the traced graph of the original.
        original: the network as it was; shared, never changed.
        clock: the sampler call that step banks are read at.
        attention: quantized attention products by module path; empty where they stay in floating
            point.
        tables: modules replaced by tables by sampler call.
        replaced: quantized layers that tables stand for, by module path.
        notes: values that the method puts on the row (JSON types).
        taught: recorded images that trainings of the whole network have learned from so far.
    """

    module: nn.Module
    layers: dict[str, QuantLayer]
    graph: Graph
    original: nn.Module
    clock: CallClock = field(default_factory=CallClock)
    attention: dict[str, QuantAttention] = field(default_factory=dict)
    tables: dict[str, ScheduledTable] = field(default_factory=dict)
    replaced: dict[str, QuantLayer] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    taught: set[int] = field(default_factory=set)

    def set_weight_ranges(self, search: RangeSearch, *, symmetric: bool = False) -> None:
        """Find weight ranges of every layer, per output channel."""
        for layer in self.layers.values():
            with resident(layer):
                layer.set_weight_ranges(search, symmetric=symmetric)

    def freeze(self) -> None:
        """Fix all weight codes and zero points; the model is then ready to pack."""
        for layer in self.layers.values():
            with resident(layer):
                layer.freeze()
        for products in self.attention.values():
            products.settle()

    @contextmanager
    def using(self, *, weights: bool, acts: bool) -> Iterator[None]:
        """Switch quantizers on or off inside the block.

        With both off, the quantized layers that tables stand for run again.
        """
        behind = {} if weights or acts else self.replaced
        behind = {name: layer for name, layer in behind.items() if name in self.tables}
        layers = (*self.layers.values(), *behind.values())
        before = [(x.use_weight_quantizer, x.use_act_quantizer) for x in layers]
        for layer in layers:
            layer.use_weight_quantizer, layer.use_act_quantizer = weights, acts
        for name, layer in behind.items():
            place(self.module, name, layer)
        try:
            with ExitStack() as stack:
                for products in self.attention.values():
                    stack.enter_context(products.using(Fake() if acts else Plain()))
                yield
        finally:
            for layer, (weight, act) in zip(layers, before, strict=True):
                layer.use_weight_quantizer, layer.use_act_quantizer = weight, act
            for name in behind:
                place(self.module, name, self.tables[name])

    @contextmanager
    def watching(self, watches: Mapping[str, Watch]) -> Iterator[None]:
        """Show attention operands, in floating point, to functions inside the block.

        Inside ``using`` this comes second: products are in one mode at a time.

        Args:
            watches: functions by module path, called with an operand's name and its values.
        """
        with ExitStack() as stack:
            for name, watch in watches.items():
                stack.enter_context(self.attention[name].using(Watched(watch)))
            yield

    def use_schedule(self, points: CalibrationSet) -> CallSchedule:
        """Tie the model to the sampler calls of these points, which its banks have entries for.

        The clock refuses a sampler with other calls from then on.

        Raises:
            ValueError: a sampler call without points.
        """
        schedule = bank_schedule(points)
        self.clock.schedule = schedule
        return schedule

    def run(self, points: CalibrationSet) -> Any:
        """The network's output on these points, each at its own sampler call."""
        with self.clock.at(points.step):
            return points.call(self.module)

    def product_quantizers(self, path: str = "") -> list[ActQuantizer]:
        """Activation quantizers of the attention products inside a module; of all by default."""
        owned = (m for n, m in self.attention.items() if not path or f"{n}.".startswith(f"{path}."))
        return [q for module in owned for q in module.modules() if isinstance(q, ActQuantizer)]

    def tabulate(self, name: str, table: ScheduledTable) -> None:
        """Put a table by sampler call where the module ``name`` was."""
        table.clock = self.clock
        place(self.module, name, table)
        self.tables[name] = table
        for path in [p for p in self.layers if p == name or p.startswith(f"{name}.")]:
            self.replaced[path] = self.layers.pop(path)

    def state(self) -> dict[str, Tensor]:
        """Everything that quantization decided or changed, by name.

        Raises:
            ValueError: weight codes are not frozen.
        """
        tensors: dict[str, Tensor] = {}
        for kind, modules in (("layer", self.layers), ("attention", self.attention)):
            for name, module in modules.items():
                tensors |= {f"{kind}:{name}/{n}": t for n, t in module.state().items()}
        tensors |= {f"table:{name}": table.values for name, table in self.tables.items()}
        outside = (*self.layers, *self.tables, *(f"{path}.{CHILD}" for path in self.attention))
        changed = changed_tensors(self.module, self.original, outside)
        tensors |= {f"float:{name}": value for name, value in changed.items()}
        if self.clock.schedule is not None:
            times = self.clock.schedule.timesteps
            tensors["schedule"] = torch.tensor(times, dtype=torch.float64)
        return {name: value.detach().contiguous().clone() for name, value in tensors.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take what ``state`` gave, structure included.

        Raises:
            BrokenModel: layers or attention products that differ from this model's in their names,
                widths or shapes; the line names one.
        """
        for name, table in under(state, "table:").items():
            if name not in dict(self.module.named_modules()):
                raise BrokenModel(f"quantized state does not fit the model: it has no {name}")
            self.tabulate(name, ScheduledTable(table))
        for kind, modules in (("layer", self.layers), ("attention", self.attention)):
            states = by_module(state, f"{kind}:")
            require_same(kind, states.keys(), modules.keys())
            for name, module in modules.items():
                try:
                    module.load(states[name])
                except (KeyError, ValueError, BrokenModel) as error:
                    what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
                    raise BrokenModel(
                        f"quantized state does not fit the model at {name}: {what}"
                    ) from None
        for name, value in under(state, "float:").items():
            put_tensor(self.module, name, value)
        if "schedule" in state:
            self.clock.schedule = CallSchedule("", tuple(state["schedule"].tolist()))
        require_tensors(state.keys(), self._state_names())

    def _state_names(self) -> set[str]:
        """Names of the tensors that ``state`` would give, those outside of the layers left out."""
        modules = (("layer", self.layers), ("attention", self.attention))
        names = {
            f"{kind}:{name}/{leaf}"
            for kind, owners in modules
            for name, owner in owners.items()
            for leaf in owner.state()
        }
        return names | {f"table:{name}" for name in self.tables}


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
    attention: Mapping[str, AttentionBits] | None = None,
) -> QuantizedModel:
    """Copy ``model`` and put quantized layers where the assignment asks for less than 16 bits.

    The weights of these layers are shared with ``model``, everything else is copied.

    Args:
        model: full-precision network, left untouched.
        graph: its trace.
        assignment: bits by layer, as a policy gives them.
        splits: split the layers that are fed by a skip concatenation (Q-Diffusion 4.3), or the
            widths of the parts of each layer to split.
        attention: widths of attention products by module path; others stay in floating point.

    Raises:
        Unsupported: a layer has an option that no quantized layer has, or computes in another type
            than float32; the line names it.
    """
    quantized = [name for name in graph.layers if not assignment[name].is_fp]
    weights = (model.get_submodule(name)._parameters.get("weight") for name in quantized)
    memo: dict[int, Any] = {id(weight): _shared(weight) for weight in weights if weight is not None}
    module = copy.deepcopy(model, memo).eval().requires_grad_(False)
    layers: dict[str, QuantLayer] = {}
    clock = CallClock()
    for name in quantized:
        info, bits = graph.layers[name], assignment[name]
        if info.dtype is not torch.float32:
            raise Unsupported(
                f"{name} computes in {str(info.dtype).removeprefix('torch.')} inside the network: "
                "only a layer in float32 can be quantized"
            )
        original = module.get_submodule(name)
        assert isinstance(original, nn.Conv1d | nn.Conv2d | nn.Linear)
        if isinstance(splits, Mapping):
            widths = splits.get(name, ())
        else:
            widths = info.splits if splits else ()
        try:
            layer = QuantLayer(original, bits, widths, clock)
        except Unsupported as error:
            raise Unsupported(f"{name}: {error}") from None
        place(module, name, layer)
        layers[name] = layer
    products = wrap_attention(module, graph, attention or {}, clock)
    visiting_as(module, model)
    return QuantizedModel(module, layers, graph, model, clock, products)


def _shared(weight: Tensor) -> nn.Parameter:
    """A parameter with the same memory, which does not learn."""
    return nn.Parameter(weight.detach(), requires_grad=False)
