"""Tells peft about packed layers. Stages reach this by name, so that peft is in no other key."""

import functools
from typing import Any

from quantarena.bench.adapters.request import require_peft


@functools.cache
def register_with_peft() -> None:
    """Let peft put adapters on packed layers; all other layers get peft's own, as before.

    peft asks its dispatchers in turn for a layer's adapter, the one for torch's own layers last.
    Custom layers can be registered with each configuration, but diffusers makes its
    configurations inside ``load_lora_adapter``.

    Raises:
        UserError: peft is missing.
    """
    require_peft("an adapter on a packed network")
    from peft.tuners.lora import model as peft_model

    from quantarena.bench.adapters.layer import PackedLora
    from quantarena.methods.core.packed.nodes.node import Node

    default = peft_model.dispatch_default

    @functools.wraps(default)
    def dispatch(target: Any, adapter_name: str, config: Any, **kwargs: Any) -> Any:
        if isinstance(target, Node):
            return PackedLora(target, adapter_name, config, **kwargs)
        return default(target, adapter_name, config=config, **kwargs)

    peft_model.dispatch_default = dispatch
    _find_device(peft_model)
    _keep_shapes()


def _find_device(peft_model: Any) -> None:
    """Let peft find the device of a network whose parameters have all become codes.

    It asks the first parameter; a transformer whose norms have no weights has none left.
    """
    find = getattr(peft_model, "get_device_map", None)
    if find is None:  # of a version that does not ask
        return

    @functools.wraps(find)
    def found(model: Any) -> Any:
        buffers = model.buffers() if next(model.parameters(), None) is None else iter(())
        buffer = next(buffers, None)
        return find(model) if buffer is None else {"": buffer.device}

    peft_model.get_device_map = found


def _keep_shapes() -> None:
    """Let pipelines of Flux compare an adapter with a packed network, which has no float weights.

    They look up the float weight of each layer to pad an adapter that was made for fewer inputs.
    """
    from diffusers.loaders.lora_pipeline import FluxLoraLoaderMixin

    from quantarena.methods.core.packed.nodes.node import Node

    expand = FluxLoraLoaderMixin._maybe_expand_lora_state_dict.__func__

    @functools.wraps(expand)
    def expanded(cls: Any, transformer: Any, lora_state_dict: dict[str, Any]) -> dict[str, Any]:
        modules = transformer.named_modules()
        packed = {_layer(name) for name, module in modules if isinstance(module, Node)}
        prefix = f"{cls.transformer_name}."
        mine = {
            key: value
            for key, value in lora_state_dict.items()
            if _layer(key.removeprefix(prefix)) in packed
        }
        others = {key: value for key, value in lora_state_dict.items() if key not in mine}
        return {**expand(cls, transformer, others), **mine}

    FluxLoraLoaderMixin._maybe_expand_lora_state_dict = classmethod(expanded)


def _layer(key: str) -> str:
    """The layer that a tensor of an adapter belongs to."""
    for mark in (".lora_", ".base_layer"):
        key = key.partition(mark)[0]
    return key
