"""A packed network as a diffusers model: saved, moved, copied and counted as diffusers' own are.

``as_diffusers_model`` changes the class of a packed network in place, into a subclass of the one
that diffusers has. The subclass has the same name and module, so that configurations, pipelines and
messages name the class of diffusers; ``pickle`` and ``copy`` are told how to make it again.
"""

import functools
import inspect
import sys
from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

import torch
from accelerate import init_empty_weights
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from quantarena.bench.errors import QuantArenaError, UserError
from quantarena.bench.ship.diffusers_quantizer import (
    QuantArenaConfig,
    QuantArenaQuantizer,
    require_format,
)
from quantarena.bench.ship.packed_adapters import PackedAdapters, refuse_adapters
from quantarena.bench.ship.written_network import AsWritten
from quantarena.bench.workloads.row_lists import stacked_class, takes_lists
from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.model.attention_hooks import installed
from quantarena.methods.core.model.time_table import ScheduledTable
from quantarena.methods.core.packed.checkpoint import described_of, sizes_of, tensors_of
from quantarena.methods.core.packed.diffusers_layout import ENTRY, entry_of
from quantarena.methods.core.packed.nodes.leaf import PackedLayer
from quantarena.methods.core.packed.nodes.node import Node
from quantarena.methods.core.packed.number_format import lower
from quantarena.methods.core.packed.pack import PackedModel, backend_of
from quantarena.methods.core.packed.step.recorded import RecordedStep

_RECORDED = "_recorded_step"


