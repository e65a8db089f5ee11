"""Networks that another tool saved quantized: folders of diffusers, and single GGUF files."""

import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantarena.methods.builtin import INSTALL, is_gguf
from quantarena.methods.core.errors import BrokenModel, Unsupported
from quantarena.methods.core.json_files import read_object
from quantarena.methods.core.packed.diffusers_layout import (
    CONFIG,
    description_file,
    packed_folders,
    read_description,
)
from quantarena.methods.rival import installed
from quantarena.methods.rivals.held import (
    GGUF_CODES,
    act_bits,
    observed_widths,
    plain_tensors,
)

LIBRARIES = {"torchao": "torchao", "quanto": "optimum-quanto", "gguf": "gguf"}
"""The distribution that reads what each ``quant_method`` of diffusers wrote."""


def quant_method(config: Path) -> str:
    """The ``quant_method`` of a network's configuration file; empty where nothing is quantized.

    Raises:
        BrokenModel: the file cannot be read.
    """
    found = read_object(config, constants=True).get("quantization_config")
    return str(found.get("quant_method", "unnamed")) if isinstance(found, dict) else ""


def libraries(path: Path) -> dict[str, str | None]:
    """The version of each library that a pipeline folder or a GGUF file needs, None if absent.

    Libraries that no rival stands for are left to diffusers, which names what it lacks.
    """
    names = ["gguf"] if is_gguf(path) else map(quant_method, sorted(path.glob(f"*/{CONFIG}")))
    return {LIBRARIES[name]: installed(LIBRARIES[name]) for name in names if name in LIBRARIES}


def require_libraries(path: Path) -> None:
    """See that the libraries of a folder or file are installed.

    Raises:
        Unsupported: one is not; the line has the command that installs it.
    """
    for name, found in libraries(path).items():
        if found is None:
            raise Unsupported(f"{path} needs {name}, which is not installed: {INSTALL}")


def read_folder(kind: type[nn.Module], slot: Path) -> nn.Module:
    """A network that diffusers saved, read with the library that its configuration names.

    Args:
        kind: a class of diffusers.
        slot: the folder with its ``config.json`` and its weights.

    Raises:
        BrokenModel: it does not load.
    """
    maker: Any = kind
    try:
        network = maker.from_pretrained(str(slot), torch_dtype=torch.float32, local_files_only=True)
    except Exception as error:  # each quantizer's library has errors of its own
        raise BrokenModel(f"{slot} does not load in diffusers: {_first(error)}") from None
    return _ready(network, slot)


def read_gguf(original: nn.Module, file: Path) -> nn.Module:
    """A network of the class and the configuration of another, with the weights of a GGUF file.

    Its linear layers keep the file's blocks, and unpack them in each call.

    Args:
        original: full precision's denoiser, a network of diffusers.
        file: names and shapes are those of the class, or of the original release of the model,
            which diffusers converts.

    Raises:
        BrokenModel: diffusers reads no single file of this class, or not this one.
    """
    from diffusers import GGUFQuantizationConfig

    kind: Any = type(original)
    if not hasattr(kind, "from_single_file"):
        raise BrokenModel(
            f"{file}: diffusers reads no GGUF file into a {kind.__name__}, as it does into a "
            "UNet2DConditionModel or a FluxTransformer2DModel, for example: give a pipeline folder"
        )
    settings: Any = original
    with tempfile.TemporaryDirectory() as folder:
        settings.save_config(folder)
        try:
            network = kind.from_single_file(
                str(file),
                config=folder,
                quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
                torch_dtype=torch.float32,
                local_files_only=True,
            )
        except Exception as error:  # of the reader, of diffusers, of torch
            raise BrokenModel(
                f"{file} does not load in diffusers as a {kind.__name__}: {_first(error)}"
            ) from None
    for name, module in network.named_modules():
        weight = module._parameters.get("weight")
        if hasattr(weight, "quant_type") and not isinstance(module, nn.Linear):
            raise BrokenModel(
                f"{file}: {name} is a quantized {type(module).__name__}, and diffusers runs "
                "quantized linear layers alone: keep its weight in F16 or F32"
            )
    return _ready(network, file)


def most_held(path: Path) -> str:
    """The bits that most quantized weights of a folder or file have, as a cell names them.

    Args:
        path: an export of ours, a folder that diffusers saved quantized, or a GGUF file.

    Raises:
        BrokenModel: nothing in it is quantized, or it does not load.
        Unsupported: its library is not installed.
    """
    file = next(map(description_file, packed_folders(path)), None)
    if file is not None:
        return str(read_description(file).get("meta", {}).get("bits", ""))
    require_libraries(path)
    counts = Counter(_gguf_bits(path) if is_gguf(path) else _folder_bits(path))
    if not counts:
        raise BrokenModel(f"{path} holds nothing quantized: leave --against out")
    return counts.most_common(1)[0][0]


def _folder_bits(root: Path) -> Iterator[str]:
    import diffusers

    for config in sorted(root.glob(f"*/{CONFIG}")):
        kind = getattr(diffusers, str(read_object(config, constants=True).get("_class_name")), None)
        if kind is None or not quant_method(config):
            continue
        network = read_folder(kind, config.parent)
        names = [name for name, part in network.named_modules() if hasattr(part, "weight")]
        yield from map(str, observed_widths(network, names, act_bits).values())


def _gguf_bits(file: Path) -> Iterator[str]:
    from gguf import GGUFReader

    try:
        tensors = GGUFReader(str(file)).tensors
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise BrokenModel(f"{file} is no GGUF file: {_first(error)}") from None
    for tensor in tensors:
        if found := re.match(GGUF_CODES, tensor.tensor_type.name):
            yield f"w{found[1]}a16"


def _ready(network: nn.Module, where: Path) -> nn.Module:
    """The network for evaluation.

    Raises:
        BrokenModel: a weight of it is on no memory, so the file did not hold it.
    """
    for name, tensor in network.named_parameters():
        if any(part.device.type == "meta" for part in plain_tensors(tensor)):
            raise BrokenModel(f"{where} lacks the weight {name}")
    return network.eval().requires_grad_(False)


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
