"""Quantized attention products: what happens around ``softmax(q k) v`` of one module.

Queries, keys, values and the softmax's output each have a quantizer or stay in floating point. All
four are seen as (samples, heads, tokens, width), so a range for each head is a group along axis 1
and one for each sampler call a bank. ``attention_hooks`` puts this into a network.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from quantarena.methods.core.bits import FP_WIDTH, AttentionBits
from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.model.attention_products import Codes, code_product, log_product
from quantarena.methods.core.packed.nodes import attention as native_products
from quantarena.methods.core.quantizers.activation import ActQuantizer
from quantarena.methods.core.quantizers.log import LogQuantizer
from quantarena.methods.core.trace.network import AttentionInfo

OPERANDS = ("query", "key", "value", "softmax")
"""What has a quantizer."""
Watch = Callable[[str, Tensor], None]
"""Called with an operand's name and its values, (samples, heads, rows, columns)."""


class QuantAttention(nn.Module):
    """Quantizers of one module's attention products, and the products.

    Args:
        info: the products, as the traced pass saw them.
        bits: widths of the operands.
        clock: of the model.

    Attributes:
        excluded: leading key tokens whose scores and key rows stay in floating point, outside the
            softmax's range (DGQ's start token).
        use_act_quantizer: whether operands are quantized.
        integer: sum up integers, log codes by shifts, where operands have codes on both sides:
            the slow oracle of the float sums, without gradient.
        native: compute with the integer kernels where they apply (``kernels.attention``); elsewhere
            the float sums stay.
        watch: sees every operand while set; nothing is quantized then.
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
        self.use_act_quantizer, self.integer, self.native = True, False, False
        self.watch: Watch | None = None

    def static(self, operand: str) -> ActQuantizer | None:
        """The operand's quantizer, where its range is found before it runs."""
        found = dict(self.quantizers.items()).get(operand)
        return found if isinstance(found, ActQuantizer) else None

    def use_log(
        self, *, per_octave: Literal[1, 2] = 1, kept: Literal[1, 2] = 1, zero_code: bool = False
    ) -> None:
        """Quantize the softmax's output logarithmically, at the width that it has.

        Raises:
            ValueError: it stays in floating point.
        """
        if "softmax" not in self.quantizers:
            raise ValueError(f"the softmax of {self.info.name} stays in floating point")
        self.quantizers["softmax"] = LogQuantizer(
            self.bits.softmax, per_octave=per_octave, kept=kept, zero_code=zero_code
        )

    def unset(self) -> list[str]:
        """Operands whose range nobody has found yet."""
        static = ((name, self.static(name)) for name in OPERANDS)
        return [
            name
            for name, quantizer in static
            if quantizer is not None and quantizer.scale.numel() == 0
        ]

    def observed(self) -> AttentionBits:
        """The widths that its quantizers have."""
        found = {name: quantizer.bits for name, quantizer in self.quantizers.items()}
        return AttentionBits(**found)  # type: ignore[arg-type]

    def inside(self, operand: str, x: Tensor) -> Tensor:
        """The part of an operand that its quantizer sees: without the excluded tokens."""
        if operand == "key":
            return x[..., self.excluded :, :]
        return x[..., self.excluded :] if operand == "softmax" else x

    @property
    def active(self) -> bool:
        """Whether the products differ from the plain ones, or are watched."""
        return self.watch is not None or (self.use_act_quantizer and len(self.quantizers) > 0)

    @property
    def products(self) -> native_products.Products | None:
        """What the kernels are to compute with; None where they are not, or an operand has none."""
        idle = self.integer or self.watch is not None or not self.use_act_quantizer
        return None if idle or not self.native else self.for_kernels()

    def for_kernels(self) -> native_products.Products | None:
        """The quantizers as the kernels take them; None where an operand has none."""
        found = dict(self.quantizers.items())
        static = [q for q in map(found.get, OPERANDS[:3]) if isinstance(q, ActQuantizer)]
        softmax = found.get("softmax")
        if len(static) < 3 or not isinstance(softmax, ActQuantizer | LogQuantizer):
            return None
        query, key, value = static
        return native_products.Products(query, key, value, softmax, self.excluded)

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        """``query @ key^T`` of quantized operands, before any scaling.

        Args:
            query: (B, H, queries, width).
            key: (B, H, keys, width).

        Returns:
            (B, H, queries, keys).
        """
        if (products := self.products) is not None:
            native = native_products.scores(products, query, key)
            if native is not None:
                return native
        self._show(query=query, key=key)
        outside, rest = key[..., : self.excluded, :], self.inside("key", key)
        left, right = self._operand("query", query), self._operand("key", rest)
        found = self._product(left, right.transposed if isinstance(right, Codes) else right.mT)
        if not self.excluded:
            return found
        return torch.cat([_value(left) @ outside.mT, found], dim=-1)

    def mix(self, probs: Tensor, value: Tensor) -> Tensor:
        """``probs @ value`` of quantized operands.

        Args:
            probs: (B, H, queries, keys), rows of a softmax.
            value: (B, H, keys, width).

        Returns:
            (B, H, queries, width).
        """
        if (products := self.products) is not None:
            native = native_products.mix(products, probs, value)
            if native is not None:
                return native
        self._show(softmax=probs, value=value)
        outside, rest = probs[..., : self.excluded], self.inside("softmax", probs)
        right = self._operand("value", value)
        inside = slice(self.excluded, None)
        later = right.rows(inside) if isinstance(right, Codes) else right[..., inside, :]
        softmax = dict(self.quantizers.items()).get("softmax")
        if isinstance(softmax, LogQuantizer) and self._quantizes("softmax"):
            found = self._log_product(softmax, rest, later)
        else:
            found = self._product(self._operand("softmax", rest), later)
        if not self.excluded:
            return found
        return found + outside @ _value(right)[..., : self.excluded, :]

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
        """As ``scaled_dot_product_attention``, same arguments, quantized.

        Raises:
            Unsupported: dropout.
        """
        if dropout_p:
            raise Unsupported(f"{self.info.name}: attention with dropout cannot be quantized")
        if enable_gqa:
            repeat = query.shape[-3] // key.shape[-3]
            key, value = (x.repeat_interleave(repeat, dim=-3) for x in (key, value))
        shape = (*query.shape[:-1], value.shape[-1])
        query, key, value = (self.by_head(x) for x in (query, key, value))
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        if is_causal:
            attn_mask = query.new_ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
        if (products := self.products) is not None:
            native = native_products.attend(products, query, key, value, attn_mask, factor)
            if native is not None:
                return native.reshape(shape)
        scores = self.scores(query, key) * factor
        if attn_mask is not None:
            scores = _masked(scores, attn_mask)
        # a row without any key to see is zero, as in torch
        dead = torch.isneginf(scores).all(dim=-1, keepdim=True)
        probs = torch.softmax(scores.masked_fill(dead, 0.0), dim=-1).masked_fill(dead, 0.0)
        return self.mix(probs, value).reshape(shape).to(query.dtype)

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
        """Stop learning; zero points become integers. Returns how far the farthest moved."""
        static = (self.static(name) for name in OPERANDS)
        return max((q.settle() for q in static if q is not None), default=0.0)

    def state(self) -> dict[str, Tensor]:
        """Everything that quantization decided, structure included."""
        found = {"excluded": torch.tensor(self.excluded)}
        for name, quantizer in self.quantizers.items():
            assert isinstance(quantizer, ActQuantizer | LogQuantizer)
            found |= {f"{name}/{n}": t for n, t in quantizer.state().items()}
        return {name: tensor.detach() for name, tensor in found.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take what ``state`` gave.

        Raises:
            BrokenModel: shapes do not fit.
            KeyError: something is missing.
        """
        self.excluded = int(state["excluded"])
        for name, quantizer in self.quantizers.items():
            kept = {n.partition("/")[2]: t for n, t in state.items() if n.startswith(f"{name}/")}
            if "log" in kept:
                self.quantizers[name] = LogQuantizer.load(self.bits.softmax, kept)
            elif isinstance(quantizer, ActQuantizer):
                quantizer.load(kept)

    def _show(self, **operands: Tensor) -> None:
        if self.watch is not None:
            for name, x in operands.items():
                self.watch(name, x)

    def _quantizes(self, name: str) -> bool:
        return self.watch is None and self.use_act_quantizer and name in self.quantizers

    def _operand(self, name: str, x: Tensor) -> Codes | Tensor:
        quantizer = self.static(name)
        return x if quantizer is None or not self._quantizes(name) else Codes.of(quantizer, x)

    def _product(self, left: Codes | Tensor, right: Codes | Tensor) -> Tensor:
        if isinstance(left, Codes) and isinstance(right, Codes):
            return code_product(left, right, integer=self.integer)
        return _value(left) @ _value(right)

    def _log_product(self, softmax: LogQuantizer, probs: Tensor, value: Codes | Tensor) -> Tensor:
        if self.integer and isinstance(value, Codes):
            return log_product(*softmax.codes(probs), value)
        result: Tensor = softmax(probs) @ _value(value)
        return result


def _value(operand: Codes | Tensor) -> Tensor:
    return operand.value() if isinstance(operand, Codes) else operand


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, -torch.inf)
    return scores + mask
