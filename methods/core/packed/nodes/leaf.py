"""Modules that run on packed weights.

A :class:`PackedLayer` holds nothing of the float weights: only the panels that the kernels read,
scales, zero points and sums.  Its ``state_dict`` holds the canonical bit stream instead, so that a
checkpoint loads on any backend.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from quantarena.methods.core.changes import changes
from quantarena.methods.core.kernels import custom_op, native, oracle
from quantarena.methods.core.kernels.call import NativeCall
from quantarena.methods.core.kernels.formats import IntegerLayer
from quantarena.methods.core.kernels.layout import PANEL, pack_panels, unpack_panels
from quantarena.methods.core.packed.nodes.node import Build, Document, Node, Tensors

CANONICAL = ("weight_scale", "weight_zero", "act_scale", "act_zero", "in_mult", "bias")


class PanelLayer(Node):
    """A node that holds panels of codes, and what the kernels read beside them.

    Attributes:
        metadata: of the layer, see ``IntegerLayer.metadata``.
        panels: see ``Panels.codes``.
    """

    metadata: dict[str, Any]
    panels: Tensor
    _library: native.Library

    @property
    def library(self) -> native.Library:
        """The kernels that it runs on."""
        return self._library

    @property
    def backend(self) -> str:
        """``packed`` on native kernels, ``reference`` on the torch oracle."""
        return self._library.status.backend

    @property
    def packed_bytes(self) -> int:
        """Bytes of everything that is kept for inference, padding included."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    @property
    def weight_bits_observed(self) -> float:
        """Bits per weight code slot, read from the size of the packed panels."""
        return int(self.panels.shape[2]) * 8 / (PANEL * 16)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight codes."""
        return tuple(self.metadata["weight_shape"])

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Packed buffers keep their types and stay on the CPU."""
        return self


