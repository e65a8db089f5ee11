"""LoRA on a packed network of diffusers: what its own ways of loading one need beside them.

diffusers loads, scales, fuses and unloads adapters through peft. This makes peft know packed layers
(``bench.adapters``), and refuses what would load without a word and do nothing.
"""

from collections.abc import Sequence
from typing import Any

from diffusers.loaders.lora_base import _fetch_state_dict
from diffusers.loaders.peft import PeftAdapterMixin
from torch import nn

from quantarena.bench.adapters.drawing import adapted
from quantarena.bench.adapters.register import register_with_peft
from quantarena.bench.errors import UserError
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.model.time_table import ScheduledTable
from quantarena.methods.core.packed.nodes.node import Node

_FETCHED: dict[str, Any] = {
    **dict.fromkeys(("cache_dir", "proxies", "local_files_only", "token", "revision")),
    **dict.fromkeys(("subfolder", "weight_name", "use_safetensors")),
    "force_download": False,
}
"""Arguments that say where a file is, with diffusers' defaults."""


class PackedAdapters(PeftAdapterMixin):  # type: ignore[misc]
    """How a packed network takes adapters otherwise than the diffusers class beside it."""

    def load_lora_adapter(
        self, pretrained_model_name_or_path_or_dict: Any, prefix: Any = "transformer", **kwargs: Any
    ) -> None:
        """As diffusers' own.

        Raises:
            UserError: peft is missing, or a layer cannot hold this kind of adapter.
            Unsupported: it is for layers that the network has as a table. The network is as before.
        """
        register_with_peft()
        given = pretrained_model_name_or_path_or_dict
        if not isinstance(given, dict):
            place = {name: kwargs.pop(name, default) for name, default in _FETCHED.items()}
            agent = {"file_type": "attn_procs_weights", "framework": "pytorch"}
            place |= {"user_agent": agent, "allow_pickle": False}
            given, kwargs["metadata"] = _fetch_state_dict(
                given, metadata=kwargs.get("metadata"), **place
            )
        mark = "" if prefix is None else f"{prefix}."
        names = [key.removeprefix(mark) for key in given if key.startswith(mark)]
        refuse_tables(self, names)
        super().load_lora_adapter(given, prefix, **kwargs)
        eval_adapters(self)

    def add_adapter(self, adapter_config: Any, adapter_name: str = "default") -> None:
        """As diffusers' own.

        Raises:
            UserError: peft is missing, or the adapter cannot act on this network.
        """
        register_with_peft()
        inside = _inside_layers(self, adapter_config)
        if inside:
            raise UserError(
                f"the pattern of {adapter_name} takes {inside}, a part of a packed layer, for a "
                "layer: name layers by their own paths"
            )
        super().add_adapter(adapter_config, adapter_name)
        eval_adapters(self)


def eval_adapters(network: nn.Module) -> None:
    """Put what peft made into the mode of its network: new modules are in training mode."""
    for module in adapted(network):
        module.train(network.training)


def refuse_tables(network: nn.Module, keys: Sequence[str]) -> None:
    """Refuse an adapter for layers that became a table of their outputs by sampler call.

    Args:
        network: the packed network.
        keys: names of the adapter's tensors.

    Raises:
        Unsupported: the line names the table.
    """
    tables = [name for name, m in network.named_modules() if isinstance(m, ScheduledTable)]
    for name in tables:
        if any(key.startswith(f"{name}.") for key in keys):
            raise Unsupported(
                f"the adapter changes layers of {name}, which this network keeps as a table of "
                "outputs by sampler call: quantize with a method that keeps the layers"
            )


def refuse_adapters(network: nn.Module) -> None:
    """Refuse to write a network with adapters beside its layers.

    Raises:
        UserError: it has some.
    """
    if adapted(network):
        raise UserError(
            "a packed network is saved without adapters: call unload_lora_weights() first; what "
            "fuse_lora() made a part of its layers stays, and is saved with them"
        )


def _inside_layers(network: nn.Module, config: Any) -> str:
    """The first part of a packed layer that a configuration takes for a layer; empty for none."""
    from peft.tuners.tuners_utils import check_target_module_exists

    nodes = {name for name, module in network.named_modules() if isinstance(module, Node)}
    inner = (n for n in nodes if any(n.startswith(f"{other}.") for other in nodes))
    return next((n for n in sorted(inner) if check_target_module_exists(config, n)), "")
