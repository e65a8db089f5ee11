"""Pipelines that draw with a LoRA for a while: full precision and packed networks alike.

diffusers loads it, beside the layers of either network; nothing is merged, so that both sides
compute ``layer(x) + scale * B(A(x))`` and taking it off again leaves every bit as it was.
"""

import math
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from quantarena.bench.adapters.request import LoraRequest, layers_of
from quantarena.bench.closure import closure
from quantarena.bench.content import file_sha256
from quantarena.bench.errors import UserError, first_line
from quantarena.methods.core.errors import QuantArenaError, Unsupported

REGISTER = "quantarena.bench.adapters.register"
"""Imported by name where a LoRA is asked for: an import would put peft, and all packed layers, into
the key of every stage that draws."""
NAME = "workload"
"""Of the adapter, in peft."""


@dataclass(frozen=True, slots=True)
class LoraFacts:
    """What a row says of a LoRA.

    Attributes:
        name: the last part of its path.
        scale: how strongly it acts.
        sha256: of its file.
        layers: layers that it changes.
        values: numbers in it; as a branch beside codes each takes four bytes.
    """

    name: str
    scale: float
    sha256: str
    layers: int
    values: int


def facts(text: str) -> LoraFacts:
    """What is known of a workload's LoRA from its file.

    Raises:
        UserError: there is no such file.
        BrokenModel: it is no safetensors file, or holds no LoRA.
    """
    request = LoraRequest.read(text)
    shapes, sha256 = request.shapes(), file_sha256(request.file())
    values = sum(math.prod(shape) for shape in shapes.values())
    return LoraFacts(request.path.name, request.scale, sha256, layers_of(shapes), values)


def lora_content(text: str) -> list[Any]:
    """What the key of a stage that draws with a LoRA holds of it."""
    found = facts(text)
    return ["lora", found.sha256, found.scale, closure(REGISTER).key]


@contextmanager
def drawing_with(pipe: Any, text: str) -> Iterator[None]:
    """Inside the block, the networks of a pipeline have a LoRA.

    Args:
        pipe: the pipeline; afterwards its networks are as before, bit for bit.
        text: see ``LoraRequest``; nothing happens where it is empty.

    Raises:
        Unsupported: the network in the pipeline, or its class, takes no LoRA.
        UserError: it does not fit this model.
    """
    if not text:
        yield
        return
    load(pipe, LoraRequest.read(text))
    try:
        yield
    finally:
        pipe.unload_lora_weights()


def load(pipe: Any, request: LoraRequest) -> None:
    """Put a LoRA on the networks of a pipeline; see ``drawing_with``."""
    pkgutil.resolve_name(REGISTER).register_with_peft()
    _require_place(pipe, request)
    file = request.file()
    networks = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    try:
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=NAME)
        pipe.set_adapters(NAME, request.scale)
    except QuantArenaError:
        pipe.unload_lora_weights()
        raise
    except Exception as error:  # whatever diffusers and peft find wrong with a file
        pipe.unload_lora_weights()
        raise UserError(
            f"{request.path.name} does not fit {type(pipe).__name__}: {first_line(error)}"
        ) from None
    layers = [layer for part in networks for layer in adapted(part)]
    for module in layers:
        module.eval().requires_grad_(False)  # new modules are in training mode
    wanted = facts(request.text()).layers
    if len(layers) < wanted:
        pipe.unload_lora_weights()
        raise Unsupported(
            f"{request.path.name} changes {wanted} layers, of which this {type(pipe).__name__} has "
            f"{len(layers)}: it is for another model, or a method made a table of the others"
        )


def adapted(network: nn.Module) -> list[nn.Module]:
    """The layers of a network that have adapters of peft beside them."""
    return [module for module in network.modules() if hasattr(module, "merged_adapters")]


def _require_place(pipe: Any, request: LoraRequest) -> None:
    """Refuse pipelines and networks that have no place for an adapter.

    Raises:
        Unsupported: the line says which has none.
    """
    if not hasattr(pipe, "load_lora_weights"):
        raise Unsupported(f"{type(pipe).__name__} takes no LoRA: leave lora out")
    for name in pipe._lora_loadable_modules:
        network = getattr(pipe, name, None)
        if "text_encoder" in name or network is None:
            continue
        if not hasattr(network, "load_lora_adapter"):
            raise Unsupported(f"a {type(network).__name__} in the place of {name} takes no LoRA")


def refuse_lora(text: str, verb: str) -> None:
    """Refuse a verb that would leave a LoRA out without a word.

    Raises:
        UserError: a LoRA is asked for.
    """
    if text:
        raise UserError(
            f"{verb} takes the base model, and lora={LoraRequest.read(text).text(short=True)} is "
            "none of it: leave lora out, and load it later with pipe.load_lora_weights()"
        )
