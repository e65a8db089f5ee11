"""Our quantizer of diffusers: ``from_pretrained`` loads packed networks, or packs float ones.

``registration`` puts these classes into diffusers' tables. Everything that needs a network is
imported late: diffusers imports this module while it is being imported itself.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, ClassVar

import torch
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import Tensor, nn

from quantarena.bench.errors import UserError
from quantarena.bench.ship.registration import register_with_diffusers
from quantarena.methods.core.bits import Bits, parse_bits
from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.model.model import place
from quantarena.methods.core.network import SHORT
from quantarena.methods.core.packed.diffusers_layout import (
    METHOD,
    METHOD_KEY,
    checked,
    is_entry,
    names_of,
    tensor_sha256,
)
from quantarena.methods.core.packed.files import require_version

AT_LOAD = "rtn"
"""The one method that needs nothing but the weights."""


def require_format(dtype: torch.dtype | None) -> None:
    """Refuse a number format that no part of a packed network can be in.

    Raises:
        UserError: it is neither None nor float32, bfloat16 or float16.
    """
    known = (torch.float32, *SHORT)
    if dtype is not None and dtype not in known:
        names = [str(one).removeprefix("torch.") for one in (*known, dtype)]
        raise UserError(f"a packed network computes in {', '.join(names[:-1])}, not in {names[-1]}")


class QuantMethod(StrEnum):
    """diffusers reads ``quant_method.value``."""

    QUANTARENA = METHOD


class QuantArenaConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """How to quantize a network while ``from_pretrained`` loads it, or how one was packed.

    Weights are rounded to nearest, with min-max ranges for each output channel. No picture is drawn
    for calibration: where activations are quantized, their ranges are found at run time, for each
    token of a linear layer and for each image of a convolution. This concerns the linear layers and
    2-d convolutions of the network's repeated blocks; what is outside of these blocks (its input,
    its output, embeddings of time and text) stays in floating point.

    Args:
        bits: widths such as ``w4a8``; ``w4a16`` packs weights alone.
        method: ``rtn``. Other methods need calibration points: ``quantarena quantize`` runs them.

    Raises:
        UserError: unknown bits, or another method; the line says what to run.

    Example:
        >>> from diffusers import DiTTransformer2DModel  # doctest: +SKIP
        >>> from quantarena import QuantArenaConfig  # doctest: +SKIP
        >>> config = QuantArenaConfig(bits="w4a8")  # doctest: +SKIP
        >>> network = DiTTransformer2DModel.from_pretrained(  # doctest: +SKIP
        ...     folder, quantization_config=config
        ... )
    """

    quant_method: QuantMethod

    def __init__(self, bits: str = "w8a8", method: str = AT_LOAD) -> None:
        self.quant_method = QuantMethod.QUANTARENA
        self.bits, self.method = bits, method
        self.entry: dict[str, Any] = {}
        self.widths()

    def widths(self) -> Bits:
        """The bits, checked together with the method.

        Raises:
            UserError: as the class says.
        """
        try:
            bits = parse_bits(self.bits)
        except ValueError as error:
            raise UserError(str(error)) from None
        if self.method != AT_LOAD:
            raise UserError(
                f"{self.method} calibrates on pictures that the pipeline draws, and cannot run "
                f"while a network is loaded: quantarena quantize FOLDER --method {self.method} "
                f"--bits {self.bits} -o OUTPUT, then from_pretrained(OUTPUT)"
            )
        if not 1 <= bits.weight <= 8:
            raise UserError(f"{self.bits} does not pack: weights need 1 to 8 bits")
        return bits

    @property
    def meta(self) -> dict[str, Any]:
        """How a packed network was made."""
        meta = self.entry.get("meta", {})
        return dict(meta) if isinstance(meta, Mapping) else {}

    @classmethod
    def from_dict(
        cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """The configuration of a packed network from its ``config.json``, or that of a request."""
        entry = {name: value for name, value in config_dict.items() if name != METHOD_KEY}
        if "sha256" in entry or "meta" in entry:
            made = cls()
            made.entry = entry
        elif unknown := sorted(entry.keys() - {"bits", "method"}):
            raise BrokenModel(
                f"the quantization_config of {METHOD} has {unknown[0]!r} and describes no packed "
                "network: export it again"
            )
        else:
            made = cls(**entry)
        return (made, kwargs) if return_unused_kwargs else made

    def to_dict(self) -> dict[str, Any]:
        """What ``config.json`` holds."""
        content = self.entry or {"bits": self.bits, "method": self.method}
        return {METHOD_KEY: METHOD, **content}

    def to_diff_dict(self) -> dict[str, Any]:
        """As ``to_dict``."""
        return self.to_dict()

    def __repr__(self) -> str:
        if not self.entry:
            return f"QuantArenaConfig(bits={self.bits!r}, method={self.method!r})"
        known = ", ".join(f"{n}={self.meta[n]!r}" for n in ("method", "bits") if n in self.meta)
        return f"QuantArenaConfig(packed, {known})"


class QuantArenaQuantizer(DiffusersQuantizer):  # type: ignore[misc]
    """Loads a packed network in ``from_pretrained``, or packs one whose weights are floats.

    diffusers builds the network without memory, asks before it loads (``preprocess_model``), hands
    over each tensor, and asks after it loaded (``postprocess_model``). What the packed layers need
    is kept aside as it is in the file, whatever number format was asked for; the rest is loaded by
    diffusers.
    """

    use_keep_in_fp32_modules: ClassVar[bool] = True
    required_packages: ClassVar[list[str]] = [METHOD]

    def __init__(self, quantization_config: QuantArenaConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.pre_quantized: bool
        self.wanted: torch.dtype | None = None
        self._names: set[str] = set()
        self._held: dict[str, Tensor] = {}
        self._digests: dict[str, str] = {}
        self._aside: dict[str, nn.Module] = {}
        self._saved: dict[str, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without what only a load that is going on needs."""
        empty: dict[str, Any] = {
            "_names": set(),
            "_held": {},
            "_digests": {},
            "_aside": {},
            "_saved": None,
        }
        return {**self.__dict__, **empty}

    # ---- before the weights -----------------------------------------------------------------

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse what packed layers cannot do.

        Raises:
            UserError: a device map that is not the CPU, or an impossible number format.
        """
        devices = kwargs.get("device_map") or {}
        named = devices.values() if isinstance(devices, Mapping) else [devices]
        if any(str(device).partition(":")[0] != "cpu" for device in named):
            raise UserError(
                "a packed network is loaded on the CPU: leave device_map out, and move the "
                "pipeline with to() afterwards"
            )
        require_format(kwargs.get("torch_dtype"))

    def update_torch_dtype(self, torch_dtype: torch.dtype | None) -> torch.dtype | None:
        """Floats are loaded in the number format asked for; those to be quantized in float32."""
        self.wanted = torch_dtype
        return torch_dtype if self.pre_quantized else torch.float32

    def update_device_map(self, device_map: Any) -> None:
        """No map: everything is on the CPU."""

    @property
    def supports_parallel_loading(self) -> bool:
        """Tensors are counted as they come."""
        return False

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        """Make the network have the names of the packed tensors, and none of the float weights'."""
        if not self.pre_quantized:
            return
        entry = self.quantization_config.entry
        where = type(model).__name__
        if not is_entry({METHOD_KEY: METHOD, **entry}):
            raise BrokenModel(f"the quantization_config of {where} describes no packed network")
        require_version(entry, f"the config.json of {where}")
        names = names_of(entry, f"the config.json of {where}")
        for path in (*entry.get("layers", {}), *entry.get("tables", ())):
            if path in dict(model.named_modules()):
                self._aside[path] = model.get_submodule(path)
                place(model, path, nn.Module())
        self._names = names - set(model.state_dict())
        for name in sorted(self._names):
            owner, _, leaf = name.rpartition(".")
            module = _reserved(model, owner, self._aside)
            if module is None:
                raise BrokenModel(f"the config.json of {where} has {name}, the network has not")
            module._parameters.pop(leaf, None)  # a bias that the plain network has not
            module.register_buffer(leaf, torch.empty(0))

    # ---- the weights ------------------------------------------------------------------------

    def check_if_quantized_param(
        self, model: nn.Module, param_value: Tensor, param_name: str, state_dict: Any, **kw: Any
    ) -> bool:
        """Whether a tensor is kept aside; counts the tensors of each file as they come."""
        if not self.pre_quantized:
            return False
        for name in state_dict.keys() - self._digests.keys():
            self._digests[name] = tensor_sha256(state_dict[name])
        return param_name in self._names

    def create_quantized_param(
        self, model: nn.Module, param_value: Tensor, param_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """Keep a tensor as the file has it: ``param_value`` is in another number format perhaps."""
        state_dict = kwargs.get("state_dict") or args[1]
        self._held[param_name] = state_dict[param_name].clone()

    # ---- after the weights ------------------------------------------------------------------

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        """Build the packed network in the one that diffusers has loaded."""
        from quantarena.bench.ship.native_load import build, quantize

        if self.pre_quantized:
            entry = self._loaded(model)
            held, digests = self._held, self._digests
            self._held, self._digests, self._names = {}, {}, set()
            document, tensors = checked(entry, held, digests, type(model).__name__)
            build(model, document, tensors, digests.keys() - set(held), self.wanted)
            return
        self.quantization_config.entry = quantize(model, self.quantization_config, self.wanted)
        self.pre_quantized = True

    def _loaded(self, model: nn.Module) -> dict[str, Any]:
        """Put the network's own modules back, without the names that were added."""
        for name in self._names:
            owner, _, leaf = name.rpartition(".")
            del model.get_submodule(owner)._buffers[leaf]
        for path, module in self._aside.items():
            place(model, path, module)
        self._aside = {}
        entry: dict[str, Any] = self.quantization_config.entry
        return entry

    # ---- saving -----------------------------------------------------------------------------

    @contextmanager
    def saving(self, tensors: dict[str, Tensor]) -> Iterator[None]:
        """Inside the block, ``save_pretrained`` writes these tensors."""
        self._saved = tensors
        try:
            yield
        finally:
            self._saved = None

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Any], safe_serialization: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The packed tensors. No metadata: safetensors writes two entries in either order."""
        return (state_dict if self._saved is None else self._saved), {}

    @property
    def is_serializable(self) -> bool:
        """Packed networks are saved as they are."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Codes do not learn; ``quantarena tune`` does that."""
        return False


def _reserved(model: nn.Module, path: str, aside: Mapping[str, Any]) -> nn.Module | None:
    """The module at a path, made where it is inside a layer that was set aside; else None."""
    found = model
    steps = path.split(".") if path else []
    for depth, step in enumerate(steps):
        child = found._modules.get(step)
        if child is None:
            if not any(".".join(steps[:n]) in aside for n in range(1, depth + 1)):
                return None
            child = nn.Module()
            found.add_module(step, child)
        found = child
    return found


register_with_diffusers()  # diffusers' tables may have been imported by the imports above
