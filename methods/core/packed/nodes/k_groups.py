"""A layer whose input channels have groups with ranges of their own, in one native call.

Channels are sorted by group once, and panels hold them one group after the other. The kernels put
the codes of the input in that order as they make them, and scale the sums of each group in
registers:

    y[n] = sum_g sx[g] * sw[g, n] * sum_k (a[k] - zx[g]) * (c[n, k] - zw[n]) + b[n]
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from quantarena.methods.core.kernels import native
from quantarena.methods.core.kernels.custom_op import traced
from quantarena.methods.core.kernels.formats import IntegerLayer
from quantarena.methods.core.kernels.groups.call import Branch, CallCache, GroupCall
from quantarena.methods.core.kernels.groups.custom_op import call_of, grouped_layer
from quantarena.methods.core.kernels.groups.layout import aligned_order, group_chunks
from quantarena.methods.core.kernels.layout import operands, panel_codes, unpack_panels
from quantarena.methods.core.packed.nodes.channel_sum import SplitPackedLayer
from quantarena.methods.core.packed.nodes.leaf import PackedLayer, PanelLayer
from quantarena.methods.core.packed.nodes.node import Document, Node

_SHARED = ("kind", "weight_bits", "act_bits", "act_shape", "has_in_mult", "groups")
_MOST_CHANNELS = 1 << 16


class GroupedLayer(PanelLayer):
    """The layers of a ``SplitPackedLayer`` as one, with its description and ``state_dict``.

    Attributes:
        metadata: of the whole layer, see ``IntegerLayer.metadata``.
        order: (K,) channel of the input that each channel of the weights is, the bits of a uint16;
            None where they are in order.
        edge: (G + 1,) int32, first channel of each group.
        weight_scale: (O,), or (G, O) where groups differ.
        act_scale: (S, G); act_zero likewise, int32.
        in_mult: (K,) in the order of the input, or None.
        writes_last: see ``PackedLayer``.
    """

    form: ClassVar[str] = "split"
    writes_last: bool = False
    panels: Tensor
    chunk_start: Tensor
    chunk_units: Tensor
    order: Tensor | None
    edge: Tensor
    weight_scale: Tensor
    weight_zero: Tensor | None
    act_scale: Tensor
    act_zero: Tensor
    in_mult: Tensor | None
    bias: Tensor | None

    def __init__(self, split: SplitPackedLayer) -> None:
        """Packs the parts of a split layer anew.

        Args:
            split: see :func:`one_call`.
        """
        super().__init__()
        leaves = [part for part in split.parts if isinstance(part, PackedLayer)]
        self._library = leaves[0].library
        self._pack([leaf.integer_layer() for leaf in leaves], split.order)

    def _pack(self, layers: Sequence[IntegerLayer], order: Tensor | None) -> None:
        places = aligned_order([layer.in_features for layer in layers])
        channels = torch.arange(sum(layer.in_features for layer in layers))
        channels = channels if order is None else order.long()
        runs = torch.split(channels, [layer.in_features for layer in layers])
        channels = torch.cat([runs[place] for place in places])
        bias, layers = layers[0].bias, [layers[place] for place in places]
        first, edges = layers[0], [0, *accumulate(layer.in_features for layer in layers)]
        codes = torch.cat([layer.weight_codes for layer in layers], dim=1)
        chunks = group_chunks(
            operands(codes, first.weight_zero, first.weight_bits),
            edges,
            first.act_bits,
            self._library.wide,
        )
        self._pair = chunks.pair
        self.metadata = {**first.metadata(), "weight_shape": list(codes.shape)}
        self.entries = first.act_scale.numel() if first.act_scale.dim() else 0
        scales = torch.stack([layer.weight_scale for layer in layers])
        if bool((scales == scales[0]).all()):
            scales = scales[0].clone()
        mult = None
        if first.in_mult is not None:
            factors = [layer.in_mult for layer in layers if layer.in_mult is not None]
            mult = torch.empty(len(channels)).index_put_((channels,), torch.cat(factors))
        buffers = {
            "panels": panel_codes(codes, first.weight_bits, 1, chunks.pair),
            "chunk_start": chunks.start,
            "chunk_units": chunks.units,
            "order": None if in_order(channels) else channels.to(torch.int32).to(torch.int16),
            "edge": torch.tensor(edges, dtype=torch.int32),
            "weight_scale": scales,
            "weight_zero": first.weight_zero if bool(first.weight_zero.any()) else None,
            "act_scale": torch.stack([layer.act_scale.reshape(-1) for layer in layers], 1),
            "act_zero": torch.stack([layer.act_zero.reshape(-1) for layer in layers], 1),
            "in_mult": mult,
            "bias": bias,
        }
        for name, value in buffers.items():
            self.register_buffer(name, value)
        self._calls = CallCache()

    def call(self, branch: Branch | None = None) -> GroupCall:
        """The native call, with a float branch where one is given."""
        return self._calls.get((self.panels, branch), lambda: self._new_call(branch))

    def _new_call(self, branch: Branch | None) -> GroupCall:
        return call_of(self._library, self.metadata, self._pair, dict(self.named_buffers()), branch)

    def run(self, x: Tensor, step: int) -> Tensor:
        """See ``Node.forward``."""
        if traced(x):
            return grouped_layer(
                x, dict(self._buffers), self.metadata, self._pair, step, last=self.writes_last
            )
        return self.call()(x, step, last=self.writes_last)

    @property
    def in_place(self) -> bool:
        """See ``Node``; a compiler wants sums of operators."""
        return not torch.compiler.is_compiling()

    def add_to(self, y: Tensor, x: Tensor, step: int | None = None) -> Tensor:
        """See ``PackedLayer.add_to``."""
        entry = self._step if step is None else step
        return self.call()(x, entry, y, native.ACCUMULATE, last=self.writes_last)

    def accumulators(self, x: Tensor, step: int | None = None) -> Tensor:
        """The integers T of each group, int32 (G, ...) before G outputs are scaled and added."""
        entry = self._step if step is None else step
        return self.call()(x, entry, None, native.INTEGER, last=self.writes_last)

    # ---- parts -----------------------------------------------------------------------------

    def layers(self) -> list[IntegerLayer]:
        """The layer of each group, in the order of the weights; the first has the bias."""
        meta, channels = self.metadata, self.channels
        codes = unpack_panels(self.panels, self.weight_shape, meta["weight_bits"], 1, self._pair)
        table, layers = tuple(meta["act_shape"]), []
        zero = self.weight_zero
        if zero is None:
            zero = torch.zeros(codes.shape[0], dtype=torch.int32)
        for group, (low, high) in enumerate(pairwise(self.edge.tolist())):
            mult = self.in_mult
            scale = self.weight_scale
            layers.append(
                IntegerLayer(
                    kind=meta["kind"],
                    weight_codes=codes[:, low:high],
                    weight_bits=meta["weight_bits"],
                    weight_scale=scale if scale.dim() == 1 else scale[group],
                    weight_zero=zero,
                    act_bits=meta["act_bits"],
                    act_scale=self.act_scale[:, group].reshape(table),
                    act_zero=self.act_zero[:, group].reshape(table),
                    in_mult=None if mult is None else mult[channels[low:high]],
                    bias=None if group else self.bias,
                    stride=tuple(meta["stride"]),
                    padding=tuple(meta["padding"]),
                    dilation=tuple(meta["dilation"]),
                )
            )
        return layers

    @property
    def channels(self) -> Tensor:
        """(K,) int64, channel of the input that each channel of the weights is."""
        if self.order is None:
            return torch.arange(self.weight_shape[1])
        return self.order.long() % _MOST_CHANNELS

    def split(self) -> SplitPackedLayer:
        """The same as a sum of layers, one for each group."""
        order = None if self.order is None else self.channels
        return SplitPackedLayer(self.layers(), self._library, order=order)

    # ---- state --------------------------------------------------------------

    def describe(self) -> Document:
        """See ``Node``; the description of :meth:`split`."""
        metas = [layer.metadata() for layer in self.layers()]
        return {
            "form": self.form,
            "ordered": self.order is not None,
            "parts": [{"form": PackedLayer.form, "meta": meta} for meta in metas],
        }

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        if self.order is not None:
            destination[f"{prefix}order"] = self.channels.to(torch.int32)
        for i, layer in enumerate(self.layers()):
            for name, tensor in layer.tensors().items():
                destination[f"{prefix}parts.{i}.{name}"] = tensor

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
        expected: dict[str, Tensor] = {}
        self._save_to_state_dict(expected, "", keep_vars=False)
        given = {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}
        missing = sorted(set(expected) - set(given))
        missing_keys += [prefix + name for name in missing]
        unexpected_keys += [prefix + name for name in sorted(set(given) - set(expected)) if strict]
        if missing:
            return
        try:
            parts = [
                IntegerLayer.from_tensors(
                    layer.metadata(), {n: given[f"parts.{i}.{n}"] for n in layer.tensors()}
                )
                for i, layer in enumerate(self.layers())
            ]
            if not _alike(parts):
                raise ValueError("its groups differ in zero points of weights")
            self._pack(parts, given.get("order"))
        except ValueError as error:
            error_msgs.append(f"{prefix or 'grouped layer'}: {error}")

    def __getstate__(self) -> dict[str, Any]:
        """Without addresses and the library, which another process cannot use."""
        state = {name: value for name, value in self.__dict__.items() if name != "_library"}
        return {**state, "_wide": self._library.wide}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Repacks when this machine's kernels need another form."""
        wide = state.pop("_wide")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._library = native.library()
        if wide != self._library.wide or (self._pair and not self._library.pairs):
            self._pack(self.layers(), self.channels)


