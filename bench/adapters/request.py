"""A LoRA as a workload's setting: ``FOLDER[@SCALE]``. No torch, and peft is only looked for."""

import importlib.util
import math
import os
from dataclasses import dataclass
from pathlib import Path

from quantarena.bench.errors import UserError

PIP = "pip install 'quantarena[lora]'"
WEIGHTS = "pytorch_lora_weights.safetensors"
"""The name that diffusers' ``save_lora_weights`` gives a file."""


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
