"""The layer that peft puts around a packed one: its output, plus that of the active adapters.

This module imports peft, so it is imported only where adapters are.
"""

import math
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from quantarena.bench.adapters.branch import Factors, geometry_of, with_branch, without_branch
from quantarena.bench.errors import UserError
from quantarena.methods.core.changes import changes
from quantarena.methods.core.packed.nodes.fusion import plain
from quantarena.methods.core.packed.nodes.node import Node
from quantarena.methods.core.quantizers.layer_geometry import LayerGeometry

_CONV = {1: nn.Conv1d, 2: nn.Conv2d}
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Ways to start an adapter that leave the weight beside it as it is."""


class PackedLora(nn.Module, LoraLayer):  # type: ignore[misc]
    """Adapters beside a packed layer: ``packed(x) + sum_i scale_i * B_i(A_i(x))``.

    Fused, the active ones become a branch of the packed layer itself, which one native call
    computes with it; codes cannot take up what is added to a weight.

    Attributes:
        base_layer: the packed layer.
    """

    base_layer: Node
    # What peft's own class fills in. It comes without types, and a module's attributes are tensors
    # or modules to a type checker.
    in_features: int
    out_features: int
    r: dict[str, int]
    lora_alpha: dict[str, float]
    scaling: dict[str, float]
    lora_bias: dict[str, bool]
    use_rslora: dict[str, bool]
    use_dora: dict[str, bool]
    lora_dropout: Any
    lora_A: Any
    lora_B: Any
    active_adapters: list[str]
    merged_adapters: list[str]
    disable_adapters: bool
    merged: bool
    reset_lora_parameters: Any
    set_adapter: Any
    _move_adapter_to_device_of_base_layer: Any

    def __init__(
        self,
        base_layer: Node,
        adapter_name: str,
        config: Any,
        r: int = 0,
        lora_alpha: float = 1,
        **kwargs: Any,
    ) -> None:
        """Takes what peft gives its own layers.

        Raises:
            UserError: the adapter needs float weights; the line says which kind it is.
        """
        super().__init__()
        self._fused: list[Factors] = []
        LoraLayer.__init__(self, base_layer)
        self._active_adapter = adapter_name
        self.train(base_layer.training)
        where = str(kwargs.get("target_name", ""))
        self.update_layer(adapter_name, r, lora_alpha, config, target_name=where)

    def _get_in_out_features(self, module: Node) -> tuple[int, int]:
        return module.weight_shape[1] * geometry_of(module).groups, module.weight_shape[0]

    def update_layer(
        self, adapter_name: str, r: int, lora_alpha: float, config: Any, **kwargs: Any
    ) -> None:
        """Add an adapter; see ``LoraLayer.update_layer``."""
        where = str(kwargs.get("target_name", "")) or "a packed layer"
        require_plain(config, where)
        geometry = geometry_of(self.base_layer)
        if r <= 0 or r % geometry.groups:
            raise UserError(
                f"{where} cannot hold an adapter of rank {r}: a rank is at least 1, and of a "
                f"convolution in {geometry.groups} groups a multiple of them"
            )
        self.r[adapter_name], self.lora_alpha[adapter_name] = r, lora_alpha
        drop = config.lora_dropout
        self.lora_dropout[adapter_name] = nn.Dropout(drop) if drop else nn.Identity()
        first, second = self._factors(r, geometry, bias=config.lora_bias)
        self.lora_A[adapter_name], self.lora_B[adapter_name] = first, second
        self.lora_bias[adapter_name] = config.lora_bias
        self.use_rslora[adapter_name], self.use_dora[adapter_name] = config.use_rslora, False
        self.scaling[adapter_name] = lora_alpha / (math.sqrt(r) if config.use_rslora else r)
        if config.init_lora_weights:
            self.reset_lora_parameters(adapter_name, True)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.train(self.training)  # a dropout that was made now
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
        changes.note()

    def _factors(
        self, rank: int, geometry: LayerGeometry, *, bias: bool
    ) -> tuple[nn.Module, nn.Module]:
        """``A`` and ``B`` as peft makes them for float layers, so that files fit both."""
        if not geometry.is_conv:
            first = nn.Linear(self.in_features, rank, bias=False)
            return first, nn.Linear(rank, self.out_features, bias=bias)
        kind = _CONV[geometry.spatial]
        kernel: Any = self.base_layer.weight_shape[2:]
        along: dict[str, Any] = {
            "stride": geometry.stride,
            "padding": geometry.padding,
            "dilation": geometry.dilation,
        }
        down = kind(self.in_features, rank, kernel, bias=False, **along)
        return down, kind(rank, self.out_features, 1, groups=geometry.groups, bias=bias)

    # ---- running ---------------------------------------------------------------------------

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The output with the adapters that act; see ``Node.forward``."""
        x = plain(x)
        if self.disable_adapters and self.merged:
            self.unmerge()
        y = self.base_layer.value(x)
        for name in [] if self.disable_adapters or self.merged else self.active_adapters:
            if name in self.lora_A:
                first, second = self.lora_A[name], self.lora_B[name]
                given = self.lora_dropout[name](x.to(first.weight.dtype))
                y = (y + second(first(given)) * self.scaling[name]).to(y.dtype)
        # float32 alone is watched, as where there is no adapter
        return self.base_layer.watched(y) if y.dtype is torch.float32 else y

    # ---- fused -----------------------------------------------------------------------------

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Make adapters a branch of the packed layer, at the scale that they have now.

        Args:
            safe_merge: refuse factors that hold NaN or infinity.
            adapter_names: which ones; by default those that are active.

        Raises:
            UserError: a convolution in groups, or an adapter with a bias, which no branch has.
            ValueError: see ``safe_merge``.
        """
        names = [n for n in check_adapters_to_merge(self, adapter_names) if n in self.lora_A]
        if not names:
            return
        added = [self.factors(name) for name in names]
        for name, pair in zip(names, added, strict=True):
            if safe_merge and not all(bool(torch.isfinite(factor).all()) for factor in pair):
                raise ValueError(f"NaNs detected in the adapter {name}: it seems to be broken")
        self.base_layer = with_branch(self.base_layer, added)
        self._fused += added
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Take the branch off again; the packed layer computes the same bits as before."""
        if self._fused:
            rank = sum(len(down) for down, _ in self._fused)
            self.base_layer = without_branch(self.base_layer, rank)
        self._fused, self.merged_adapters = [], []

    def factors(self, name: str) -> Factors:
        """An adapter as a branch, its scale in the second factor.

        Raises:
            UserError: no branch can stand for it.
        """
        first, second = self.lora_A[name], self.lora_B[name]
        if geometry_of(self.base_layer).groups > 1:
            raise UserError(f"adapter {name} is on a convolution in groups: do not fuse it")
        if second.bias is not None:
            raise UserError(f"adapter {name} has a bias (lora_bias): do not fuse it")
        up = second.weight.detach().float().flatten(1) * self.scaling[name]
        return first.weight.detach().float().clone(), up

    # ---- scales ----------------------------------------------------------------------------

    def scale_layer(self, scale: float) -> None:
        """See ``LoraLayer``; keeps the scales, for ``unscale_layer`` to restore them exactly."""
        self._unscaled: dict[tuple[str, float], float]
        self._unscaled = {(name, scale): value for name, value in self.scaling.items()}
        super().scale_layer(scale)

    def unscale_layer(self, scale: float | None = None) -> None:
        """See ``LoraLayer``; a quotient of a product may differ from the number in its last bit."""
        before = self.__dict__.pop("_unscaled", {})
        kept = {n: before.get((n, scale)) for n in self.scaling if scale is not None}
        super().unscale_layer(scale)
        for name, value in kept.items():
            if value is not None and math.isclose(value, self.scaling[name], rel_tol=1e-12):
                self.scaling[name] = value

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether peft may make a LoRA of another kind of adapter here: these are LoRAs."""
        return True


def require_plain(config: Any, where: str) -> None:
    """Refuse kinds of LoRA that read or change the weight beside them.

    Args:
        config: of the adapter, a ``LoraConfig``.
        where: the layer, for messages.

    Raises:
        UserError: one line that names the kind.
    """
    kind = ""
    if getattr(config, "use_dora", False):
        kind = "DoRA"
    elif config.init_lora_weights not in _PLAIN_STARTS:
        kind = f"init_lora_weights={config.init_lora_weights!r}"
    else:
        fields = ("use_qalora", "use_bdlora", "arrow_config", "alora_invocation_tokens")
        more = ("kasa_config", "velora_config", "monteclora_config", "target_parameters")
        kind = next((f for f in (*fields, *more) if getattr(config, f, None)), "")
    if kind:
        raise UserError(
            f"{where} is packed, and {kind} reads or changes float weights: plain LoRA works"
        )
