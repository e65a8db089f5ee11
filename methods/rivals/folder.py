"""What is quantized already: an export of ours, a folder that diffusers saved, or a GGUF file."""

import copy
import hashlib
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from quantarena.methods.builtin import is_gguf
from quantarena.methods.contract import MethodContext
from quantarena.methods.core.bits import FP_WIDTH, Bits
from quantarena.methods.core.errors import BrokenModel, Unsupported, UserError
from quantarena.methods.core.json_files import read_object
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.packed.checkpoint import load_packed
from quantarena.methods.core.packed.diffusers_layout import CONFIG, packed_folders
from quantarena.methods.core.packed.files import file_sha256
from quantarena.methods.info import Capabilities, MethodInfo
from quantarena.methods.options import MethodOptions
from quantarena.methods.registry import register
from quantarena.methods.rival import Prepared, Rival
from quantarena.methods.rivals.held import act_bits, network_bytes, observed_widths, untouched
from quantarena.methods.rivals.saved import (
    libraries,
    quant_method,
    read_folder,
    read_gguf,
)
from quantarena.methods.rivals.stand_in import StandIn


@register("folder")
class Folder(Rival):
    """The denoiser of a pipeline folder, in the place of full precision's."""

    @dataclass(frozen=True)
    class Options(MethodOptions):
        """Options of a folder.

        Attributes:
            path: the pipeline folder or the ``.gguf`` file, as an absolute path.
        """

        path: str = ""

    info = MethodInfo(
        title="A folder",
        venue="yours",
        paper="-",
        summary="a pipeline folder or GGUF file that is quantized already, scored as it is",
    )
    supports = Capabilities(
        weight_bits=(1, 2, 3, 4, 5, 6, 7, 8, FP_WIDTH),
        act_bits=(2, 3, 4, 5, 6, 7, 8, FP_WIDTH),
        most_iterations=0,
        board_bits=(),
    )
    options: Options

    def check(self, bits: Bits, variant: str, policy: str = UNIFORM.name) -> None:
        """Refuse a request without a folder.

        Raises:
            Unsupported: outside ``supports``.
            UserError: no folder, or a path that another process would read as another one.
        """
        super().check(bits, variant, policy)
        path = Path(self.options.path)
        if not path.is_absolute() or not (path.is_dir() or is_gguf(path)):
            said = f": {self.options.path} is none" if self.options.path else ""
            raise UserError(
                f"--option folder.path must be the absolute path of a folder or .gguf file{said}"
            )

    def libraries(self) -> dict[str, str | None]:
        """Those that the folder or file names."""
        return libraries(Path(self.options.path)) if self.options.path else {}

    def content(self) -> str:
        """Hash of the file, or of all files of the folder."""
        digest = hashlib.sha256()
        root = Path(self.options.path)
        if root.is_file():
            return file_sha256(root)
        for file in sorted(f for f in root.rglob("*") if f.is_file()):
            digest.update(f"{file.relative_to(root)}:{file_sha256(file)}\n".encode())
        return digest.hexdigest()

    def prepare(self, ctx: MethodContext, folder: Path) -> Prepared:
        """The folder's denoiser.

        Raises:
            BrokenModel: it holds no such network, or a damaged one.
            Unsupported: most of its layers have other widths than the cell says.
        """
        made = held_network(ctx.model, Path(self.options.path), ctx.graph.layers)
        counts = Counter(str(bits) for bits in made.widths.values())
        most = counts.most_common(1)[0][0] if counts else str(Bits(FP_WIDTH, FP_WIDTH))
        if most != str(ctx.bits):
            raise Unsupported(
                f"{self.options.path} holds {most} layers, not {ctx.bits}: ask for --bits {most}"
            )
        return made


def held_network(original: nn.Module, root: Path, layers: Collection[str]) -> Prepared:
    """The network of a pipeline folder or GGUF file that stands in for ``original``.

    Args:
        original: full precision's denoiser.
        root: a GGUF file, or a pipeline folder with a network of the same class in a sub-folder.
        layers: paths of full precision's layers.

    Raises:
        BrokenModel: there is none, or it is damaged.
    """
    packed = packed_folders(root)
    if packed:
        found = load_packed(packed[0], copy.deepcopy(original))
        return Prepared(
            found.module,
            found.backend,
            found.bytes(),
            found.widths(),
            found.mean_widths(),
            lines=found.remarks(),
            clock=found.clock,
        )
    if is_gguf(root):
        return _stood_in(original, read_gguf(original, root), "gguf", layers)
    kind = type(original).__name__
    slots = [f.parent for f in sorted(root.glob(f"*/{CONFIG}")) if _class_of(f) == kind]
    if not slots:
        raise BrokenModel(f"{root} holds no {kind}, which full precision's denoiser is")
    network = read_folder(type(original), slots[0])
    return _stood_in(original, network, quant_method(slots[0] / CONFIG), layers)


def _stood_in(
    original: nn.Module, network: nn.Module, name: str, layers: Collection[str]
) -> Prepared:
    widths = observed_widths(network, layers, act_bits)
    return Prepared(
        StandIn(original, network),
        f"diffusers, {name or 'unquantized'}",
        network_bytes(network),
        widths,
        lines=untouched(layers, widths) if name else (),
    )


def _class_of(file: Path) -> str:
    return str(read_object(file, constants=True).get("_class_name", ""))
