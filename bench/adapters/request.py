"""A LoRA as a workload's setting: ``FOLDER[@SCALE]``. No torch, and peft is only looked for."""

import importlib.util
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantarena.bench.documents import parse_json
from quantarena.bench.errors import BrokenModel, UserError

PIP = "pip install 'quantarena[lora]'"
WEIGHTS = "pytorch_lora_weights.safetensors"
"""The name that diffusers' ``save_lora_weights`` gives a file."""
_PAIR = re.compile(r"\.(lora_A|lora_down|down)(\.\w+)?\.weight$")
"""Names of first factors, as diffusers, older diffusers and kohya call them."""
_LENGTH_BYTES = 8
_MOST_HEADER = 100_000_000
"""Bytes of a header that the safetensors library reads at most."""

Shapes = dict[str, tuple[int, ...]]


def peft_is_there() -> bool:
    """Whether peft is installed."""
    return importlib.util.find_spec("peft") is not None


def require_peft(what: str) -> None:
    """Refuse what needs peft where it is missing; imports nothing.

    Raises:
        UserError: the line says what to install.
    """
    if not peft_is_there():
        raise UserError(f"{what} needs peft: {PIP}")


@dataclass(frozen=True, slots=True)
class LoraRequest:
    """A LoRA and how strongly it acts.

    Attributes:
        path: its folder, or its file.
        scale: what its output is multiplied with, beside its own alpha / rank.
    """

    path: Path
    scale: float = 1.0

    @classmethod
    def read(cls, text: str) -> "LoraRequest":
        """A request from its text; a path that exists is one, whatever is behind its last ``@``.

        Raises:
            UserError: the scale is no number.
        """
        path, mark, scale = text.rpartition("@")
        if not mark or os.path.exists(Path(text).expanduser()):
            return cls(Path(text).expanduser())
        try:
            number = float(scale)
        except ValueError:
            number = math.nan
        if not path or not math.isfinite(number):
            raise UserError(f"lora={text}: it reads FOLDER or FOLDER@SCALE, such as style@0.8")
        return cls(Path(path).expanduser(), number)

    def text(self, *, short: bool = False) -> str:
        """What ``read`` reads; the path is absolute, or short: its last part alone."""
        path = self.path.name if short else str(self.path.resolve())
        return path if self.scale == 1.0 else f"{path}@{self.scale:.12g}"

    def file(self) -> Path:
        """Its safetensors file.

        Raises:
            UserError: there is none, or several of which none has the usual name; or peft, which
                applies it, is missing.
        """
        require_peft("a workload with a LoRA")
        if os.path.isfile(self.path):
            if self.path.suffix != ".safetensors":
                raise UserError(f"lora={self.path} is no .safetensors file")
            return self.path
        if not os.path.isdir(self.path):
            raise UserError(f"lora={self.path} is no folder and no file")
        found = sorted(self.path.glob("*.safetensors"))
        usual = [file for file in found if file.name == WEIGHTS]
        if len(chosen := usual or found) != 1:
            what = f"{len(found)} .safetensors files" if found else "no .safetensors file"
            raise UserError(f"lora={self.path} holds {what}: name the one that is meant")
        return chosen[0]

    def shapes(self) -> Shapes:
        """The shapes of the tensors in its file, by name; only the head of the file is read.

        Raises:
            UserError: as ``file``.
            BrokenModel: it is no whole safetensors file, or none of its tensors is a LoRA's.
        """
        file = self.file()
        try:
            found = _read_shapes(file)
        except OSError as error:
            raise BrokenModel(f"{file} cannot be read: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError) as error:
            why = f"{error} is missing in its head" if isinstance(error, KeyError) else str(error)
            raise BrokenModel(
                f"{file} cannot be read: it is no intact safetensors file ({why})"
            ) from None
        if not layers_of(found):
            raise BrokenModel(f"{file} holds no LoRA: none of its {len(found)} tensors is a factor")
        return found


def layers_of(shapes: Shapes) -> int:
    """Number of layers that the tensors of a LoRA change."""
    return sum(bool(_PAIR.search(name)) for name in shapes)


def _read_shapes(file: Path) -> Shapes:
    """The shapes that the head of a safetensors file states.

    Raises:
        OSError: it cannot be read.
        ValueError, KeyError, TypeError: it is none, or it is truncated.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        start = _LENGTH_BYTES + length
        if not 2 <= length <= _MOST_HEADER or start > size:
            raise ValueError(f"its {size} bytes begin with no head")
        head: Any = parse_json(stream.read(length).decode("utf-8"))
    if not isinstance(head, dict):
        raise ValueError("its head is no JSON object")
    tensors = {name: head[name] for name in head if name != "__metadata__"}
    end = max((int(each["data_offsets"][1]) for each in tensors.values()), default=0)
    if start + end != size:
        raise ValueError(f"it has {size} bytes of {start + end}")
    return {name: tuple(map(int, each["shape"])) for name, each in tensors.items()}
