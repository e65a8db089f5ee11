"""The contract of rivals: contestants that bring their own network and kernels.

A method returns a model that the harness packs and holds against its simulation. A rival, such as
another library or full precision in another number format, returns a network that is ready to
draw. It passes no parity gate, so its row names what ran, and its bytes and widths are read from
the tensors that it holds.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from quantarena.methods.builtin import INSTALL
from quantarena.methods.contestant import Contestant
from quantarena.methods.contract import MethodContext, network_mark, seed_all
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.errors import QuantArenaError, Unsupported
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.model.width_budget import FLOAT_BITS
from quantarena.methods.core.visits import visited_device

NO_GATE = "none: a rival runs on kernels of its own, and no simulation is known to compare with"
"""What a row says of parity."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A network that is ready to draw, and what it holds.

    Attributes:
        module: called as the denoiser is, with the attributes that a pipeline reads; its result
            has the prediction as ``sample`` and as item 0.
        backend: what runs it, for the row, such as ``torchao int8 weight-only``.
        packed_bytes: bytes of its weights and buffers as it holds them.
        widths: bits of each layer that it quantizes, by module path, as its tensors hold them.
        mean_bits: mean bits of the weight codes of those layers that are not whole bits.
        float_bits: bits of a number where nothing is quantized.
        lines: for the reader of a row.
        notes: for the row's calibration; plain JSON types.
        clock: nothing of a rival depends on the sampler call; pipelines announce it all the same.
    """

    module: nn.Module
    backend: str
    packed_bytes: int
    widths: Mapping[str, Bits] = field(default_factory=dict)
    mean_bits: Mapping[str, float] = field(default_factory=dict)
    float_bits: int = FLOAT_BITS
    lines: tuple[str, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    clock: CallClock = field(default_factory=CallClock)

    def remarks(self) -> tuple[str, ...]:
        """Lines for the reader of a row."""
        return self.lines


class Rival(Contestant):
    """Base of all rivals.

    ``build`` may write files that take long to make; the harness keeps them in its cache under the
    versions of the libraries. ``prepare`` opens them.

    Attributes:
        needs: distributions that it imports, beside those that quantarena always has. They are
            imported inside of functions, so that plans and lists need none of them.
        devices: kinds of devices that its network runs on.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    devices: ClassVar[tuple[str, ...]] = ("cpu",)

    def build(self, ctx: MethodContext, folder: Path) -> None:
        """Write what takes long to make into an empty folder; nothing by default."""

    @abstractmethod
    def prepare(self, ctx: MethodContext, folder: Path) -> Prepared:
        """The network, from the full-precision one and from what ``build`` wrote.

        Raises:
            Unsupported: the request cannot be met; the cell becomes a skipped row.
        """

    def check(self, bits: Bits, variant: str, policy: str = UNIFORM.name) -> None:
        """Raise ``Unsupported`` when the request is outside ``supports`` or a library is absent."""
        super().check(bits, variant, policy)
        absent = [name for name, found in self.libraries().items() if found is None]
        if absent:
            is_are = "is" if len(absent) == 1 else "are"
            raise Unsupported(f"{' and '.join(absent)} {is_are} not installed: {INSTALL}")

    def check_place(self, device: torch.device) -> None:
        """Raise ``Unsupported`` where the network is on a device that it does not run on."""
        if device.type not in self.devices:
            raise Unsupported(
                f"{self.name} runs on {' and '.join(self.devices)}, the network is on "
                f"{device.type}: leave it out there, or run it with the network on the CPU"
            )

    def check_offload(self) -> None:
        """Raise ``Unsupported``: a library runs the network as a whole."""
        raise Unsupported(
            f"{self.name} runs the whole network by a library, and --offload has one block of it "
            "on the device: leave it out, or run it where the network fits, without --offload"
        )

    def content(self) -> str:
        """Hash of files of the user's that its network is made of; empty where there are none."""
        return ""

    @classmethod
    def versions(cls) -> dict[str, str | None]:
        """The version of each library in ``needs``, None where it is not installed."""
        return {name: installed(name) for name in cls.needs}

    def libraries(self) -> dict[str, str | None]:
        """The version of each library that it needs with its options, None where it is absent."""
        return self.versions()

    def run(self, ctx: MethodContext, folder: Path, *, build: bool) -> Prepared:
        """Check, seed, build where asked, prepare, and see that full precision is unchanged.

        Args:
            ctx: what a method is given.
            folder: for the files of ``build``.
            build: whether the folder is still empty.

        Raises:
            Unsupported: the rival cannot meet the request.
            QuantArenaError: it changed the full-precision network.
        """
        self.check(ctx.bits, ctx.variant)
        if visited_device(ctx.model) is not None:
            self.check_offload()
        self.check_place(ctx.device)
        seed_all(ctx.seed)
        before = network_mark(ctx.model)
        if build:
            self.build(ctx, folder)
        prepared = self.prepare(ctx, folder)
        if network_mark(ctx.model) != before:
            raise QuantArenaError(f"{self.name} changed the full-precision network: copy it first")
        return prepared


def installed(name: str) -> str | None:
    """The version of a distribution; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
