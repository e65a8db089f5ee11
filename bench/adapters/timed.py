"""A LoRA in the form in which its network is timed."""

from typing import Any

from quantarena.bench.adapters.drawing import load
from quantarena.bench.adapters.request import LoraRequest
from quantarena.methods.core.packed.nodes.node import Node


def fuse_for_timing(pipe: Any, slot: str, text: str) -> None:
    """Leave a LoRA in a packed network as a branch of its layers; other networks keep it loaded.

    Full precision takes it up in its weights at no cost, codes cannot.

    Args:
        pipe: a pipeline with the network in its slot.
        slot: the network's place.
        text: see ``LoraRequest``.
    """
    load(pipe, LoraRequest.read(text))
    if any(isinstance(module, Node) for module in getattr(pipe, slot).modules()):
        pipe.fuse_lora(components=[slot])
        pipe.unload_lora_weights()
