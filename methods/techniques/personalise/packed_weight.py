"""A frozen weight that is held as packed codes and made a float only while it is used."""

import threading
from functools import lru_cache

import torch
from torch import Tensor, nn

from quantarena.methods.core.affine import quantize
from quantarena.methods.core.kernels.formats import code_range, pack_codes, unpack_codes
from quantarena.methods.core.packed.nodes.weight_only import WeightOnlyLayer
from quantarena.methods.core.quantizers.layer_geometry import as_image_weight
from quantarena.methods.core.quantizers.range_search import RangeSearch


class PackedWeight(nn.Module):
    """Codes of a weight at their bits, with the ranges that they are under; nothing of it learns.

    Attributes:
        shape: of the weight, (O, K / groups, ...).
        bits: width of a code.
        codes: canonical code stream, see ``formats.pack_codes``.
        scale: (O, G), one for each K-group.
        zero: (O, G) int16, in the offset domain.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(
        self, codes: Tensor, bits: int, shape: torch.Size, scale: Tensor, zero: Tensor
    ) -> None:
        super().__init__()
        self.bits, self.shape = bits, shape
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale.detach().float().contiguous())
        self.register_buffer("zero", zero.to(torch.int16).contiguous())

    @classmethod
    @torch.no_grad()
    def rounded(cls, weight: Tensor, bits: int, search: RangeSearch) -> "PackedWeight":
        """Round a weight to the nearest codes, one range for each output channel."""
        params = search(weight, bits, axis=0, symmetric=False)
        low, _ = code_range(bits)
        codes = (quantize(weight, params).to(torch.int16) + low).to(torch.int8)
        rows = weight.shape[0]
        zero = (params.zero_point + low).reshape(rows, -1)
        return cls(
            pack_codes(codes, bits), bits, weight.shape, params.scale.reshape(rows, -1), zero
        )

    @classmethod
    def of(cls, layer: WeightOnlyLayer, shape: torch.Size) -> "PackedWeight":
        """The weight of a packed layer, whose codes are shared.

        Args:
            layer: the packed layer.
            shape: of its weight, without the height that a 1-d convolution got.
        """
        bits = int(layer.metadata["weight_bits"])
        return cls(layer.codes, bits, shape, layer.weight_scale, layer.weight_zero)

    def value(self) -> Tensor:
        """The float weight, in memory that the next call of any weight writes over."""
        flat = _decoded(self.codes, self.bits, self.shape.numel())
        rows = flat.view(self.shape[0], self.scale.shape[1], -1)
        # in place: one buffer of the weight's size is all that a layer takes
        rows.sub_(self.zero.unsqueeze(2)).mul_(self.scale.unsqueeze(2))
        return flat.view(self.shape)

    def image_codes(self) -> Tensor:
        """The codes as packed layers take them, int8; of a 1-d convolution as an image's."""
        return as_image_weight(unpack_codes(self.codes, self.bits, self.shape))


class _Scratch(threading.local):
    """Memory in which weights are decoded, as large as the largest one so far.

    A new buffer for each layer would leave holes in the heap, which then grows to several times
    what a pass needs. One for each thread, as gradients may be computed in another.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def take(self, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A buffer of so many values; one for each type and device."""
        held = self._held.get((dtype, device))
        if held is None or held.numel() < count:
            held = self._held[dtype, device] = torch.empty(count, dtype=dtype, device=device)
        return held[:count]


_scratch = _Scratch()


_WORDS = {1: torch.float32, 2: torch.int64, 4: torch.complex128}
"""A type as wide as so many floats."""


def _decoded(stream: Tensor, bits: int, count: int) -> Tensor:
    """Codes of the offset domain as float32, (count,), in scratch memory."""
    if 8 % bits:
        flat = _scratch.take(count, torch.float32, stream.device)
        return flat.copy_(unpack_codes(stream, bits, (count,)))
    # a byte holds whole codes, so a table of all bytes gives them without wide integers
    each, table = 8 // bits, _table(bits, stream.device)
    places = _scratch.take(len(stream), torch.int32, stream.device).copy_(stream)
    values = _scratch.take(len(stream) * each, torch.float32, stream.device)
    word = _WORDS.get(each)
    if word is None:
        torch.index_select(table, 0, places, out=values.view(-1, each))
    else:  # what a byte holds moves as one number, four times as fast as a row of floats
        torch.index_select(table.view(word)[:, 0], 0, places, out=values.view(word))
    return values[:count]


@lru_cache(maxsize=8)
def _table(bits: int, device: torch.device) -> Tensor:
    """The codes in each byte, (256, 8 / bits) float32."""
    stream = torch.arange(256, dtype=torch.uint8)
    return unpack_codes(stream, bits, (256, 8 // bits)).float().to(device)