def one_call(split: SplitPackedLayer) -> Node:
    """A split layer as one that a single native call computes, where there is one.

    Args:
        split: parts that are alike in all but channels, ranges and scales become one.
    """
    leaves = [part for part in split.parts if type(part) is PackedLayer]
    if len(leaves) < 2 or len(leaves) < len(split.parts):
        return split
    library = leaves[0].library
    if library.run_groups is None or any(leaf.library is not library for leaf in leaves):
        return split
    if not _alike([leaf.integer_layer() for leaf in leaves]):
        return split
    grouped = GroupedLayer(split)
    grouped.clock, grouped.follower = split.clock, split.follower
    return grouped


def in_order(channels: Tensor) -> bool:
    """Whether channels are those of the input as it comes."""
    return torch.equal(channels, torch.arange(len(channels)))


def _alike(layers: Sequence[IntegerLayer]) -> bool:
    """Whether layers can be groups of one."""
    first, channels = layers[0], sum(layer.in_features for layer in layers)
    traits = [{name: layer.metadata()[name] for name in _SHARED} for layer in layers]
    zeros = all(torch.equal(layer.weight_zero, first.weight_zero) for layer in layers)
    plain = all(layer.groups == 1 and layer.bias is None for layer in layers[1:])
    return (
        zeros
        and plain
        and channels < _MOST_CHANNELS
        and all(trait == traits[0] for trait in traits)
    )
