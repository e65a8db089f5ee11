"""What a torch network of another library holds: bytes and widths, read from its tensors.

Libraries keep codes in subclasses of ``Tensor`` whose ``element_size`` is that of the number they
stand for. ``__tensor_flatten__``, by which torch.compile takes such a tensor apart, names the plain
tensors inside. A weight of a GGUF file is one tensor of bytes, whose blocks hold codes and scales.
"""

import re
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor, nn

from quantarena.methods.core.bits import FP_WIDTH, Bits

GGUF_CODES = r"I?Q(\d)_"
"""Names of GGUF's quantized types begin so, with the bits of a code: ``Q4_K``, ``IQ2_XS``."""


def plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that a tensor is made of; itself where it is one."""
    if type(tensor) in (Tensor, nn.Parameter) or not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from plain_tensors(getattr(tensor, name))


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors as memory holds them, each plain one once."""
    plain = {id(part): part for tensor in tensors for part in plain_tensors(tensor)}
    return sum(part.numel() * part.element_size() for part in plain.values())


def network_bytes(network: nn.Module) -> int:
    """Bytes of a network's parameters and buffers as memory holds them."""
    return held_bytes([*network.parameters(), *network.buffers()])


def code_bits(weight: Tensor) -> float | None:
    """Bits of a weight's codes, ``8 * bytes / numbers``; None for a weight in floating point."""
    if (kind := getattr(weight, "quant_type", None)) is not None:  # of GGUF, from diffusers
        return _gguf_bits(kind)
    codes = [part for part in plain_tensors(weight) if not part.is_floating_point()]
    if not codes:
        return None
    largest = max(codes, key=lambda part: part.numel() * part.element_size())
    return 8 * largest.numel() * largest.element_size() / weight.numel()


def _gguf_bits(kind: int) -> float | None:
    from gguf import GGMLQuantizationType

    found = re.match(GGUF_CODES, GGMLQuantizationType(kind).name)
    return float(found[1]) if found else None


def observed_widths(
    network: nn.Module, layers: Iterable[str], act_bits: Callable[[nn.Module], int]
) -> dict[str, Bits]:
    """Bits of the quantized ones among some layers.

    Args:
        network: with modules of the same paths as full precision's.
        layers: paths of full precision's layers.
        act_bits: of a layer's input, 16 for floating point.
    """
    widths = {}
    for name in layers:
        module = network.get_submodule(name)
        weight = getattr(module, "weight", None)
        found = code_bits(weight) if isinstance(weight, Tensor) else None
        if found is not None:
            widths[name] = Bits(round(found), act_bits(module))
    return widths


def float_act(module: nn.Module) -> int:
    """The width of an input that stays in floating point."""
    return FP_WIDTH


def act_bits(module: nn.Module) -> int:
    """The width of a module's input as its library says it; 16 where none is quantized.

    quanto keeps it on the module, torchao on the tensor of the weight.
    """
    kind = getattr(module, "activation_qtype", None)
    if kind is not None:
        return int(kind.bits)
    return FP_WIDTH if getattr(module.weight, "act_quant_kwargs", None) is None else 8


def untouched(layers: Iterable[str], quantized: Iterable[str]) -> tuple[str, ...]:
    """What a row says of the layers that a library leaves alone; nothing where there are none."""
    names, done = set(layers), set(quantized)
    left = len(names - done)
    return (f"{left} of {len(names)} layers stay in floating point",) if left else ()
