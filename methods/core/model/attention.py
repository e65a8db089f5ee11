"""Quantized attention products: the two products and the softmax of one module.

Queries, keys, values and the softmax's output each have a quantizer or stay in floating point. All
four are seen as (samples, heads, tokens, width), so a range for each head is a group along axis 1
and one for each sampler call a bank. ``attention_hooks`` puts this into a network.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from quantarena.methods.core.bits import FP_WIDTH, AttentionBits
from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.errors import BrokenModel, Unsupported
from quantarena.methods.core.model.attention_mode import Fake, Mode
from quantarena.methods.core.model.attention_products import (
    OperandCodes,
    code_product,
    log_product,
)
from quantarena.methods.core.network import SHORT
from quantarena.methods.core.quantizers.activation import ActQuantizer
from quantarena.methods.core.quantizers.log import LogQuantizer
from quantarena.methods.core.quantizers.part import under
from quantarena.methods.core.trace.network import AttentionInfo

OPERANDS = ("query", "key", "value", "softmax")
"""Names of the operands that can have a quantizer."""


class QuantAttention(nn.Module):
    """Quantizers of one module's attention products, and the products.

    Args:
        info: the products, as the traced pass saw them.
        bits: widths of the operands.
        clock: the clock of the model.

    Attributes:
        excluded: leading key tokens whose scores and key rows stay in floating point, outside the
            softmax's range (DGQ's start token).
        mode: the present way to compute the products.
    """

    def __init__(self, info: AttentionInfo, bits: AttentionBits, clock: CallClock) -> None:
        super().__init__()
        self.info, self.bits = info, bits
        self.quantizers = nn.ModuleDict(
            {
                name: ActQuantizer(getattr(bits, name), clock)
                for name in OPERANDS
                if getattr(bits, name) != FP_WIDTH
            }
        )
        self.excluded = 0
        self.mode: Mode = Fake()

    @contextmanager
    def using(self, mode: Mode) -> Iterator[None]:
        """Compute in this mode inside the block."""
        before, self.mode = self.mode, mode
        try:
            yield
        finally:
            self.mode = before

    def static(self, operand: str) -> ActQuantizer | None:
        """The operand's quantizer if its range is found before it runs, else None."""
        quantizer = dict(self.quantizers.items()).get(operand)
        return quantizer if isinstance(quantizer, ActQuantizer) else None

    def use_log(
        self, *, per_octave: Literal[1, 2] = 1, axes: Literal[1, 2] = 1, zero_code: bool = False
    ) -> None:
        """Quantize the softmax's output logarithmically, at the width that it has.

        Raises:
            ValueError: it stays in floating point.
        """
        if "softmax" not in self.quantizers:
            raise ValueError(f"the softmax of {self.info.name} stays in floating point")
        self.quantizers["softmax"] = LogQuantizer(
            self.bits.softmax, per_octave=per_octave, axes=axes, zero_code=zero_code
        )

    def exclude_keys(self, count: int) -> None:
        """Leave the scores and key rows of the first ``count`` keys in floating point."""
        self.excluded = count

    def unset(self) -> list[str]:
        """The operands that have no range yet."""
        static = ((name, self.static(name)) for name in OPERANDS)
        return [
            name
            for name, quantizer in static
            if quantizer is not None and quantizer.scale.numel() == 0
        ]

    def observed(self) -> AttentionBits:
        """The widths of the quantizers as they are."""
        widths = {name: quantizer.bits for name, quantizer in self.quantizers.items()}
        return AttentionBits(**widths)  # type: ignore[arg-type]

    def inside(self, operand: str, x: Tensor) -> Tensor:
        """An operand without the excluded tokens: the part that its quantizer sees."""
        if operand == "key":
            return x[..., self.excluded :, :]
        return x[..., self.excluded :] if operand == "softmax" else x

    @property
    def active(self) -> bool:
        """Whether the products differ from the plain ones, or are watched."""
        return self.mode.active and (len(self.quantizers) > 0 or not self.mode.quantizes)

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        """``query @ key^T`` of quantized operands, before any scaling.

        Args:
            query: (B, H, queries, width).
            key: (B, H, keys, width).

        Returns:
            (B, H, queries, keys).
        """
        if query.dtype in SHORT:
            return self.scores(query.float(), key.float()).to(query.dtype)
        if (scores := self.mode.scores(self, query, key)) is not None:
            return scores
        self.mode.show("query", query)
        self.mode.show("key", key)
        outside, rest = key[..., : self.excluded, :], self.inside("key", key)
        left, right = self._operand("query", query), self._operand("key", rest)
        keys = right.transposed if isinstance(right, OperandCodes) else right.mT
        scores = self._product(left, keys)
        if not self.excluded:
            return scores
        return torch.cat([_value(left) @ outside.mT, scores], dim=-1)

    def mix(self, probs: Tensor, value: Tensor) -> Tensor:
        """``probs @ value`` of quantized operands.

        Args:
            probs: (B, H, queries, keys), rows of a softmax.
            value: (B, H, keys, width).

        Returns:
            (B, H, queries, width).
        """
        if value.dtype in SHORT:
            return self.mix(probs.float(), value.float()).to(value.dtype)
        if (mixed := self.mode.mix(self, probs, value)) is not None:
            return mixed
        self.mode.show("softmax", probs)
        self.mode.show("value", value)
        outside, rest = probs[..., : self.excluded], self.inside("softmax", probs)
        right = self._operand("value", value)
        inside = slice(self.excluded, None)
        later = right.rows(inside) if isinstance(right, OperandCodes) else right[..., inside, :]
        softmax = dict(self.quantizers.items()).get("softmax")
        if isinstance(softmax, LogQuantizer) and self._quantizes("softmax"):
            mixed = self._log_product(softmax, rest, later)
        else:
            mixed = self._product(self._operand("softmax", rest), later)
        if not self.excluded:
            return mixed
        return mixed + outside @ _value(right)[..., : self.excluded, :]

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Quantized attention with the arguments of ``scaled_dot_product_attention``.

        Raises:
            Unsupported: dropout.
        """
        if dropout_p:
            raise Unsupported(f"{self.info.name}: attention with dropout cannot be quantized")
        given = query.dtype
        if given in SHORT:
            query, key, value = query.float(), key.float(), value.float()
            if attn_mask is not None and attn_mask.is_floating_point():
                attn_mask = attn_mask.float()
        if enable_gqa:
            repeat = query.shape[-3] // key.shape[-3]
            key, value = (x.repeat_interleave(repeat, dim=-3) for x in (key, value))
        shape = (*query.shape[:-1], value.shape[-1])
        query, key, value = (self.by_head(x) for x in (query, key, value))
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        if is_causal:
            attn_mask = query.new_ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
        attended = self.mode.attend(self, query, key, value, attn_mask, factor)
        if attended is not None:
            return attended.reshape(shape).to(given)
        scores = self.scores(query, key) * factor
        if attn_mask is not None:
            scores = _masked(scores, attn_mask)
        # a row without any key to see is zero, as in torch
        dead = torch.isneginf(scores).all(dim=-1, keepdim=True)
        probs = torch.softmax(scores.masked_fill(dead, 0.0), dim=-1).masked_fill(dead, 0.0)
        return self.mix(probs, value).reshape(shape).to(given)

    def by_head(self, x: Tensor) -> Tensor:
        """``x`` as (samples, heads, rows, columns), a view where heads lay in the batch.

        Raises:
            Unsupported: it has other axes than these.
        """
        if x.dim() == 4:
            return x
        if x.dim() != 3 or x.shape[0] % self.info.heads:
            raise Unsupported(
                f"{self.info.name}: attention of {self.info.heads} heads on a tensor of shape "
                f"{tuple(x.shape)} cannot be quantized"
            )
        return x.reshape(-1, self.info.heads, *x.shape[1:])

    def settle(self) -> float:
        """Stop learning and round zero points to integers; returns the largest move."""
        static = (self.static(name) for name in OPERANDS)
        return max((q.settle() for q in static if q is not None), default=0.0)

    def state(self) -> dict[str, Tensor]:
        """Everything that quantization decided, structure and widths included."""
        widths = torch.tensor([getattr(self.bits, name) for name in OPERANDS])
        return {"widths": widths, **self.ranges()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take what ``state`` gave.

        Raises:
            BrokenModel: other widths, or shapes that do not fit.
            KeyError: something is missing.
        """
        bits = AttentionBits(*state["widths"].tolist())
        if bits != self.bits:
            raise BrokenModel(f"it has {bits} in the state, {self.bits} in the model")
        self.load_ranges(state)

    def ranges(self) -> dict[str, Tensor]:
        """The ranges of all operands and the excluded tokens, without the widths."""
        tensors = {"excluded": torch.tensor(self.excluded)}
        for name, quantizer in self.quantizers.items():
            assert isinstance(quantizer, ActQuantizer | LogQuantizer)
            tensors |= {f"{name}/{n}": t for n, t in quantizer.state().items()}
        return {name: tensor.detach() for name, tensor in tensors.items()}

    def load_ranges(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what ``ranges`` gave at the same widths.

        Raises:
            BrokenModel: shapes do not fit.
            KeyError: something is missing.
        """
        self.excluded = int(tensors["excluded"])
        for name, quantizer in self.quantizers.items():
            ranges = under(tensors, f"{name}/")
            if "log" in ranges:
                self.quantizers[name] = LogQuantizer.load(self.bits.softmax, ranges)
            elif isinstance(quantizer, ActQuantizer):
                quantizer.load(ranges)

    def _quantizes(self, name: str) -> bool:
        return self.mode.quantizes and name in self.quantizers

    def _operand(self, name: str, x: Tensor) -> OperandCodes | Tensor:
        quantizer = self.static(name)
        return (
            x if quantizer is None or not self._quantizes(name) else OperandCodes.of(quantizer, x)
        )

    def _product(self, left: OperandCodes | Tensor, right: OperandCodes | Tensor) -> Tensor:
        if isinstance(left, OperandCodes) and isinstance(right, OperandCodes):
            return code_product(left, right, integer=self.mode.integer)
        return _value(left) @ _value(right)

    def _log_product(
        self, softmax: LogQuantizer, probs: Tensor, value: OperandCodes | Tensor
    ) -> Tensor:
        if self.mode.integer and isinstance(value, OperandCodes):
            return log_product(*softmax.codes(probs), value)
        result: Tensor = softmax(probs) @ _value(value)
        return result


def _value(operand: OperandCodes | Tensor) -> Tensor:
    return operand.value() if isinstance(operand, OperandCodes) else operand


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, -torch.inf)
    return scores + mask