class PackedLayer(PanelLayer):
    """One quantized layer on the native kernels, or on the torch reference where there are none.

    Attributes:
        writes_last: images are written channels_last whatever the input is; see ``fusion``.

    Example:
        >>> module = PackedLayer(integer_layer)          # doctest: +SKIP
        >>> y = module(x)                                # doctest: +SKIP
        >>> module.packed_bytes, module.backend          # doctest: +SKIP
        (11264, 'packed')
    """

    form: ClassVar[str] = "packed"
    writes_last: bool = False
    panels: Tensor
    chunk_start: Tensor
    chunk_units: Tensor
    weight_sum: Tensor
    weight_scale: Tensor
    weight_zero: Tensor | None
    act_scale: Tensor
    act_zero: Tensor
    in_mult: Tensor | None
    bias: Tensor | None

    def __init__(self, layer: IntegerLayer, library: native.Library | None = None) -> None:
        """Packs a layer.

        Args:
            layer: the layer.
            library: kernels to run on; by default those of this process.
        """
        super().__init__()
        self._library = library or native.library()
        self._pack(layer)

    @classmethod
    def from_metadata(
        cls, metadata: dict[str, Any], library: native.Library | None = None
    ) -> "PackedLayer":
        """An all-zero layer of the given description, to be filled by ``load_state_dict``."""
        shape = tuple(int(v) for v in metadata["weight_shape"])
        table = tuple(int(v) for v in metadata["act_shape"])
        inputs = shape[1] * int(metadata["groups"])
        layer = IntegerLayer(
            kind=metadata["kind"],
            weight_codes=torch.zeros(shape, dtype=torch.int8),
            weight_bits=metadata["weight_bits"],
            weight_scale=torch.ones(shape[0]),
            weight_zero=torch.zeros(shape[0], dtype=torch.int32),
            act_bits=metadata["act_bits"],
            act_scale=torch.ones(table),
            act_zero=torch.zeros(table, dtype=torch.int32),
            in_mult=torch.ones(inputs) if metadata["has_in_mult"] else None,
            bias=torch.zeros(shape[0]) if metadata["has_bias"] else None,
            stride=tuple(metadata["stride"]),
            padding=tuple(metadata["padding"]),
            dilation=tuple(metadata["dilation"]),
            groups=metadata["groups"],
        )
        return cls(layer, library)

    # ---- packing ---------------------------------------------------------------------------

    def _pack(self, layer: IntegerLayer, pair: bool | None = None) -> None:
        self.metadata = layer.metadata()
        self.entries = layer.act_scale.numel() if layer.act_scale.dim() else 0
        packed = pack_panels(layer, self._library.wide, pair)
        self._pair = packed.chunks.pair
        self.register_buffer("panels", packed.codes)
        self.register_buffer("chunk_start", packed.chunks.start)
        self.register_buffer("chunk_units", packed.chunks.units)
        self.register_buffer("weight_sum", packed.sums)
        for name in CANONICAL:
            self.register_buffer(name, getattr(layer, name))
        if not layer.weight_zero.any():
            self.weight_zero = None  # symmetric: nothing to store
        self._forget()

    def _forget(self) -> None:
        """Drops what is derived from the addresses of the buffers."""
        self._call: NativeCall | None = None
        self._source: IntegerLayer | None = None
        changes.note()

    def _codes(self) -> Tensor:
        """The weight codes, int8."""
        bits, groups = self.metadata["weight_bits"], self.metadata["groups"]
        return unpack_panels(self.panels, self.weight_shape, bits, groups, self._pair)

    def integer_layer(self) -> IntegerLayer:
        """The layer, read back from the packed panels."""
        meta = self.metadata
        shape = tuple(meta["weight_shape"])
        tensors = {name: getattr(self, name) for name in CANONICAL}
        if tensors["weight_zero"] is None:
            tensors["weight_zero"] = torch.zeros(shape[0], dtype=torch.int32)
        return IntegerLayer(
            kind=meta["kind"],
            weight_codes=self._codes(),
            weight_bits=meta["weight_bits"],
            act_bits=meta["act_bits"],
            stride=tuple(meta["stride"]),
            padding=tuple(meta["padding"]),
            dilation=tuple(meta["dilation"]),
            groups=meta["groups"],
            **tensors,
        )

    # ---- running ---------------------------------------------------------------------------

    def run(self, x: Tensor, step: int) -> Tensor:
        """Quantizes the input, multiplies, and scales back; see ``Node.forward``."""
        return self._run(x, step, None, 0)

    def accumulators(self, x: Tensor, step: int | None = None) -> Tensor:
        """The integer T before scaling, int32 in the shape of the output."""
        return self._run(x, self._step if step is None else step, None, native.INTEGER)

    @property
    def in_place(self) -> bool:
        """See ``Node``; a compiler wants sums of operators."""
        return not torch.compiler.is_compiling()

    def add_to(self, y: Tensor, x: Tensor, step: int | None = None) -> Tensor:
        """Adds the layer's output to ``y`` in place; ``y`` must have the layout of the output."""
        return self._run(x, self._step if step is None else step, y, native.ACCUMULATE)

    def _run(self, x: Tensor, step: int, into: Tensor | None, flags: int) -> Tensor:
        if into is None and custom_op.traced(x):
            return custom_op.packed_layer(
                x,
                dict(self._buffers),
                self.metadata,
                self._pair,
                step,
                last=self.writes_last,
                integer=bool(flags & native.INTEGER),
            )
        call = self.native_call()
        if call is None:
            return self._run_reference(x, step, into, flags)
        return call(x, step, into, flags, last=self.writes_last)

    def native_call(self) -> NativeCall | None:
        """Its call of the native kernels, a new one after repacking; None where there are none."""
        if self._call is None and self._library.run is not None:
            buffers = dict(self.named_buffers())
            self._call = NativeCall(self._library, self.metadata, self._pair, buffers)
        return self._call

    def repack(self, pair: bool) -> None:
        """Gives the panels another form.

        Args:
            pair: for 16-bit products, else for byte products.

        Raises:
            ValueError: byte products of these weights do not fit int16, or the kernels have no
                16-bit products.
        """
        if pair and not self._library.pairs:
            raise ValueError(f"{self._library.status.isa} kernels have no 16-bit products")
        if pair != self._pair:
            self._pack(self.integer_layer(), pair)

    def _run_reference(self, x: Tensor, step: int, into: Tensor | None, flags: int) -> Tensor:
        if self._source is None:
            self._source = self.integer_layer()
        if not 0 <= step < self._source.steps:
            raise IndexError(f"step {step} is not in the table of {self._source.steps}")
        if flags & native.INTEGER:
            return oracle.accumulators(self._source, x, step).to(torch.int32)
        y = oracle.forward(self._source, x, step)
        return y if into is None else into.add_(y)

    # ---- accounting ------------------------------------------------------------------------

    @property
    def uses_pairs(self) -> bool:
        """Whether 16-bit products are used, because the int16 overflow proof failed."""
        return self._pair

    def extra_repr(self) -> str:
        """Bits, shape and backend."""
        meta = self.metadata
        shape = "x".join(map(str, meta["weight_shape"]))
        return f"{meta['kind']} {shape}, w{meta['weight_bits']}a{meta['act_bits']}, {self.backend}"

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return int(self.metadata["weight_shape"][1] * self.metadata["groups"])

    # ---- state -----------------------------------------------------------------------------

    def describe(self) -> Document:
        """See ``Node``."""
        return {"form": self.form, "meta": self.metadata}

    @classmethod
    def rebuild(cls, document: Mapping[str, Any], tensors: Tensors, build: Build) -> "PackedLayer":
        """See ``Node``; zero points may be narrow, and those of symmetric weights missing."""
        meta = document["meta"]
        if "codes" not in tensors:
            raise ValueError("has no codes")
        rows = int(meta["weight_shape"][0])
        tensors.setdefault("weight_zero", torch.zeros(rows, dtype=torch.int32))
        named = {name: tensors.pop(name) for name in ("codes", *CANONICAL) if name in tensors}
        for name in {"weight_zero", "act_zero"} & set(named):
            named[name] = named[name].to(torch.int32)
        if (meta["has_bias"], meta["has_in_mult"]) != ("bias" in named, "in_mult" in named):
            raise ValueError("has not the bias or multipliers that it should have")
        return cls(IntegerLayer.from_tensors(dict(meta), named))

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        for name, tensor in self.integer_layer().tensors().items():
            destination[prefix + name] = tensor

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        expected = set(self.integer_layer().tensors())
        given = {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}
        missing_keys += [prefix + name for name in sorted(expected - set(given))]
        unexpected_keys += [prefix + name for name in sorted(set(given) - expected) if strict]
        if expected - set(given):
            return
        try:
            tensors = {name: given[name] for name in expected}
            self._pack(IntegerLayer.from_tensors(self.metadata, tensors))
        except ValueError as error:
            error_msgs.append(f"{prefix or 'packed layer'}: {error}")

    def __getstate__(self) -> dict[str, Any]:
        """Without addresses and the library, which another process cannot use."""
        state = dict(self.__dict__)
        for name in ("_library", "_call", "_source"):
            del state[name]
        return {**state, "_wide": self._library.wide}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Repacks when this machine's kernels need another form."""
        wide = state.pop("_wide")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._library = native.library()
        self._forget()
        if wide != self._library.wide or (self._pair and not self._library.pairs):
            self._pack(self.integer_layer())