class PackedNetwork(ModelMixin):  # type: ignore[misc]
    """What a packed network does otherwise than the diffusers class beside which it is inherited.

    Attributes:
        clock: the sampler call that tables are read at.
        hf_quantizer: diffusers' name for what describes the weights.
        packed_from: the class beside which it is inherited, which exports build anew.
    """

    packed_from: ClassVar[type]
    clock: CallClock
    hf_quantizer: QuantArenaQuantizer
    _internal_dict: Any

    # ---- drawing ---------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the diffusers class; finds the sampler call by the timestep if nobody announced it."""
        index = None if self.clock.is_set else self._call_of(args, kwargs)
        compute: Any = self.__dict__.get(_RECORDED, super().__call__)
        if index is None:
            return compute(*args, **kwargs)
        with self.clock.at(index):
            return compute(*args, **kwargs)

    def record_step(self, on: bool = True, *, exact: bool = False) -> "PackedNetwork":
        """Record its step at the next call without gradients, and replay it from then on.

        This is how rows are timed (docs/kernels.md, "A step without Python"). What a recording does
        not hold runs as it is written. A copy, and what is loaded from a file, records for itself
        when it is told to.

        Args:
            on: whether to; False goes back to the network as it is written.
            exact: give the network's results bit for bit; else they differ by rounding, and a step
                takes less time.
        """
        self.__dict__.pop(_RECORDED, None)
        if on:
            self.__dict__[_RECORDED] = RecordedStep(AsWritten(self), self.clock, exact=exact)
        return self

    def _call_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | int | None:
        """The sampler call of a timestep; None where only the sampler can tell.

        Only integers are looked up: a pipeline that scales a timestep, as Flux divides by 1,000,
        makes a floating-point number of it, which could be a timestep of another call.
        """
        schedule = self.clock.schedule
        if schedule is None or len(set(schedule.timesteps)) < len(schedule.timesteps):
            return None
        names = list(inspect.signature(self.forward).parameters)
        given = dict(zip(names, args, strict=False)) | kwargs
        times = torch.as_tensor(given.get("timestep", 0.0))
        if times.is_floating_point() or times.is_complex():
            return None
        calls = {time: call for call, time in enumerate(schedule.timesteps)}
        found = [calls.get(time) for time in map(float, times.reshape(-1).tolist())]
        if None in found:
            return None
        return found[0] if len(set(found)) == 1 else torch.tensor(found)

    # ---- what diffusers asks of a model -----------------------------------------------------

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Parameters of the network that the codes stand for, whatever they take.

        Args:
            only_trainable: count those alone that can learn here; none of the codes can.
            exclude_embeddings: leave out embeddings.
        """
        if only_trainable:
            return int(super().num_parameters(only_trainable, exclude_embeddings))
        return int(self._plain().num_parameters(exclude_embeddings=exclude_embeddings))

    def _plain(self) -> Any:
        """The network as it was before quantization, without memory for its parameters."""
        kind = original_class(type(self))
        with init_empty_weights(include_buffers=False):
            return kind.from_config(dict(self.config))

    @property
    def dtype(self) -> torch.dtype:
        """The number format that it computes in outside of its packed layers."""
        nodes = (m.around for m in self.modules() if isinstance(m, Node))
        found: torch.dtype = next(nodes, None) or super().dtype  # no node is left while it is tuned
        return found

    def to(self, *args: Any, **kwargs: Any) -> "PackedNetwork":
        """Move it, or change the number format of what is not packed; codes stay as they are.

        Raises:
            UserError: another device than the CPU or CUDA, or another format than float32,
                bfloat16 and float16.
        """
        device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        require_format(dtype)
        if memory_format not in (None, torch.channels_last, torch.preserve_format):
            raise UserError("a packed network keeps its images channels-last")
        if device is not None and device.type != self.device.type:
            self._move(device)
        if dtype is not None and dtype != self.dtype:
            lower(self, dtype)
        return self

    def _move(self, device: torch.device) -> None:
        size = f"its weights take {self.get_memory_footprint() / 1e6:.1f} MB"
        if device.type == "cpu":
            raise UserError("a packed network does not come back from CUDA: load its folder again")
        if device.type != "cuda":
            raise UserError(
                f"a packed network computes on the CPU or on CUDA, not on {device.type} ({size})"
            )
        if not torch.cuda.is_available():
            raise UserError(f"there is no CUDA device here: leave the network on the CPU ({size})")
        from quantarena.methods.core.cuda.place import on_cuda

        on_cuda(self, device)

    def half(self, *args: Any) -> "PackedNetwork":
        """As ``to(torch.float16)``."""
        return self.to(torch.float16)

    def bfloat16(self) -> "PackedNetwork":
        """As ``to(torch.bfloat16)``."""
        return self.to(torch.bfloat16)

    def float(self, *args: Any) -> "PackedNetwork":
        """As ``to(torch.float32)``."""
        return self.to(torch.float32)

    def double(self) -> "PackedNetwork":
        """Refused, see ``to``."""
        return self.to(torch.float64)

    # ---- files -----------------------------------------------------------------------------

    @functools.wraps(ModelMixin.save_pretrained)
    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Write ``config.json`` and the packed weights; ``from_pretrained`` reads them again.

        Raises:
            UserError: another file format than safetensors or torch's.
        """
        if kwargs.get("use_flashpack"):
            raise UserError("packed weights are written as safetensors: leave use_flashpack out")
        if any(isinstance(m, PackedLayer) and not m.panels.is_cpu for m in self.modules()):
            raise UserError("a packed network is saved from the CPU: load its folder again")
        refuse_adapters(self)
        packed = packed_of(self)
        tensors = tensors_of(packed)
        sizes, meta = sizes_of(packed, tensors), self.hf_quantizer.quantization_config.meta
        _describe(self, entry_of(described_of(packed), tensors, sizes, meta))
        with self.hf_quantizer.saving(tensors):
            super().save_pretrained(*args, **kwargs)

    def to_json_string(self) -> str:
        """The configuration without the path of a folder: equal networks have equal files."""
        self.register_to_config(**{ENTRY: self.hf_quantizer.quantization_config})
        held = self._internal_dict
        kept = {name: held[name] for name in held if name != "_name_or_path"}
        self._internal_dict = type(held)(kept)
        try:
            return str(super().to_json_string())
        finally:
            self._internal_dict = held

    # ---- what cannot work -------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        """As any module's; refuses the hook by which accelerate moves weights to and fro."""
        if name == "_hf_hook":
            self.enable_group_offload()
        super().__setattr__(name, value)

    def enable_group_offload(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused, as any offloading is.

        Raises:
            UserError: always.
        """
        raise UserError(
            "a packed network cannot be offloaded: its kernels read its codes where they are. It "
            f"takes {self.get_memory_footprint() / 1e6:.1f} MB; leave it on the CPU, or move the "
            "whole pipeline with to()"
        )

    def enable_layerwise_casting(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: what it would cast are codes and scales.

        Raises:
            UserError: always.
        """
        raise UserError("a packed network has no float weights to cast: use to() with a dtype")

    def dequantize(self) -> NoReturn:
        """Refused: the float weights are those of the base model.

        Raises:
            UserError: always.
        """
        raise UserError("a packed network keeps no float weights: load its base model instead")

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Made again from the class that diffusers has: this one cannot be imported by name."""
        _, _, state, *rest = super().__reduce_ex__(protocol)
        state = {name: value for name, value in state.items() if name != _RECORDED}
        return _blank, (original_class(type(self)),), state, *rest


def as_diffusers_model(packed: PackedModel, entry: Mapping[str, Any]) -> nn.Module:
    """Make a packed network save, move, copy and count as diffusers' models do.

    Args:
        packed: the network; its module is changed in place.
        entry: its ``quantization_config``, or ``{"meta": ...}``: the rest is written when it is
            saved.

    Returns:
        The module.

    Raises:
        QuantArenaError: it is no model of diffusers.
    """
    module: Any = packed.module
    if not isinstance(module, ModelMixin):
        name = type(module).__name__
        raise QuantArenaError(f"{name} is no model of diffusers, which could not load it again")
    if not isinstance(module, PackedNetwork):
        kind: Any = type(module)
        module.__class__ = _packed_class(kind)
    module.clock = packed.clock
    vars(module).pop("save_pretrained", None)  # the refusal of networks that know no configuration
    _describe(module, entry)
    return packed.module


def _describe(module: Any, entry: Mapping[str, Any]) -> None:
    config = QuantArenaConfig.from_dict(dict(entry))
    module.hf_quantizer = QuantArenaQuantizer(config, pre_quantized=True)
    module.is_quantized = True
    module.quantization_method = config.quant_method
    module.register_to_config(**{ENTRY: config})


def packed_of(module: PackedNetwork) -> PackedModel:
    """The packed network that a diffusers model is."""
    layers: dict[str, nn.Module] = {}
    for name, part in module.named_modules():
        if isinstance(part, Node) and not any(name.startswith(f"{n}.") for n in layers):
            layers[name] = part
    products = installed(module)
    return PackedModel(module, layers, backend_of(layers, products), module.clock, products)


def depends_on_calls(module: PackedNetwork) -> bool:
    """Whether anything in it is a table by sampler call."""
    tables = (m for m in module.modules() if isinstance(m, ScheduledTable))
    nodes = (m for m in module.modules() if isinstance(m, Node) and m.entries)
    return module.clock.schedule is not None or any(True for _ in (*tables, *nodes))


_OURS = (PackedNetwork, PackedAdapters)


def original_class(kind: type) -> Any:
    """The class of diffusers that a packed network's class was made from."""
    return next(
        c
        for c in kind.__mro__
        if c not in _OURS and c is getattr(sys.modules[c.__module__], c.__name__, None)
    )


@functools.cache
def _packed_class(base: Any) -> Any:
    """A subclass of a model's class that is a ``PackedNetwork`` too."""
    names = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "packed_from": base,
    }
    ours = _OURS if issubclass(base, PeftAdapterMixin) else _OURS[:1]
    return type(base.__name__, (*ours, base), names)


def _blank(original: Any) -> nn.Module:
    """An empty packed network of a class of diffusers, whose state is put in by ``pickle``."""
    base: Any = stacked_class(original) if takes_lists(original) else original
    kind = _packed_class(base)
    made: nn.Module = kind.__new__(kind)
    return made
